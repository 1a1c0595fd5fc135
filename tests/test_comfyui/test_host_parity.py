"""Beside the reference outputs: the real host's own samplers, run here in float64, for every sampler that both have.

Noise is a function of the interval that it is drawn for, so that the intervals must agree too. Where the host is known
to be wrong or takes another formula, the case says so and is compared where they agree.
"""

from __future__ import annotations

import functools
import inspect
import math
from types import SimpleNamespace

import pytest
import torch
from host import GIVEN
from k_diffusion_package import INSTALLED, k_diffusion
from mixture import NOISE, ONE_PREDICTION, X1, denoiser, flow_denoiser, relative_error

from samplers import SAMPLERS, Guided

EDM = [14.6146, 8.0, 4.1, 2.2, 1.1, 0.55, 0.2, 0.0292]
FLOW = [0.97, 0.9, 0.78, 0.6, 0.41, 0.2, 0.05]
TO_ZERO = [*EDM, 0.0]
FLOW_TO_ZERO = [*FLOW, 0.0]

# id of the case: our sampler, its options, the host's function, its options
BOTH_SPACES = {
    "euler": ("euler", {}, "euler", {}),
    "ddim": ("ddim", {}, "euler", {}),
    "heun": ("heun", {}, "heun", {}),
    "edm": ("edm", {}, "heun", {}),
    "ipndm": ("ipndm", {}, "ipndm", {}),
    "ipndm 2": ("ipndm", {"order": 2}, "ipndm", {"max_order": 2}),
    "ipndm_v": ("ipndm_v", {}, "lms", {}),
    "ipndm_v 2": ("ipndm_v", {"order": 2}, "ipndm_v", {"max_order": 2}),  # the host is wrong for 3 and 4
    "dpmpp_2s": ("dpmpp_2s", {"r": 0.4}, "seeds_2", {"eta": 0.0, "r": 0.4}),
    "dpmpp_3s": ("dpmpp_3s", {}, "seeds_3", {"eta": 0.0}),
    "dpmpp_2m": ("dpmpp_2m", {"lower_order_final": False}, "dpmpp_2m_sde", {"eta": 0.0}),
    "dpmpp_2m heun": (
        "dpmpp_2m", {"lower_order_final": False, "solver_type": "heun"}, "dpmpp_2m_sde_heun", {"eta": 0.0},
    ),
    "dpmpp_sde": ("dpmpp_sde", {"eta": 0.7, "r": 0.4}, "dpmpp_sde", {"eta": 0.7, "r": 0.4}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {"eta": 0.7}, "dpmpp_2m_sde", {"eta": 0.7}),
    "dpmpp_2m_sde heun": ("dpmpp_2m_sde", {"solver_type": "heun"}, "dpmpp_2m_sde_heun", {}),
    "dpmpp_3m_sde": ("dpmpp_3m_sde", {"eta": 0.7, "s_noise": 0.9}, "dpmpp_3m_sde", {"eta": 0.7, "s_noise": 0.9}),
    "lcm": ("consistency", {}, "lcm", {}),
    "lms": ("lms", {}, "lms", {}),
    "lms 2": ("lms", {"order": 2}, "lms", {"order": 2}),
    "gradient_estimation": ("gradient_estimation", {}, "gradient_estimation", {}),
    "gradient_estimation 1.4": ("gradient_estimation", {"ge_gamma": 1.4}, "gradient_estimation", {"ge_gamma": 1.4}),
    "heunpp2": ("heunpp2", {}, "heunpp2", {}),
    "seeds_2": ("seeds_2", {"eta": 0.7, "r": 0.4, "s_noise": 0.9}, "seeds_2", {"eta": 0.7, "r": 0.4, "s_noise": 0.9}),
    "seeds_3": ("seeds_3", {"eta": 0.7}, "seeds_3", {"eta": 0.7}),
    # Newer hosts have these by name, with phi_2 for our heun.
    "er_sde 1": ("er_sde", {"order": 1, "s_noise": 0.9}, "er_sde", {"max_stage": 1, "s_noise": 0.9}),
    "exp_heun_2_x0": ("exp_heun_2_x0", {"solver_type": "midpoint"}, "seeds_2", {"eta": 0.0, "r": 1.0}),
    "exp_heun_2_x0_sde": (
        "exp_heun_2_x0_sde", {"eta": 0.7, "solver_type": "midpoint"}, "seeds_2", {"eta": 0.7, "r": 1.0},
    ),
}  # fmt: skip
EDM_CASES = BOTH_SPACES | {
    "edm with churn": (
        "edm",
        {"s_churn": 2.0, "s_tmin": 0.5, "s_tmax": 9.0},
        "heun",
        {"s_churn": 2.0, "s_tmin": 0.5, "s_tmax": 9.0},
    ),
    "dpm_2s": ("dpm_2s", {}, "dpm_2", {}),
    "dpmpp_2m": ("dpmpp_2m", {"lower_order_final": False}, "dpmpp_2m", {}),
    "euler_ancestral": (
        "euler_ancestral",
        {"eta": 0.7, "s_noise": 1.1},
        "euler_ancestral",
        {"eta": 0.7, "s_noise": 1.1},
    ),
    "ddim eta": ("ddim", {"eta": 0.7}, "euler_ancestral", {"eta": 0.7}),
    "ddpm": ("ddpm", {}, "ddpm", {}),
    "dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", {"eta": 0.7}, "dpmpp_2s_ancestral", {"eta": 0.7}),
    "dpm_2_ancestral": ("dpm_2_ancestral", {"eta": 0.7}, "dpm_2_ancestral", {"eta": 0.7}),
    "res_multistep": ("res_multistep", {}, "res_multistep", {}),
    "res_multistep_ancestral": (
        "res_multistep_ancestral",
        {"eta": 0.7, "s_noise": 0.9},
        "res_multistep_ancestral",
        {"eta": 0.7, "s_noise": 0.9},
    ),
}
MORE_STEPS = {  # samplers whose last step the host treats apart: compared on levels that end above 0
    "unipc bh1": ("unipc", {"solver_type": "bh1"}, "unipc", {}),
    "unipc bh2": ("unipc", {}, "unipc_bh2", {}),
}
FLOW_CASES = BOTH_SPACES | {
    "deis as lms": ("deis", {}, "lms", {"order": 3}),
    "euler_ancestral": (
        "euler_ancestral",
        {"eta": 0.7, "s_noise": 1.1, "ancestral_step": "linear"},
        "euler_ancestral",
        {"eta": 0.7, "s_noise": 1.1},
    ),
    "dpmpp_2s_ancestral": (
        "dpmpp_2s_ancestral", {"eta": 0.7, "ancestral_step": "linear"}, "dpmpp_2s_ancestral", {"eta": 0.7},
    ),
    "dpm_2_ancestral": (
        "dpm_2_ancestral", {"eta": 0.7, "ancestral_step": "linear"}, "dpm_2_ancestral", {"eta": 0.7},
    ),
}  # fmt: skip


