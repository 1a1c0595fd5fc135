"""Agreement with public reference implementations, to rounding."""

import json
from pathlib import Path

import pytest
import torch
from mixture import NOISE, X1, denoiser, relative_error

from samplers import SAMPLERS

CASES = json.loads(Path(__file__).parents[1].joinpath("reference_outputs.json").read_text())["cases"]


def ours(name: str, options: dict) -> tuple[str, dict] | None:
    """Our sampler, and its options, for a reference case; None for a sampler that we do not have."""
    code, method = name.split("/")[:2]
    if code == "kd" and method == "dpm_2":
        return "dpm_2s", {}
    if code == "kd":
        return method, {key: value for key, value in options.items() if key != "n"}
    if code == "ds" and method.startswith("dpm_2s"):
        return "dpm_2s", options
    if code == "ds" and method.startswith(("dpm_", "dpmpp_")):
        if options["max_order"] == 1:
            return "ddim", {}
        family = method.split("_")[0]
        return f"{family}_{options['max_order']}m", {"lower_order_final": options["lower_order_final"]}
    if code == "ds" and method.startswith("ipndm"):
        return method.rstrip("234"), {"order": options["max_order"]}
    if code == "ds" and method.startswith("unipc"):
        return "unipc", {
            "order": options["max_order"],
            "solver_type": options["variant"],
            "prediction": "data" if options["predict_x0"] else "noise",
            "lower_order_final": options["lower_order_final"],
        }
    if code == "lu":
        method, order = options["method"], options["order"]
        family = {"dpmsolver": "dpm", "dpmsolver++": "dpmpp"}[options["algorithm"]]
        if order == 1:
            return "ddim", {}
        if method == "multistep":
            return f"{family}_{order}m", {}
        return f"{family}_{order}s", {"lower_order_final": method == "singlestep"}
    return None


MATCHED = {name: match for name, case in CASES.items() if (match := ours(name, case["options"]))}


def own_levels(case: dict) -> list[float]:
    """The ends, and as many levels as there are evaluations, for samplers that choose the levels between."""
    n = case["options"].get("n", 1)
    return [case["sigma_max"] * (case["sigma_min"] / case["sigma_max"]) ** (i / n) for i in range(n)] + [
        case["sigma_min"]
    ]


def result(case: dict) -> torch.Tensor:
    return torch.tensor(case["out"], dtype=torch.float64).reshape(X1.shape)


def test_no_case_is_lost():
    assert len(MATCHED) == 60
    assert all(name.startswith("amed/") for name in CASES.keys() - MATCHED.keys())


def thresholded(x: torch.Tensor) -> torch.Tensor:
    """Dynamic thresholding as in diff-sampler: scaled to the 99.5th percentile of its size, where that exceeds 1."""
    size = x.abs().flatten(1).quantile(0.995, dim=1).clamp(min=1)[:, None, None, None]
    return x.clamp(-size, size) / size


@pytest.mark.parametrize("name", MATCHED)
def test_sampler_gives_the_reference_result(name):
    """The cases of UniPC in the data prediction were made with thresholding left on, from the second evaluation on."""
    sampler, options = MATCHED[name]
    case, info = CASES[name], {}
    sigmas = torch.tensor(case.get("sigmas") or own_levels(case), dtype=torch.float64)

    def model(x, sigma):
        denoised = denoiser(x, sigma)
        left_on = options.get("prediction") == "data" and sigma[0] < sigmas[0]
        return thresholded(denoised) if left_on else denoised

    x = SAMPLERS[sampler].function(
        model, X1 * sigmas[0], sigmas, disable=True, noise_sampler=lambda sigma, sigma_next: NOISE, info=info, **options
    )
    assert relative_error(x, result(case)) < 1e-9
    if "info" in case:
        assert info == {key: case["info"][key] for key in ("nfe", "n_accept", "n_reject")}
