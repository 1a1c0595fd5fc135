"""What step caches cost, on the demo model: writes docs/CACHES.md.

    .host/venv/bin/python bench/caches.py

EasyCache and LazyCache leave out passes of the network and answer with the last difference between its output and
input. For each sampler, with and without one: passes of the network for an image, counted, and the error of the final
latent to many steps without a cache (median over images, as in bench/quality.py); and the error of the same sampler
without a cache in as many steps as the cache has let through, which costs the same.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode  # noqa: E402
# isort: on

SAMPLERS = ("euler", "dpmpp_2m", "ipndm_v", "unipc", "dpm_3m")
"""Of first order, then those that remember predictions."""

STEPS = (10, 20)
CACHES = {
    "EasyCache 0.1": (EasyCacheNode, 0.1),
    "EasyCache 0.2": (EasyCacheNode, 0.2),
    "LazyCache 0.1": (LazyCacheNode, 0.1),
    "LazyCache 0.2": (LazyCacheNode, 0.2),
}
"""The host's nodes by their threshold; 0.2 is their default, as are the shares of the run in which they work."""

START, END = 0.15, 0.95
SCHEDULE = cells.Schedule("ours", "karras")
DEMO = Demo()
REFERENCE = LIMITS[False].reference


class Run(NamedTuple):
    """Of one sampler with one cache, over all images."""

    error: float
    passes: float
    """Evaluations for which the network ran, mean."""


@contextlib.contextmanager
def counted(patcher: Any) -> Iterator[list[int]]:
    """The passes of the network, whatever wraps it."""
    passes: list[int] = []
    first = patcher.model.diffusion_model.input_blocks[0][0]
    handle = first.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    try:
        yield passes
    finally:
        handle.remove()


def sample(name: str, steps: int, pairs: Sequence[cells.Pair], cache: str | None = None) -> tuple[Tensor, float]:
    """Final latents, and the passes of the network for one of them. Each image has a run of its own: a cache decides by
    the mean of a batch."""
    patcher = DEMO.patcher
    if cache is not None:
        node, threshold = CACHES[cache]
        patcher = node.execute(patcher, threshold, START, END, False).result[0]
    levels = cells.make_levels(DEMO, cells.Entry("ours", name), SCHEDULE, steps)
    latents = []
    with counted(patcher) as passes:
        for pair in pairs:
            guider = comfy.samplers.CFGGuider(patcher)
            guider.set_cfg(DEMO.guidance)
            sampler = comfy.samplers.KSAMPLER(cells.SAMPLERS[name].function)
            latents.append(cells.run(DEMO, guider, sampler, levels, [pair]))
    return torch.cat(latents), sum(passes) / 2 / len(pairs)  # an evaluation has two, for guidance


class Table:
    """The rows of docs/CACHES.md, as they are measured."""

    def __init__(self, pairs: Sequence[cells.Pair]):
        self.pairs = pairs
        levels = cells.make_levels(DEMO, *REFERENCE, Size().reference_steps)
        self._exact = cells.sample(DEMO, REFERENCE[0], levels, tuple(pairs))[0]
        self._plain: dict[tuple[str, int], Run] = {}

    def run(self, name: str, steps: int, cache: str | None = None) -> Run:
        if cache is None and (name, steps) in self._plain:
            return self._plain[name, steps]
        latents, passes = sample(name, steps, self.pairs, cache)
        found = Run(float(cells.root_mean_square(latents - self._exact).median()), passes)
        if cache is None:
            self._plain[name, steps] = found
        return found

    def rows(self, name: str, steps: int) -> Iterator[str]:
        plain = self.run(name, steps)
        for cache in CACHES:
            cached = self.run(name, steps, cache)
            fewer = self.run(name, max(1, round(cached.passes)))
            yield (
                f"| {steps} | `{name}` | {plain.error:.4f} | {cache} | {cached.passes:.1f} | {cached.error:.4f} "
                f"| {cached.error / plain.error:.1f} | {fewer.error:.4f} |"
            )


INTRODUCTION = """# Step caches

EasyCache and LazyCache, which come with ComfyUI, leave out passes of the network: where the sample has changed little,
they answer with the last difference between output and input. Such an answer contains the change of the sample itself,
and solvers that remember predictions take the differences of these for the change of the network.

Measured by `make bench-caches` (`bench/caches.py`): the demo model, karras, guidance {w:g}, median over {pairs} images;
the error is that to {many} steps without a cache. *passes* are the evaluations for which the network ran; *as many
steps* is the error of the same sampler without a cache in as many steps as these, which costs the same.

{findings}
| steps | sampler | error | cache, threshold | passes | error with it | times | as many steps |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def findings(table: Table, rows: Sequence[tuple[str, int]]) -> str:
    """What the numbers say."""
    ratios: dict[str, list[float]] = {}
    better = total = 0
    for name, steps in rows:
        for cache in CACHES:
            cached = table.run(name, steps, cache)
            if cached.passes > steps - 0.5:
                continue
            ratios.setdefault(name, []).append(cached.error / table.run(name, steps).error)
            better += cached.error < table.run(name, max(1, round(cached.passes))).error
            total += 1
    medians = ", ".join(f"`{name}` {statistics.median(found):.1f}" for name, found in ratios.items())
    return (
        f"The error grows by these factors (median over caches and steps where passes were left out): {medians}. In "
        f"{better} of {total} cases the cache is better than fewer steps at the same cost.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=SAMPLERS, help="print these and write nothing")
    o = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(Size().reported_on(DEMO)[: o.images])
    wanted = [(name, steps) for steps in STEPS for name in (o.only or SAMPLERS)]
    rows = []
    for name, steps in wanted:
        for row in table.rows(name, steps):
            rows.append(row)
            print(row, flush=True)
    if not o.only:
        text = INTRODUCTION.format(
            w=DEMO.guidance, pairs=o.images, many=Size().reference_steps, findings=findings(table, wanted)
        )
        (ROOT / "docs" / "CACHES.md").write_text("\n".join([text.rstrip(), *rows, ""]))


if __name__ == "__main__":
    main()