class Model:
    """The analytic denoiser with what the host's samplers look up on a model."""

    def __init__(self, flow: bool, denoise=None, shift=1.0):
        import comfy.model_sampling as ms

        class Sampling(
            ms.ModelSamplingDiscreteFlow if flow else ms.ModelSamplingDiscrete, ms.CONST if flow else ms.EPS
        ):
            pass

        sampling = Sampling()
        if flow:
            sampling.set_parameters(shift=shift)
        self.denoise = denoise or (flow_denoiser if flow else denoiser)
        self.inner_model = SimpleNamespace(
            model_patcher=SimpleNamespace(get_model_object=lambda name: sampling),
            inner_model=SimpleNamespace(model_sampling=sampling),
        )

    def __call__(self, x, sigma, **extra_args):
        return self.denoise(x, sigma)


def noise_sampler(sigma, sigma_next):
    return NOISE * math.cos(3 * float(sigma) + 2 * float(sigma_next))


@pytest.fixture
def hosts(comfy_process, monkeypatch):
    """The host's sampler by name, made to take its noise from `noise_sampler`, all its numbers in float64."""
    from comfy.extra_samplers import uni_pc
    from comfy.k_diffusion import sampling

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)

    def function(name, package):
        if package:
            return getattr(k_diffusion("sampling"), f"sample_{name}")
        if name.startswith("unipc"):
            return getattr(uni_pc, f"sample_{name}")
        return getattr(sampling, f"sample_{name}")

    def run(name, flow, sigmas, options, denoise=None, package=False, shift=1.0, **more):
        chosen = function(name, package)
        arguments = chosen.__wrapped__.__code__ if hasattr(chosen, "__wrapped__") else chosen.__code__
        if "noise_sampler" in arguments.co_varnames[: arguments.co_argcount]:
            more["noise_sampler"] = noise_sampler
        # Its heun draws churn noise with torch itself.
        monkeypatch.setattr(torch, "randn_like", lambda x: NOISE)
        x = X1 * sigmas[0]
        sigmas = torch.tensor(sigmas, dtype=torch.float64)
        return chosen(Model(flow, denoise, shift), x, sigmas, disable=True, extra_args={}, **options, **more)

    yield run
    torch.set_default_dtype(before)


