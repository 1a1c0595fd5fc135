"""The one list of samplers and schedules. Nodes, dropdowns, tests, benchmarks and tables follow from it.

Adding a sampler is one function and one row.
"""

from __future__ import annotations

from collections.abc import Mapping

from .sampler import Option, Registry, SamplerSpec, ScheduleSpec
from .schedules import analytic as schedules
from .solvers import adams, adaptive, amed, ancestral, dpm_solver, runge_kutta, sde, unipc


def _lower_order_final(default: bool) -> Option:
    return Option(
        "lower_order_final",
        default,
        "Lower the order over the last steps. Steadier with few steps; no effect on the step to sigma 0, "
        "which always has order 1.",
    )


def _eta(default: float, more: str = "0: none, the deterministic sampler; 1: all of the SDE's.") -> Option:
    return Option("eta", default, f"Amount of fresh noise. {more}", 0.0, 10.0)


_ANCESTRAL_STEP = Option(
    "ancestral_step",
    "posterior",
    "How much of the noise is replaced at a given eta. posterior: as in DDIM; linear: as ComfyUI does for SD3, Flux "
    "and other flow models.",
    choices=("posterior", "linear"),
)
_CORRECTED_START = Option(
    "corrected_start",
    False,
    "Take the first step again, with a higher order, once the second prediction is known. Costs no evaluation.",
)
_R = Option("r", 0.5, "Where in the step (in log-SNR) the second evaluation lies.", 0.05, 1.0)
_R1_R2 = (
    Option("r1", 1 / 3, "Where in the step the second evaluation lies; smaller than r2.", 0.05, 0.95),
    Option("r2", 2 / 3, "Where in the step the third evaluation lies. Order 3 needs 2/3.", 0.1, 1.0),
)
_FORM = Option("solver_type", "midpoint", "Form of the update; midpoint is the paper's.", choices=("midpoint", "heun"))
_FORM_3M = Option(
    "solver_type",
    "published",
    "published: the formula of every implementation, which takes half the curvature (order 2 in the limit of many "
    "steps); exact: all of it (order 3).",
    choices=("published", "exact"),
)
_DPM = "Lu et al. 2022, arXiv 2206.00927"
_DPMPP = "Lu et al. 2022, arXiv 2211.01095"

_AMED = "Zhou et al. 2024, arXiv 2312.00094"
_AMED_OPTIONS = (
    Option(
        "middle",
        "midpoint",
        "Where every second level lies. midpoint: halfway (in log-SNR) between its neighbours; given: where the "
        "schedule put it.",
        choices=("midpoint", "given"),
    ),
    Option(
        "afs",
        False,
        "Analytical first step: takes the starting noise for the first prediction, which saves one evaluation.",
    ),
)

