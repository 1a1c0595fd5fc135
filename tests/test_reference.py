"""Agreement with public reference implementations, to rounding."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from mixture import NOISE, X1, denoiser, relative_error

from samplers import DENOISED, SAMPLERS, Noise, Stage, X, integrate

CASES = json.loads(Path(__file__).with_name("reference_outputs.json").read_text())["cases"]


def ours(name: str, options: dict) -> tuple[str, dict] | None:
    """Our sampler, and its options, for a reference case; None for a sampler that we do not have."""
    if name == "kd/euler/zero":
        return "ddim", {}
    if name == "kd/dpmpp_2m/zero":
        return "dpmpp_2m", {}
    if name in ("kd/dpmpp_2s_ancestral/zero/eta=0.0", "kd/dpmpp_sde/zero/eta=0.0"):
        return "dpmpp_2s", {}
    if name.startswith("ds/dpmpp_"):
        if options["max_order"] == 1:
            return "ddim", {}
        return f"dpmpp_{options['max_order']}m", {"lower_order_final": options["lower_order_final"]}
    if name.startswith("lu/dpmsolver++/"):
        method, order = options["method"], options["order"]
        if order == 1:
            return "ddim", {}
        if method == "multistep":
            return f"dpmpp_{order}m", {}
        return f"dpmpp_{order}s", {"lower_order_final": method == "singlestep"}
    return None


MATCHED = {name: match for name, case in CASES.items() if (match := ours(name, case["options"]))}


def result(case: dict) -> torch.Tensor:
    return torch.tensor(case["out"], dtype=torch.float64).reshape(X1.shape)


def test_no_case_is_lost():
    assert len(MATCHED) == 16


@pytest.mark.parametrize("name", MATCHED)
def test_sampler_gives_the_reference_result(name):
    sampler, options = MATCHED[name]
    sigmas = torch.tensor(CASES[name]["sigmas"], dtype=torch.float64)
    x = SAMPLERS[sampler].function(denoiser, X1 * sigmas[0], sigmas, disable=True, **options)
    assert relative_error(x, result(CASES[name])) < 1e-9


def test_noise_stages_give_the_reference_result():
    """Euler ancestral, written as a plan by hand: a step down to below the next level, then noise up to it."""
    case = CASES["kd/euler_ancestral/zero/eta=1.0"]
    sigmas = case["sigmas"]
    plan = []
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        up = t * math.sqrt(1 - (t / s) ** 2)
        down = math.sqrt(t**2 - up**2)
        noise = Noise(up, s, t) if t else None
        plan.append(Stage(i, s, (down / s) * X + (1 - down / s) * DENOISED, noise=noise))

    drawn = []

    def noise_sampler(sigma, sigma_next):
        drawn.append((sigma, sigma_next))
        return NOISE

    x = integrate(denoiser, X1 * sigmas[0], plan, disable=True, noise_sampler=noise_sampler)
    assert relative_error(x, result(case)) < 1e-9
    assert drawn == list(itertools.pairwise(sigmas[:-1]))