def ours(name, flow, sigmas, options, x=None, **space):
    def churn(sigma, sigma_next):
        return NOISE if name == "edm" else noise_sampler(sigma, sigma_next)

    x = X1 * sigmas[0] if x is None else x
    return SAMPLERS[name].function(
        Model(flow), x, sigmas, disable=True, flow=flow, noise_sampler=churn, **space, **options
    )


def compare(hosts, case, sigmas, flow, tolerance=1e-6):
    name, options, host_name, host_options = case
    theirs = hosts(host_name, flow, sigmas, host_options)
    assert relative_error(ours(name, flow, sigmas, options), theirs) < tolerance


@pytest.mark.parametrize("sigmas", [EDM, TO_ZERO], ids=["above 0", "to 0"])
@pytest.mark.parametrize("case", EDM_CASES.values(), ids=EDM_CASES)
def test_parity_in_edm_space(hosts, case, sigmas):
    compare(hosts, case, sigmas, flow=False)


@pytest.mark.parametrize("case", MORE_STEPS.values(), ids=MORE_STEPS)
def test_parity_above_zero(hosts, case):
    compare(hosts, case, EDM, flow=False)


@pytest.mark.parametrize("sigmas", [FLOW, FLOW_TO_ZERO], ids=["above 0", "to 0"])
@pytest.mark.parametrize("case", FLOW_CASES.values(), ids=FLOW_CASES)
def test_parity_in_flow_space(hosts, case, sigmas):
    compare(hosts, case, sigmas, flow=True)


@pytest.mark.parametrize("case", FLOW_CASES.values(), ids=FLOW_CASES)
def test_parity_from_pure_noise(hosts, case):
    """Where log-SNR counts the host takes sigma = 0.9999 for 1, and agrees with ours from there.

    (Its 2S ancestral has the middle of the first step there, and agrees with ours from 1 to 3e-6.)
    """
    name, options, host_name, host_options = case
    theirs = hosts(host_name, True, [1.0, *FLOW_TO_ZERO], host_options)
    mine = [ours(name, True, [first, *FLOW_TO_ZERO], options, x=X1) for first in (1.0, 0.9999)]
    assert min(relative_error(x, theirs) for x in mine) < 1e-5
    assert relative_error(mine[0], theirs) < 0.03


@pytest.mark.parametrize(
    "name", ["dpm_2", "dpmpp_2m", "ddpm", "deis", "unipc_bh2", "res_multistep", "res_multistep_ancestral"]
)
def test_samplers_of_the_host_without_a_flow_branch(hosts, name):
    """They take flow levels for those of alpha = 1: there is no parity to ask for."""
    as_flow, as_edm = (hosts(name, flow, FLOW, {}, denoise=flow_denoiser) for flow in (True, False))
    assert torch.equal(as_flow, as_edm)


