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
import re
import statistics
import sys
import textwrap
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
IMAGES = 8
PAGE = ROOT / "docs" / "CACHES.md"
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


class Row(NamedTuple):
    """Of the table: a sampler with a cache, in some steps. Numbers are those that are printed."""

    steps: int
    sampler: str
    plain: float
    """The error without a cache."""

    cache: str
    passes: float
    error: float
    fewer: float
    """The error without a cache in as many steps as there were passes."""

    @property
    def times(self) -> float:
        return self.error / self.plain

    @property
    def used(self) -> bool:
        """Whether the cache left out passes: half a one of all images at least."""
        return self.passes <= self.steps - 0.5

    def __str__(self) -> str:
        return (
            f"| {self.steps} | `{self.sampler}` | {self.plain:.4f} | {self.cache} | {self.passes:.1f} "
            f"| {self.error:.4f} | {self.times:.1f} | {self.fewer:.4f} |"
        )


def rows(page: str) -> list[Row]:
    """Those of a page."""
    found = re.findall(r"^\| (\d+) \| `(\w+)` \| (\S+) \| (\w+ \S+) \| (\S+) \| (\S+) \| \S+ \| (\S+) \|$", page, re.M)
    return [
        Row(int(steps), sampler, float(plain), cache, float(passes), float(error), float(fewer))
        for steps, sampler, plain, cache, passes, error, fewer in found
    ]


def measure(pairs: Sequence[cells.Pair], samplers: Sequence[str]) -> Iterator[Row]:
    """The rows of these samplers, one after the other."""
    levels = cells.make_levels(DEMO, *REFERENCE, Size().reference_steps)
    exact = cells.sample(DEMO, REFERENCE[0], levels, tuple(pairs))[0]
    plain: dict[tuple[str, int], Run] = {}

    def run(name: str, steps: int, cache: str | None = None) -> Run:
        latents, passes = sample(name, steps, pairs, cache)
        return Run(float(cells.root_mean_square(latents - exact).median()), passes)

    def without(name: str, steps: int) -> float:
        if (name, steps) not in plain:
            plain[name, steps] = run(name, steps)
        return round(plain[name, steps].error, 4)

    for steps in STEPS:
        for name in samplers:
            for cache in CACHES:
                cached = run(name, steps, cache)
                fewer = without(name, max(1, round(cached.passes)))
                yield Row(
                    steps, name, without(name, steps), cache, round(cached.passes, 1), round(cached.error, 4), fewer
                )


# The page

PAGE_TEXT = """# Step caches

EasyCache and LazyCache, which come with ComfyUI, leave out passes of the network. Where the sample has changed little,
they do not run the network: they add the last difference between its output and input to the present input. The output
then changes only because the sample itself has changed. Solvers that remember predictions take this for a change of the
network's prediction.

The table at the end was measured by `make bench-caches` (`bench/caches.py`) with the demo model, the schedule karras
and guidance {w:g}. Errors are medians over {images} images.

* *error*: the distance to the image of {many} steps, without a cache.
* *passes*: the evaluations for which the network ran.
* *error with it*: the error with the cache.
* *times*: by how much the cache multiplies the error.
* *as many steps*: the error without a cache in as many steps as there were passes, which costs the same.

{findings}

TeaCache, MagCache and First Block Cache, which other packs bring, leave out passes in the same way. They are made for
certain transformers (Flux, Wan, HunyuanVideo and others) and cannot run the demo model, so they were not measured. The
node that samples warns of them, too, if it recognizes them in the options of the model.

| steps | sampler | error | cache, threshold | passes | error with it | times | as many steps |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def findings(rows: Sequence[Row]) -> str:
    """What the numbers say, of the rows where passes were left out."""
    used = [row for row in rows if row.used]
    worse = [row.error / row.fewer for row in used if row.error > row.fewer]
    by_sampler = {name: [row.times for row in used if row.sampler == name] for name in SAMPLERS}
    medians = ", ".join(f"`{name}` {statistics.median(found):.1f}" for name, found in by_sampler.items() if found)
    euler = {(row.steps, row.cache): row.error for row in used if row.sampler == "euler"}
    ratios = {
        kind: [
            row.error / euler[row.steps, row.cache]
            for row in used
            if row.sampler != "euler" and row.cache.startswith(kind) and (row.steps, row.cache) in euler
        ]
        for kind in dict.fromkeys(cache.split()[0] for cache in CACHES)
    }
    beside = "; ".join(
        f"with {kind} {min(found):.1f} to {max(found):.1f} times, median {statistics.median(found):.1f}"
        for kind, found in ratios.items()
        if found
    )
    by = f", in the median by a factor of {statistics.median(worse):.1f}" if worse else ""
    sentences = (
        "**What follows.**",
        f"A cache left out passes in {len(used)} of {len(rows)} cases.",
        f"In {len(worse)} of these, fewer steps without a cache have a smaller error at the same cost{by}.",
        "The node that samples therefore shows a warning if the model has a step cache.",
        f"By sampler, the cache multiplies the error in the median by: {medians}.",
        f"The error of the samplers that remember predictions, relative to `euler` with the same cache, is {beside}.",
        "A lower order would not remove the error that the cache causes, because `euler`, of order 1, has it as well.",
        "So Few-Step leaves the order as it is.",
        "In a large model the predictions differ less from step to step, so it may lose less with a cache.",
        "The demo model is small, and no other model was measured.",
    )
    return textwrap.fill(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)


def page(rows: Sequence[Row]) -> str:
    """docs/CACHES.md."""
    text = PAGE_TEXT.format(w=DEMO.guidance, images=IMAGES, many=Size().reference_steps, findings=findings(rows))
    return text + "".join(f"{row}\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SAMPLERS, help="print the rows of these and write nothing")
    o = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for row in measure(Size().reported_on(DEMO)[:IMAGES], o.only or SAMPLERS):
        found.append(row)
        print(row, flush=True)
    if not o.only:
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