SAMPLERS: Mapping[str, SamplerSpec] = Registry(
    "sampler",
    [
        SamplerSpec(
            id="dpmpp_2s",
            label="DPM-Solver++ 2S",
            paper=_DPMPP,
            help="Second order, two evaluations a step. Remembers nothing between steps: it forgives strong guidance.",
            solver=dpm_solver.dpmpp_2s,
            order=2,
            options=(_R, _FORM, _lower_order_final(False)),
        ),
        SamplerSpec(
            id="dpmpp_3s",
            label="DPM-Solver++ 3S",
            paper=_DPMPP,
            help="Third order, three evaluations a step. For exact results with many evaluations and low guidance.",
            solver=dpm_solver.dpmpp_3s,
            order=3,
            options=(*_R1_R2, _FORM, _lower_order_final(False)),
            curated=False,
        ),
        SamplerSpec(
            id="dpmpp_2m",
            label="DPM-Solver++ 2M",
            paper=_DPMPP,
            help="Second order at one evaluation a step. The best all-rounder, with a schedule that fits the steps.",
            solver=dpm_solver.dpmpp_2m,
            order=2,
            options=(_FORM, _lower_order_final(True), _CORRECTED_START),
        ),
        SamplerSpec(
            id="dpmpp_3m",
            label="DPM-Solver++ 3M",
            paper=_DPMPP,
            help="Third order from the last three predictions, one evaluation a step. From 20 steps on, low guidance.",
            solver=dpm_solver.dpmpp_3m,
            order=3,
            options=(_FORM_3M, _lower_order_final(True), _CORRECTED_START),
        ),
        SamplerSpec(
            id="dpm_2s",
            label="DPM-Solver 2S",
            paper=_DPM,
            help="Second order in the noise prediction, two evaluations a step. For low guidance.",
            solver=dpm_solver.dpm_2s,
            order=2,
            options=(_R, _FORM, _lower_order_final(False)),
            curated=False,
        ),
        SamplerSpec(
            id="dpm_3s",
            label="DPM-Solver 3S",
            paper=_DPM,
            help="Third order in the noise prediction, three evaluations a step. For many evaluations, low guidance.",
            solver=dpm_solver.dpm_3s,
            order=3,
            options=(*_R1_R2, _FORM, _lower_order_final(False)),
            curated=False,
        ),
        SamplerSpec(
            id="dpm_2m",
            label="DPM-Solver 2M",
            paper=_DPMPP,
            help="Second order in the noise prediction, one evaluation a step. For 8 to 12 steps, low guidance.",
            solver=dpm_solver.dpm_2m,
            order=2,
            options=(_FORM, _lower_order_final(True), _CORRECTED_START),
        ),
        SamplerSpec(
            id="dpm_3m",
            label="DPM-Solver 3M",
            paper=_DPMPP,
            help="Third order in the noise prediction, one evaluation a step. From 15 steps on, low guidance.",
            solver=dpm_solver.dpm_3m,
            order=3,
            options=(_FORM_3M, _lower_order_final(True), _CORRECTED_START),
        ),
        SamplerSpec(
            id="euler",
            label="Euler",
            paper="Karras et al. 2022, arXiv 2206.00364",
            help="First order, the same numbers as ddim.",
            solver=runge_kutta.euler,
            order=1,
            curated=False,
        ),
        SamplerSpec(
            id="heun",
            label="Heun",
            paper="Karras et al. 2022, arXiv 2206.00364",
            help="Second order in sigma, two evaluations a step. Steady with low guidance.",
            solver=runge_kutta.heun,
            order=2,
            curated=False,
        ),
        SamplerSpec(
            id="rk4",
            label="Runge-Kutta 4",
            paper="Kutta 1901",
            help="Fourth order in sigma, four evaluations a step. For reference images with very many evaluations.",
            solver=runge_kutta.rk4,
            order=4,
            curated=False,
        ),
        SamplerSpec(
            id="unipc",
            label="UniPC",
            paper="Zhao et al. 2023, arXiv 2302.04867",
            help="Predictor and corrector at one evaluation a step. A good second opinion to dpmpp_2m.",
            solver=unipc.unipc,
            order=3,
            options=(
                Option("order", 3, "Number of predictions that the predictor uses.", 1, 3),
                Option(
                    "solver_type",
                    "bh2",
                    "The function B(h) of the paper; bh2 is the usual one.",
                    choices=("bh1", "bh2"),
                ),
                Option(
                    "prediction",
                    "data",
                    "What is extrapolated: the data, for guided images, or the noise, for low guidance.",
                    choices=("data", "noise"),
                ),
                Option("corrector", True, "Correct each step with the next prediction; costs no evaluation."),
                _lower_order_final(True),
            ),
        ),
        SamplerSpec(
            id="ipndm",
            label="iPNDM",
            paper="Zhang and Chen 2023, arXiv 2204.13902",
            help="Adams-Bashforth with weights for equal steps of sigma, at one evaluation a step. Order 2 on levels "
            "that are not uniform in sigma, yet often good at few steps.",
            solver=adams.ipndm,
            order=2,
            options=(Option("order", 4, "Number of derivatives used.", 1, 4),),
            curated=False,
        ),
        SamplerSpec(
            id="ipndm_v",
            label="iPNDM, variable steps",
            paper="Zhang and Chen 2023, arXiv 2204.13902",
            help="Adams-Bashforth with the weights of the steps as they are, one evaluation a step. In our benchmark "
            "the best at 5 to 8 steps, on karras with discard_penultimate.",
            solver=adams.ipndm_v,
            order=4,
            options=(Option("order", 4, "Number of derivatives used.", 1, 4),),
        ),
        SamplerSpec(
            id="ddim",
            label="DDIM (DPM-Solver++ 1)",
            paper="Song et al. 2020, arXiv 2010.02502",
            help="First order: robust, soft; the Euler method of sigma space. Good with very high guidance.",
            solver=ancestral.ddim,
            order=1,
            stochastic=True,
            options=(_eta(0.0, "0: deterministic; 1: DDPM."),),
        ),
        SamplerSpec(
            id="dpmpp_2m_sde",
            label="DPM-Solver++ 2M SDE",
            paper=_DPMPP,
            help="Second order with fresh noise, one evaluation a step. Livelier detail from 12 steps on.",
            solver=sde.dpmpp_2m_sde,
            order=2,
            stochastic=True,
            options=(_eta(1.0), _FORM),
        ),
        SamplerSpec(
            id="dpmpp_3m_sde",
            label="DPM-Solver++ 3M SDE",
            paper=_DPMPP,
            help="Third order with fresh noise, one evaluation a step. From 20 steps on: it breaks the image below 12.",
            solver=sde.dpmpp_3m_sde,
            order=3,
            stochastic=True,
            options=(_eta(1.0), _FORM_3M),
            curated=False,
        ),
        SamplerSpec(
            id="dpmpp_sde",
            label="DPM-Solver++ SDE",
            paper=_DPMPP,
            help="Second order with fresh noise, two evaluations a step. Forgives strong guidance.",
            solver=sde.dpmpp_sde,
            order=2,
            stochastic=True,
            options=(_eta(1.0), _R),
        ),
        SamplerSpec(
            id="dpmpp_2s_ancestral",
            label="DPM-Solver++ 2S ancestral",
            paper=_DPMPP,
            help="Second order steps with ancestral noise, two evaluations a step. Varied and detailed.",
            solver=ancestral.dpmpp_2s_ancestral,
            order=2,
            stochastic=True,
            options=(_eta(1.0), _R, _FORM, _ANCESTRAL_STEP),
            curated=False,
        ),
        SamplerSpec(
            id="euler_ancestral",
            label="Euler ancestral",
            paper="Song et al. 2020, arXiv 2010.02502",
            help="First order with fresh noise in every step. Varied; the image changes with the number of steps.",
            solver=ancestral.euler_ancestral,
            order=1,
            stochastic=True,
            options=(_eta(1.0), _ANCESTRAL_STEP),
        ),
        SamplerSpec(
            id="ddpm",
            label="DDPM",
            paper="Ho et al. 2020, arXiv 2006.11239",
            help="The original ancestral sampler: ddim with eta = 1. For many steps.",
            solver=ancestral.ddpm,
            order=1,
            stochastic=True,
            curated=False,
        ),
        SamplerSpec(
            id="edm",
            label="EDM (Heun with churn)",
            paper="Karras et al. 2022, arXiv 2206.00364",
            help="Heun with noise added before each step: set s_churn (10 to 40); at 0 it is heun. For many steps.",
            solver=runge_kutta.edm,
            order=2,
            stochastic=True,
            options=(
                Option(
                    "s_churn",
                    0.0,
                    "Noise added over the whole run, in units of the level: s_churn / steps before each step, at most "
                    "41%.",
                    0.0,
                    1000.0,
                ),
                Option("s_tmin", 0.0, "No churn below this noise level.", 0.0, 1e4),
                Option("s_tmax", 1e4, "No churn above this noise level.", 0.0, 1e4),
            ),
            curated=False,
        ),
        SamplerSpec(
            id="deis",
            label="DEIS (tAB)",
            paper="Zhang and Chen 2023, arXiv 2204.13902",
            help="Adams-Bashforth in diffusion time, at one evaluation a step. Good at 8 to 15 steps.",
            solver=adams.deis,
            order=3,
            options=(Option("order", 3, "Number of derivatives used.", 1, 3),),
        ),
        SamplerSpec(
            id="plms",
            label="PLMS (PNDM)",
            paper="Liu et al. 2022, arXiv 2202.09778",
            help="ipndm with an accurate start, which costs evaluations. Order 2 on levels that are not uniform in "
            "sigma.",
            solver=adams.plms,
            order=2,
            options=(
                Option("order", 4, "Number of derivatives used.", 1, 4),
                Option(
                    "start",
                    "runge_kutta",
                    "How the run starts: runge_kutta takes four evaluations in each of the first order - 1 steps "
                    "(the paper's), heun one more evaluation in the first step (that of Stable Diffusion).",
                    choices=("runge_kutta", "heun"),
                ),
            ),
            curated=False,
        ),
        SamplerSpec(
            id="dpm_fast",
            label="DPM-Solver fast",
            paper=_DPM,
            help="Steps of order 3 that share the given number of evaluations, at levels of its own (uniform log-SNR). "
            "For low guidance.",
            solver=dpm_solver.dpm_fast,
            order=2,
            curated=False,
        ),
        SamplerSpec(
            id="dpm_adaptive",
            label="DPM-Solver adaptive",
            paper=_DPM,
            help="Chooses its own steps by their error: rtol sets the quality, not the number of steps. Low guidance.",
            solver=adaptive.dpm_adaptive,
            order=3,
            adaptive=True,
            options=(
                Option("order", 3, "DPM-Solver-12 (2) or -23 (3): evaluations of a try.", 2, 3),
                Option(
                    "rtol",
                    0.05,
                    "Relative tolerance. Smaller: more evaluations, closer to the exact result.",
                    1e-5,
                    1.0,
                    step=1e-4,
                ),
                Option("atol", 0.0078, "Absolute tolerance, for latents or images of size 1.", 1e-6, 1.0, step=1e-4),
                Option("h_init", 0.05, "First step, in log-SNR / 2.", 1e-3, 10.0, step=1e-3),
                Option(
                    "accept_safety",
                    0.81,
                    "A try that wants the step shortened to less than this is repeated.",
                    0.01,
                    1.0,
                ),
                Option("pcoeff", 0.0, "Proportional term of the step size controller.", 0.0, 5.0),
                Option("icoeff", 1.0, "Integral term of the step size controller.", 0.0, 5.0),
                Option("dcoeff", 0.0, "Derivative term of the step size controller.", 0.0, 5.0),
            ),
            curated=False,
        ),
        SamplerSpec(
            id="consistency",
            label="Consistency (LCM, TCD)",
            paper="Song et al. 2023, arXiv 2303.01469; Luo et al. 2023, arXiv 2310.04378; Zheng et al. 2024, "
            "arXiv 2402.19159",
            help="For distilled models (LCM, TCD, Hyper-SD) at 2 to 8 steps and guidance 1 to 2.",
            solver=ancestral.consistency,
            order=1,
            stochastic=True,
            options=(
                Option("gamma", 1.0, "Fresh noise: 1 is LCM, 0 deterministic; TCD recommends 0.3.", 0.0, 1.0),
                Option(
                    "gamma_of",
                    "time",
                    "What gamma is a share of. time: that of Stable Diffusion, as in TCD; sigma: the noise level. For "
                    "flow models both are the same.",
                    choices=("time", "sigma"),
                ),
            ),
        ),
        SamplerSpec(
            id="amed",
            label="AMED-Solver",
            paper=_AMED,
            help="Pairs of evaluations; the second one's direction leads all the way. With trained numbers for 4 to 6.",
            solver=amed.amed,
            order=2,
            options=_AMED_OPTIONS,
            curated=False,
        ),
        SamplerSpec(
            id="amed_dpm_2s",
            label="AMED-Plugin, DPM-Solver-2",
            paper=_AMED,
            help="DPM-Solver-2 on pairs of levels, for trained numbers.",
            solver=amed.amed_dpm_2s,
            order=2,
            options=_AMED_OPTIONS,
            curated=False,
        ),
        SamplerSpec(
            id="amed_dpm_2m",
            label="AMED-Plugin, DPM-Solver 2M",
            paper=_AMED,
            help="In 10 steps from full noise on SD1.5 it follows the authors' trained plan, whatever the schedule; "
            "else DPM-Solver 2M with every second level halfway between its neighbours.",
            solver=amed.amed_dpm_2m,
            order=2,
            options=_AMED_OPTIONS,
        ),
    ],
)
"""Every sampler, by id. The ids and option names are saved in workflows: they stay."""