IN_PACKAGE = [
    pytest.param(case, sigmas, id=f"{name}, to {sigmas[-1]:g}")
    for cases, levels in ((EDM_CASES, (EDM, TO_ZERO)), (MORE_STEPS, (EDM,)))
    for name, case in cases.items()
    if (INSTALLED or not GIVEN) and hasattr(k_diffusion("sampling"), f"sample_{case[2]}")
    for sigmas in levels
    if (case[2], sigmas[-1]) != ("lms", 0)  # there the package goes on to the derivative at 0, which has no value
]


@pytest.mark.parametrize(("case", "sigmas"), IN_PACKAGE)
def test_parity_with_the_package_k_diffusion(hosts, case, sigmas):
    """The package from PyPI, of which the host has a copy that it goes on with."""
    compare(functools.partial(hosts, package=True), case, sigmas, flow=False)


def compare_in_the_limit(mine, theirs, points):
    """Where the host sums for an integral that we take to rounding: its sums are of order 1, and go to ours.

    Twice as many points halve the distance; the extrapolation of two of its results is nearer than either by far.
    """
    few, more = (theirs(count) for count in (points, 2 * points))
    first, second, extrapolated = (relative_error(mine, x) for x in (few, more, 2 * more - few))
    assert first / second == pytest.approx(2, rel=0.02)  # the next term is about 1 / points of the first
    assert extrapolated < 0.02 * second


@pytest.mark.parametrize("order", [2, 3])
def test_deis(hosts, order, monkeypatch):
    """The host sums 10,000 points where we integrate: its weights are off by about 1e-4."""
    from comfy.k_diffusion import deis

    coefficients = deis.get_deis_coeff_list

    def theirs(points):
        monkeypatch.setattr(deis, "get_deis_coeff_list", functools.partial(coefficients, N=points))
        return hosts("deis", False, TO_ZERO, {"max_order": order})

    mine = ours("deis", False, TO_ZERO, {"order": order})
    compare_in_the_limit(mine, theirs, 10_000)


