"""The text of docs/QUALITY.md."""

from __future__ import annotations

from bench import calibrated, cells, distributions
from bench.distributions import Distribution
from bench.errors import CONTENDER
from bench.results import Results, duels, interval, verdict
from bench.settings import CHECK, MANY_STEPS, REFERENCE, Size


def describe(results: Results, size: Size) -> str:
    """docs/QUALITY.md."""
    parts = [_INTRODUCTION.format(size=size, guidance=cells.GUIDANCE)]
    if results.floor:
        parts.append(_describe_errors(results, results.floor, size))
    if any(cell.entry.source == "learned" for cell in results.scores):
        found = results.distribution.rows if results.distribution else []
        parts.append(calibrated.describe(results.scores, {cell: data.frechet for cell, _, _, data in found if data}))
    if results.distribution:
        parts.append(_describe_distribution(results.distribution, size))
    if results.failures:
        failed = sorted({f"{cell.entry} ({cell.entry.source})" for cell in results.failures})
        parts.append(f"Failed on some schedule or number of steps (see the CSV): {', '.join(failed)}.\n")
    if not results.complete:
        parts.append("The time limit ended this run: run it again to go on.\n")
    return "\n".join(parts)


_INTRODUCTION = """# Quality against evaluations

Written by `make bench-quality`; all numbers are in [quality.csv](quality.csv). The demo model with guidance
{guidance:g}, every sampler of ours and of the host with default options (ours also with some others, named), each on
the schedule that was best for it on other prompts and seeds. `*`: without the last level above 0. Guidance runs the
network twice but counts as one evaluation; a sampler with several evaluations a step gets fewer steps. The host's
`..._gpu` samplers are left out (the same, with noise from another device); its `..._cfg_pp` ones apply guidance in
another way, so that their result is another image and their error says little.
"""


def _describe_errors(results: Results, floor: tuple[float, float], size: Size) -> str:
    (entry, schedule), (check, check_schedule) = REFERENCE, CHECK
    found = duels(results.scores, size.budgets)
    lines = [
        "## Deterministic samplers",
        "",
        "Error of the final latent: root mean square over an image, in units of the pixel range, against "
        f"{entry} ({entry.source}) with {size.reference_steps} steps on {schedule} from the same noise. Median over "
        f"{size.pairs} images ([5%, 95%] over bootstrap draws) and 90th percentile; cells with more than {CONTENDER:g} "
        f"times the least error were measured on {min(size.batch, size.pairs)}. Another reference, {check} "
        f"({check.source}) with as many steps on {check_schedule}, is {floor[0]:.2g} away (90%: {floor[1]:.2g}): the "
        "model rounds each level to one of 1000, so that other levels have another limit. Smaller differences mean "
        "nothing.",
        "",
        "![Error against evaluations](quality.png)",
        "",
        "| NFE | best of ours | error, 90% | best of the host | error, 90% | ours / host |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for duel in found:
        sides = [
            f"{c.entry}, {c.schedule} | {s.median:.4f} [{low:.4f}, {high:.4f}], {float(s.errors.quantile(0.9)):.4f}"
            for c, s in zip((duel.ours, duel.host), duel.scores, strict=True)
            for low, high in [interval(lambda drawn: drawn.quantile(0.5, dim=1), s.errors)]
        ]
        low, high = duel.spread
        lines.append(f"| {duel.budget} | {sides[0]} | {sides[1]} | {duel.ratio:.2f} [{low:.2f}, {high:.2f}] |")
    lines += ["", verdict(found) if found else "There is nothing to compare.", ""]
    borrowed = [(c, s) for c, s in results.scores.items() if c.source == "borrowed" and not s.failed]
    if borrowed:
        lines += [
            "The best samplers of the host on our schedules:",
            "",
            "| NFE | sampler | error |",
            "| --- | --- | --- |",
        ]
        for budget in size.budgets:
            best = min(((c, s) for c, s in borrowed if c.budget == budget), key=lambda b: b[1].median, default=None)
            if best:
                lines.append(f"| {budget} | {best[0].entry}, {best[0].schedule} | {best[1].median:.4f} |")
        lines.append("")
    return "\n".join(lines)


def _describe_distribution(distribution: Distribution, size: Size) -> str:
    wasserstein, frechet = distribution.halves()
    (entry, schedule), axes, directions = MANY_STEPS, distributions.AXES, distributions.DIRECTIONS
    lines = [
        "## Stochastic samplers",
        "",
        f"Distances of {size.samples} samples to as many many-step samples ({entry}, {size.many_steps} steps, "
        f"{schedule}) and to the training images: sliced Wasserstein (SW, {directions} directions) and squared Fréchet "
        f"(FD, {axes} principal axes), ± the standard error (jackknife over prompts). All sets go through the same "
        f"prompts, each with its own seeds. Two independent sets of many-step samples are {wasserstein:.4f} (SW) and "
        f"{frechet:.3f} (FD) apart: nearer than that nothing can be told. Deterministic ones stand beside; one with "
        f"{size.many_steps} evaluations has converged, and shows how far the limits with and without noise are apart "
        "under guidance. Samplers that are missing were not reached in the time; the next run goes on.",
        "",
        "| NFE | sampler | source | schedule | SW, many-step | FD, many-step | SW, data | FD, data |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell, _, many, data in sorted(distribution.rows, key=lambda r: (r[0].budget, r[2].frechet[0])):
        numbers = [f"{d[0]:.{places}f} ± {d[1]:.{places}f}" for pair in (many, data) if pair
                   for d, places in zip(pair, (4, 3), strict=True)]  # fmt: skip
        numbers += [""] * (4 - len(numbers))
        lines.append(f"| {cell.budget} | {cell.entry} | {cell.source} | {cell.schedule} | {' | '.join(numbers)} |")
    return "\n".join([*lines, ""])