SCHEDULES: Mapping[str, ScheduleSpec] = Registry(
    "schedule",
    [
        ScheduleSpec(
            id="karras",
            label="Karras",
            paper="Karras et al. 2022, arXiv 2206.00364",
            help="Many steps at low noise. The usual choice from 10 steps on, and with discard_penultimate from 4.",
            levels=schedules.karras,
            options=(
                Option("rho", 7.0, "Warp: larger puts more steps at low noise; 1 is uniform in sigma.", 1.0, 100.0),
            ),
        ),
        ScheduleSpec(
            id="exponential",
            label="Exponential (uniform log-SNR)",
            paper="Lu et al. 2022, arXiv 2206.00927",
            help="Equal steps in log-SNR, the solvers' own time.",
            levels=schedules.exponential,
        ),
        ScheduleSpec(
            id="time_uniform",
            label="Time uniform (VP)",
            paper="Song et al. 2021, arXiv 2011.13456",
            help="Equal steps in diffusion time: few at low noise. For flow models in sigma, shifted as the model is.",
            levels=schedules.time_uniform,
            in_time=True,
        ),
        ScheduleSpec(
            id="time_quadratic",
            label="Time quadratic (VP)",
            paper="Song et al. 2020, arXiv 2010.02502",
            help="Between uniform time and log-SNR. With discard_penultimate good at 4 to 8 steps.",
            levels=schedules.time_quadratic,
            in_time=True,
        ),
        ScheduleSpec(
            id="polyexponential",
            label="Polyexponential",
            paper="Crowson 2022, k-diffusion",
            help="Between exponential (rho 1) and more steps at low noise (rho above 1) or high noise (below 1).",
            levels=schedules.polyexponential,
            options=(Option("rho", 1.0, "Power of the step in log-SNR; 1 is exponential.", 0.1, 10.0),),
        ),
        ScheduleSpec(
            id="vp",
            label="VP (given betas)",
            paper="Song et al. 2021, arXiv 2011.13456",
            help="Equal steps in the time of a VP process with betas of your choice. time_uniform finds the model's.",
            levels=schedules.vp,
            options=(
                Option("beta_d", 19.9, "Growth of beta over time.", 0.1, 100.0),
                Option("beta_min", 0.1, "beta at time 0.", 0.0, 20.0),
            ),
            curated=False,
        ),
        ScheduleSpec(
            id="cosine",
            label="Cosine",
            paper="Nichol and Dhariwal 2021, arXiv 2102.09672",
            help="Equal steps of the angle between signal and noise: few at both ends. KL-optimal in other programs.",
            levels=schedules.cosine,
        ),
        ScheduleSpec(
            id="edm",
            label="EDM polynomial",
            paper="Karras et al. 2022, arXiv 2206.00364",
            help="karras with any rho, also below 1.",
            levels=schedules.edm,
            options=(Option("rho", 7.0, "Warp: 1 is uniform in sigma, below 1 is denser at high noise.", 0.1, 100.0),),
            curated=False,
        ),
        ScheduleSpec(
            id="laplace",
            label="Laplace",
            paper="Hang et al. 2024, arXiv 2407.03297",
            help="Most steps where signal and noise are equally strong. For 15 steps and more.",
            levels=schedules.laplace,
            options=(
                Option("median", 1.0, "Where the steps gather, exp(mu); 1 is as much noise as signal.", 0.01, 100.0),
                Option("scale", 0.5, "Width in log sigma, the paper's b: smaller gathers them more.", 0.01, 10.0),
            ),
        ),
        ScheduleSpec(
            id="beta",
            label="Beta",
            paper="Lee et al. 2024, arXiv 2407.12173",
            help="Many steps at both ends, in diffusion time. Often used with flow models.",
            levels=schedules.beta,
            options=(
                Option("alpha", 0.6, "Below 1: more steps at low noise.", 0.1, 10.0),
                Option("beta", 0.6, "Below 1: more steps at high noise.", 0.1, 10.0),
            ),
            in_time=True,
        ),
        ScheduleSpec(
            id="lu_lambda",
            label="Uniform lambda",
            paper="Lu et al. 2022, arXiv 2206.00927",
            help="The same numbers as exponential; use_lu_lambdas of diffusers.",
            levels=schedules.exponential,
            curated=False,
        ),
        ScheduleSpec(
            id="linear_quadratic",
            label="Linear-quadratic",
            paper="Polyak et al. 2024, arXiv 2410.13720",
            help="Half of the steps at nearly full noise, then ever larger ones. For video flow models (Mochi).",
            levels=schedules.linear_quadratic,
            options=(
                Option("threshold_noise", 0.025, "How far down the linear steps lead, of 1.", 0.001, 0.9, step=1e-3),
                Option("linear_steps", 0, "Number of linear steps; 0 is half of all.", 0, 10000),
            ),
            ends_at_sigma_min=False,
        ),
        ScheduleSpec(
            id="ays",
            label="Align Your Steps",
            paper="Sabour et al. 2024, arXiv 2404.14507",
            help="Optimised for one model and 10 steps; interpolated for others.",
            levels=schedules.ays,
            options=(
                Option(
                    "table",
                    "sd15",
                    "The model it was optimised for; another range of levels stretches it.",
                    choices=tuple(schedules.AYS_TABLES),
                ),
            ),
            ends_at_sigma_min=False,
        ),
        ScheduleSpec(
            id="gits",
            label="GITS",
            paper="Chen et al. 2024, arXiv 2405.11326",
            help="Published levels for each number of steps from 2 to 20, from the curvature of trajectories.",
            levels=schedules.gits,
            options=(
                Option(
                    "coeff",
                    1.2,
                    "Which table: larger puts more steps at low noise. In steps of 0.05.",
                    0.8,
                    1.5,
                    step=0.05,
                ),
            ),
            ends_at_sigma_min=False,
        ),
    ],
)
"""Every schedule, by id."""