@pytest.mark.parametrize(("sigmas", "flow"), [(TO_ZERO, False), (FLOW, True)], ids=["edm", "flow"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("kind", "eta"), [("er", 1.0), ("er", 0.5), ("sde", 0.5), ("sde", 0.0)])
def test_er_sde(hosts, order, kind, eta, sigmas, flow, monkeypatch):
    """The host sums 200 points for an integral that we take to rounding."""
    from comfy.k_diffusion import sampling

    function = sampling.sample_er_sde.__wrapped__
    code = function.__code__
    assert code.co_consts.count(200.0) == 1

    def scaler(v):
        return v * (v if kind == "sde" else (v**0.3).exp() + 10) ** eta

    def theirs(points):
        constants = tuple(float(points) if constant == 200.0 else constant for constant in code.co_consts)
        monkeypatch.setattr(function, "__code__", code.replace(co_consts=constants))
        return hosts("er_sde", flow, sigmas, options)

    options = {"max_stage": order, "noise_scaler": scaler, "s_noise": 1.0 if eta else 0.0}
    mine = ours("er_sde", flow, sigmas, {"order": order, "noise_scaler": kind, "eta": eta})
    compare_in_the_limit(mine, theirs, 200)


@pytest.mark.parametrize("options", [{}, {"predictor_order": 2, "corrector_order": 3}, {"corrector_order": 0}], ids=str)
@pytest.mark.parametrize("pece", [False, True])
@pytest.mark.parametrize(("sigmas", "flow"), [(TO_ZERO, False), (FLOW_TO_ZERO, True)], ids=["edm", "flow"])
def test_sa_solver(hosts, options, pece, sigmas, flow):
    theirs = hosts("sa_solver", flow, sigmas, {**options, "use_pece": pece, "s_noise": 0.9})
    mine = ours("sa_solver", flow, sigmas, {**options, "pece": pece, "s_noise": 0.9})
    assert relative_error(mine, theirs) < 1e-6


@pytest.mark.parametrize("pece", [False, True])
@pytest.mark.parametrize("shift", [0.5, 3.0, 8.0])
def test_sa_solver_of_a_shifted_model(hosts, shift, pece):
    """The levels between which noise is added are those of the model's time: at shift 8 they are 0.97 and 0.67."""
    theirs = hosts("sa_solver", True, FLOW_TO_ZERO, {"use_pece": pece}, shift=shift)
    unshifted, mine = (
        ours("sa_solver", True, FLOW_TO_ZERO, {"pece": pece}, model_shift=of_model) for of_model in (1.0, shift)
    )
    assert relative_error(mine, theirs) < 1e-6 < relative_error(unshifted, theirs)


@pytest.mark.parametrize(("sigmas", "flow", "lower"), [(EDM, False, 0.02), (FLOW, True, 0.01)], ids=["edm", "flow"])
def test_sa_solver_above_zero(hosts, sigmas, flow, lower):
    """The host of before 2026 returns the sample at the last level but one: it is given one more."""
    from comfy.k_diffusion.sampling import sample_sa_solver

    more = [] if "return x_pred" in inspect.getsource(sample_sa_solver) else [lower]
    theirs = hosts("sa_solver", flow, [*sigmas, *more], {"corrector_order": 0})
    mine = ours("sa_solver", flow, sigmas, {"corrector_order": 0, "lower_order_final": False})
    assert relative_error(mine, theirs) < 1e-6


@pytest.mark.parametrize("pece", [False, True])
def test_sa_solver_from_pure_noise(hosts, pece):
    theirs = hosts("sa_solver", True, [1.0, *FLOW_TO_ZERO], {"use_pece": pece})
    mine = [ours("sa_solver", True, [s, *FLOW_TO_ZERO], {"pece": pece}, x=X1) for s in (0.9999, 1.0)]
    assert relative_error(mine[0], theirs) < 1e-6
    assert relative_error(mine[1], theirs) < 0.03


# CFG++: the model of the host tells of its unconditional prediction beside the guided one


def guided_model(flow):
    """Both predictions, as the host's model hands them on."""
    denoise = flow_denoiser if flow else denoiser

    def model(x, sigma):
        unconditional = denoise(x, sigma)
        return Guided(unconditional + 0.18 * torch.sin(unconditional), unconditional)

    return model


class GuidedModel(Model):
    def __call__(self, x, sigma, model_options, **extra_args):
        assert model_options["disable_cfg1_optimization"]
        denoised, unconditional = self.denoise(x, sigma)
        (tell,) = model_options["sampler_post_cfg_function"]
        return tell({"denoised": denoised, "uncond_denoised": unconditional})


def run_cfg_pp(name, flow, sigmas, model):
    from comfy.k_diffusion import sampling

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        levels = torch.tensor(sigmas, dtype=torch.float64)
        return getattr(sampling, f"sample_{name}")(
            GuidedModel(flow, model), X1 * sigmas[0], levels, extra_args={}, disable=True
        )
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    ("name", "flow", "sigmas"),
    [
        ("euler_cfg_pp", False, EDM),
        ("euler_cfg_pp", False, TO_ZERO),
        ("euler_cfg_pp", True, FLOW),
        ("euler_cfg_pp", True, FLOW_TO_ZERO),
        ("dpmpp_2m_cfg_pp", False, EDM),
        ("dpmpp_2m_cfg_pp", False, TO_ZERO),
    ],
)
def test_cfg_pp(comfy_process, name, flow, sigmas):
    model = guided_model(flow)
    mine = SAMPLERS[name].function(model, X1 * sigmas[0], sigmas, disable=True, flow=flow)
    assert relative_error(mine, run_cfg_pp(name, flow, sigmas, model)) < 1e-6


