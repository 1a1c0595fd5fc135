"""What schedules of guidance save and what they cost, on the demo model: writes docs/GUIDANCE.md.

    .host/venv/bin/python bench/guidance.py --evaluations 8

For each schedule: passes of the network, counted; the error of the final latent to the same schedule with many steps,
and to constant guidance with many steps (median over images, as in bench/quality.py); the Fréchet distance of samples,
one for each training image and its words, to the training images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

# The benchmark finds the host for the imports after it.
# isort: off
import torch  # noqa: E402
from bench import cells, distances  # noqa: E402
from bench.distributions import AXES, load_data  # noqa: E402
from bench.settings import LIMITS, Size  # noqa: E402
from bench.subjects import Demo, pack  # noqa: E402
from torch import Tensor  # noqa: E402

import comfy.samplers  # noqa: E402
# isort: on

MANY_STEPS = 60
SAMPLER = cells.Entry("ours", "ipndm_v")
SCHEDULE = cells.Schedule("ours", "karras", discard=True)
DEMO = Demo()
W = DEMO.guidance
REFERENCE = LIMITS[False].reference

ROWS: dict[str, dict[str, Any]] = {
    "constant": {"cfg": W},
    "none": {"cfg": 1.0},
    "interval": {"shape": "interval", "cfg": W},
    "interval to 0.28": {"shape": "interval", "cfg": W, "sigma_start": 1000.0, "sigma_end": 0.28},
    "interval from 5.42": {"shape": "interval", "cfg": W, "sigma_end": 1e-6},
    "linear": {"shape": "linear", "cfg": 2 * W - 1, "cfg_end": 1.0},
    "linear, rising": {"shape": "linear", "cfg": 1.0, "cfg_end": 2 * W - 1},
    "agreement 0.99": {"cfg": W, "agreement": 0.99},
    "agreement 0.999": {"cfg": W, "agreement": 0.999},
    "rescale 0.7": {"cfg": W, "rescale": 0.7},
    "CFG++ 0.6": {"cfg": 0.6, "cfg_pp": True},
}
"""Fields of `Guidance`, by the name in the table."""


class Passes(NamedTuple):
    latents: Tensor
    count: float
    """Of the network, for each image."""


def sample(
    fields: dict[str, Any], sampler: cells.Entry, sigmas: Sequence[float], pairs: Sequence[cells.Pair]
) -> Passes:
    """Final latents under a schedule of guidance."""
    passes = []

    def counted(apply: Any, given: dict[str, Any]) -> Tensor:
        passes.append(len(given["input"]))
        return apply(given["input"], given["timestep"], **given["c"])

    patched = pack().nodes.guidance.guide(DEMO.patcher, pack().samplers.guidance.Guidance(**fields))
    patched.set_model_unet_function_wrapper(counted)
    function = comfy.samplers.KSAMPLER(cells.SAMPLERS[sampler.name].function, dict(sampler.options))
    latents = cells.run(DEMO, comfy.samplers.CFGGuider(patched), function, sigmas, pairs)
    return Passes(latents, sum(passes) / len(pairs))


def in_batches(fields: dict[str, Any], sigmas: Sequence[float], pairs: Sequence[cells.Pair]) -> Tensor:
    batches = cells.chunks(DEMO, pairs, 16)
    return torch.cat([sample(fields, SAMPLER, sigmas, batch).latents for batch in batches])


class Table:
    """The rows of docs/GUIDANCE.md, as they are measured.

    Raises:
        RuntimeError: if the training images cannot be had.
    """

    def __init__(self, evaluations: int, images: int):
        data = load_data()
        if data is None:
            raise RuntimeError("docs/GUIDANCE.md needs the training images, for its Fréchet distances")
        latents, words = data
        self.evaluations = evaluations
        self.pairs = Size().reported_on(DEMO)
        self._few = cells.make_levels(DEMO, SAMPLER, SCHEDULE, evaluations)
        self._many = cells.make_levels(DEMO, *REFERENCE, MANY_STEPS)
        self._plain = self._limit(ROWS["constant"])
        self._shown = [cells.Pair(prompt, 5 * 10**6 + k) for k, prompt in enumerate(words[:images])]
        self._axes = distances.principal_axes(latents.flatten(1), AXES)
        self._data = latents.flatten(1) @ self._axes

    def _limit(self, fields: dict[str, Any]) -> Tensor:
        return sample(fields, REFERENCE[0], self._many, self.pairs).latents

    def row(self, name: str) -> str:
        fields = ROWS[name]
        found, count = sample(fields, SAMPLER, self._few, self.pairs)
        exact = None if fields.get("cfg_pp") else self._limit(fields)
        own, plain = (f"{_error(found, to):.4f}" if to is not None else "none" for to in (exact, self._plain))
        samples = in_batches(fields, self._few, self._shown).flatten(1) @ self._axes
        distance = distances.frechet(samples, self._data)
        return f"| {name} | {count:.3g} of {2 * self.evaluations} | {own} | {plain} | {distance:.3f} |"


def _error(latents: Tensor, exact: Tensor) -> float:
    return float(cells.root_mean_square(latents - exact).median())


INTRODUCTION = """# Guidance along a run

How much time a changing guidance scale saves, and how it changes the images. The
[help page](../web/docs/FewStepGuidance.md) of *Few-Step Guidance* says when to use which schedule.

Measured by `bench/guidance.py --evaluations {evaluations}` with the demo model, {sampler} on {schedule} and
{evaluations} evaluations, at guidance {w:g}. The scale of a ramp has this value as its mean over time.

* *passes*: how often the network runs for one image.
* *error, own limit*: the error of the final latent as in [QUALITY.md](QUALITY.md), median over {pairs} images, against
  the same guidance in {many} steps. It is the error of the sampler. CFG++ has no such limit, because it guides more
  with more steps.
* *error, constant guidance*: the same against constant guidance in {many} steps. It says how much the image has
  changed.
* *Fréchet distance* of {images} samples to the training images, on {axes} axes. Lower is closer to the data, much of
  which this small model has memorised.

| schedule | passes | error, own limit | error, constant guidance | Fréchet distance |
| --- | --- | --- | --- | --- |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=8)
    parser.add_argument("--images", type=int, default=459, help="samples for the Fréchet distance")
    parser.add_argument(
        "--only", nargs="+", choices=ROWS, default=list(ROWS), help="print these rows and write nothing"
    )
    o = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(o.evaluations, o.images)
    rows = []
    for name in o.only:
        rows.append(table.row(name))
        print(rows[-1], flush=True)
    if o.only == list(ROWS):
        text = INTRODUCTION.format(
            evaluations=o.evaluations, sampler=SAMPLER, schedule=SCHEDULE, w=W, pairs=len(table.pairs), many=MANY_STEPS,
            images=o.images, axes=AXES,
        )  # fmt: skip
        (ROOT / "docs" / "GUIDANCE.md").write_text("\n".join([text.rstrip(), *rows, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
