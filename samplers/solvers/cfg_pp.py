"""CFG++: the image is guided, and the noise that is put back is that of the prediction without the prompt.

    x_t = alpha_t D + sigma_t eps_u,        eps_u = (x_s - alpha_s D_u) / sigma_s

with D the guided prediction and D_u the unconditional one. That is the step of the unconditional ODE, at whose end the
guided prediction takes the place of the unconditional one:

    x_t = (step from s to t for D_u) + alpha_t (D - D_u)

So these solvers take the two predictions of the model apart. A first-order step is also the plain one with guidance of
another scale, which serves any sampler (`Guidance.cfg_pp`).

    H. Chung, J. Kim, G. Y. Park, H. Nam, J. C. Ye: CFG++: Manifold-constrained Classifier Free Guidance for Diffusion
    Models. 2024, arXiv 2406.08070.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..levels import Level, Levels
from ..plan import DENOISED, UNCONDITIONAL, Combination, P, Stage, X
from ..sampler import sampler
from .dpm_solver import multistep_order, taylor_data


def guided(x_t: Combination, t: Level) -> Combination:
    """The end of a step of the unconditional ODE with the guided prediction in the place of the unconditional one."""
    return x_t + t.alpha * (DENOISED - P[0])


@sampler(
    "Euler CFG++",
    paper="Chung et al. 2024, arXiv 2406.08070",
    help="Guides the image and puts back the noise of the prediction without the prompt: colours are less "
    "over-saturated. Set cfg between 0 and 1, for example 0.6. It needs a negative prompt. First order.",
    order=1,
    curated=True,
)
def euler_cfg_pp(levels: Levels) -> Iterator[Stage]:
    """Euler's method, which is DDIM, with CFG++: x_t = alpha_t D + sigma_t (x_s - alpha_s D_u) / sigma_s.

    Chung et al. 2024, arXiv 2406.08070, Algorithm 2.
    """
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        yield Stage(i, s.sigma, guided(taylor_data(X, s, t, P[0]), t), UNCONDITIONAL)


@sampler(
    "DPM-Solver++ 2M CFG++",
    paper="Chung et al. 2024, arXiv 2406.08070",
    help="dpmpp_2m with CFG++: the image is guided, the noise put back is that of the prediction without the prompt. "
    "Set cfg between 0 and 1, for example 0.6. It needs a negative prompt.",
    order=2,
    curated=True,
)
def dpmpp_2m_cfg_pp(levels: Levels) -> Iterator[Stage]:
    """DPM-Solver++(2M) with CFG++, the change of the prediction taken from the last unconditional to the guided one:

        x_t = (sigma_t / sigma_s) x_s + alpha_t (D - e^-h D_u + (1 - e^-h) (h / h_1) (D - D_u1) / 2)

    with D_u1 the unconditional prediction of the step before, h_1 its length. So it is in ComfyUI and in the authors'
    code for Stable Diffusion 1.5; their code for SDXL has D_u - D_u1. The first step has order 1, as that to sigma = 0.
    Without guidance, D = D_u, it is `dpmpp_2m`. Chung et al. 2024, arXiv 2406.08070, and official code.
    """
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        d = P[0]
        if multistep_order(levels, i, 2, lower_order_final=False) == 2:
            d += (DENOISED - P[1]) * ((t.lam - s.lam) / (s.lam - levels[i - 1].lam) / 2)
        yield Stage(i, s.sigma, guided(taylor_data(X, s, t, d), t), UNCONDITIONAL)