def test_2m_cfg_pp_of_the_host_has_no_flow_branch(comfy_process):
    """It takes flow levels for those of alpha = 1. What is right is in tests/test_samplers/test_cfg_pp.py."""
    model = guided_model(True)
    theirs = [run_cfg_pp("dpmpp_2m_cfg_pp", flow, FLOW, model) for flow in (True, False)]
    assert torch.equal(*theirs)
    mine = SAMPLERS["dpmpp_2m_cfg_pp"].function(model, X1 * FLOW[0], FLOW, disable=True, flow=True)
    assert relative_error(mine, theirs[0]) > 0.1


@pytest.mark.parametrize("n", [4, 5, 6, 9])
def test_dpm_fast(hosts, n):
    from comfy.k_diffusion import sampling

    sigmas = [14.6146 * (0.0292 / 14.6146) ** (i / n) for i in range(n + 1)]
    theirs = sampling.sample_dpm_fast(
        Model(False), X1 * 14.6146, torch.tensor(0.0292).double(), torch.tensor(14.6146).double(), n, disable=True
    )
    assert relative_error(ours("dpm_fast", False, sigmas, {}), theirs) < 1e-6
    # The host ends at the last level above 0; ours goes on to 0 with the last of its n evaluations.
    assert SAMPLERS["dpm_fast"].nfe([*sigmas[:-1], 0.0]) == n


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive(hosts, order):
    from comfy.k_diffusion import sampling

    ends = [torch.tensor(s, dtype=torch.float64) for s in (0.0292, 14.6146)]
    options = {"order": order, "rtol": 0.02, "pcoeff": 0.1, "dcoeff": 0.05}
    theirs, info = sampling.sample_dpm_adaptive(
        Model(False), X1 * 14.6146, *ends, disable=True, return_info=True, **options
    )
    report = {}
    x = SAMPLERS["dpm_adaptive"].function(
        denoiser, X1 * 14.6146, [14.6146, 0.0292], disable=True, info=report, **options
    )
    assert relative_error(x, theirs) < 1e-6
    assert report == {key: info[key] for key in ("nfe", "n_accept", "n_reject")}


def test_nothing_that_both_have_is_left_out(comfy_process):
    """Every sampler is compared with the host's, but for those that the host does not have."""
    compared = {case[0] for cases in (EDM_CASES, MORE_STEPS, FLOW_CASES) for case in cases.values()}
    compared |= {"deis", "dpm_fast", "dpm_adaptive", "sa_solver", "euler_cfg_pp", "dpmpp_2m_cfg_pp"}
    not_in_host = {"dpmpp_3m", "dpm_3s", "dpm_2m", "dpm_3m", "rk4", "plms"}
    not_in_host |= {"res_2s", "res_3s", "res_5s", "res_6s"}
    not_in_host |= {"restart"}
    not_in_host |= {"amed", "amed_dpm_2s", "amed_dpm_2m"}
    assert compared | not_in_host == set(SAMPLERS) and not compared & not_in_host
    from comfy.k_diffusion import sampling

    assert not [name for name in not_in_host if hasattr(sampling, f"sample_{name}")]


# Where the host is fragile


def test_the_hosts_faults_are_still_there(hosts):
    """What ours is tested to do better: if one of these fails, the host has mended it and the docs may say so."""
    repeated = [9.0, 3.0, 3.0, 1.0, 0.0]
    assert not hosts("dpmpp_2m", False, repeated, {}).isfinite().all()
    from comfy.extra_samplers import uni_pc

    sigmas = torch.tensor([9.0, 3.0, 1.0, 0.0], dtype=torch.float64)
    uni_pc.sample_unipc(Model(False), X1 * 9, sigmas, extra_args={}, disable=True)
    assert sigmas[-1] != 0  # the caller's tensor


def test_one_step_works_in_every_sampler():
    one = torch.full((3,), 9.0, dtype=torch.float64)
    for spec in ONE_PREDICTION:
        x = spec.function(denoiser, X1 * 9, [9.0, 0.0], disable=True, seed=0)
        assert torch.equal(x, denoiser(X1 * 9, one)), spec.id
        short = spec.function(denoiser, X1 * 9, [9.0, 5.0], disable=True, seed=0)
        assert not torch.equal(short, X1 * 9) and short.isfinite().all()
