"""What it costs to leave out unconditional passes, with plans that are calibrated to it.

    .host/venv/bin/python bench/passes.py --evaluations 6 --leave-out 2 3 4 5

Guidance takes two passes of the network an evaluation, D = U + w (C - U). At the evaluations that are named the
unconditional one is left out and the difference C - U is that of the last evaluation that had both, as in affine reuse
(Castillo et al. 2023, arXiv 2312.12487). Levels, slopes, the guidance of each evaluation and the sigmas passed to the
model are fitted with the passes left out, and the error on the images of bench/quality.py is printed beside their
number.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

# The benchmark finds the host for the imports after it.
# isort: off
import torch  # noqa: E402
from bench import cells  # noqa: E402
from bench.settings import LIMITS, Size  # noqa: E402
from bench.subjects import Demo  # noqa: E402
from torch import Tensor  # noqa: E402

import comfy.samplers  # noqa: E402
from samplers.calibrated.fit import calibrate, plain_recipes  # noqa: E402
from samplers.calibrated.objective import Goal, rmse  # noqa: E402
from samplers.calibrated.recipe import Recipe  # noqa: E402
# isort: on

DEMO = Demo()
REFERENCE = LIMITS[False].reference


class Both:
    """A model whose evaluations give the conditional and the unconditional prediction, or the first alone."""

    def __init__(self, guider: Any, model: Any, extra_args: dict[str, Any]):
        self._guider, self._model, self._seen = guider, model, {}
        options = dict(extra_args["model_options"])
        options["sampler_post_cfg_function"] = [*options.get("sampler_post_cfg_function", ()), self._see]
        self._extra_args = extra_args | {"model_options": options}

    def _see(self, given: dict[str, Any]) -> Tensor:
        self._seen = given
        return given["denoised"]

    def __call__(self, x: Tensor, sigma: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The guided prediction, and C - U, which is not known at scale 1: the host leaves U out there."""
        self._guider.cfg = scale
        denoised = self._model(x, sigma, **self._extra_args)
        return denoised, self._seen["cond_denoised"] - (denoised if scale == 1 else self._seen["uncond_denoised"])


def final_samples(recipe: Recipe, pairs: Sequence[cells.Pair], left_out: frozenset[int]) -> Tensor:
    """Latents of a recipe that leaves out the unconditional pass at these evaluations."""
    guider = comfy.samplers.CFGGuider(DEMO.patcher)
    unguided = replace(recipe, tunings=tuple(t._replace(guidance=1.0) for t in recipe.tunings))

    def sample(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Tensor:
        both, last = Both(guider, model, extra_args), list[Tensor]()
        scales = enumerate(DEMO.guidance * tuning.guidance for tuning in recipe.tunings)

        def evaluate(x: Tensor, sigma: Tensor) -> Tensor:
            k, scale = next(scales)
            if k in left_out and last:
                return both(x, sigma, 1.0)[0] + (scale - 1) * last[-1]
            denoised, difference = both(x, sigma, scale)
            last.append(difference)
            return denoised

        return unguided.function(evaluate, x, disable=True)

    return cells.run(DEMO, guider, comfy.samplers.KSAMPLER(sample), recipe.sigmas, pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=6)
    parser.add_argument("--leave-out", type=int, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=2)
    o = parser.parse_args()
    torch.set_num_threads(1)
    left_out = frozenset(o.leave_out)
    if not left_out <= {*range(1, o.evaluations)}:
        parser.error(f"--leave-out: 1 to {o.evaluations - 1} can be named; the first evaluation, 0, has both passes")
    prompts = DEMO.prompts[:8]

    def goal(pairs: Sequence[cells.Pair]) -> Goal:
        levels = cells.make_levels(DEMO, *REFERENCE, 100)
        exact, _ = cells.sample(DEMO, REFERENCE[0], levels, tuple(pairs))
        return Goal(lambda recipe: final_samples(recipe, pairs, left_out), exact)

    training, validation = (goal([cells.Pair(prompts[k % 8], seed + k) for k in range(16)]) for seed in (1000, 2000))
    report = goal(Size().reported_on(DEMO))
    few = [cells.Pair(prompts[k], 1000 + k) for k in range(4)]
    screening = Goal(lambda recipe: final_samples(recipe, few, left_out), training.target[:4])
    sampling = DEMO.patcher.get_model_object("model_sampling")
    starts = plain_recipes(("ipndm_v",), o.evaluations, float(sampling.sigma_min), float(sampling.sigma_max))
    for progress in calibrate(starts, screening, training, validation, rounds=o.rounds):
        last = progress
    error = float(rmse(report.residuals(last.best)).median())
    passes = 2 * o.evaluations - len(left_out)
    print(f"{o.evaluations} evaluations, {passes} passes: {last.before:.4f} -> {last.after:.4f}; reported: {error:.4f}")


if __name__ == "__main__":
    main()
