"""The text of docs/QUALITY.md."""

from __future__ import annotations

from bench import calibrated, distributions
from bench.distributions import Distribution
from bench.errors import CONTENDER, Bench, Cell, Score
from bench.results import ALIKE, Duel, Results, best_line, duels, interval, verdict
from bench.subjects import Checkpoint, Demo, Subject


def describe(results: Results, bench: Bench) -> str:
    """docs/QUALITY.md."""
    subject = bench.subject
    parts = [_INTRODUCTION.format(subject=subject, command=_command(subject))]
    if results.floor:
        parts.append(_describe_errors(results, results.floor, bench))
    if any(cell.entry.source == "calibrated" for cell in results.scores):
        found = results.distribution.rows if results.distribution else []
        frechet = {cell: data.frechet for cell, _, _, data in found if data}
        parts.append(calibrated.describe(subject, results.scores, frechet))
    if results.distribution:
        parts.append(_describe_distribution(results.distribution, bench, results.complete))
    if results.failures:
        failed = sorted({f"{cell.entry} ({cell.entry.source})" for cell in results.failures})
        parts.append(f"Failed on some schedule or number of steps (see the CSV): {', '.join(failed)}.\n")
    if not results.complete:
        parts.append("This run ended at its time limit. Run it again to continue.\n")
    return "\n".join(parts)


def _command(subject: Subject) -> str:
    if subject == Demo():
        return "make bench-quality"
    if isinstance(subject, Demo):
        return f'make bench-quality FORM="{subject.form}"'
    return f"bench/quality.py --checkpoint {subject.file.name}" if isinstance(subject, Checkpoint) else ""


_INTRODUCTION = """# Quality against evaluations

Written by `{command}`; all numbers are in [{subject.stem}.csv]({subject.stem}.csv). *Ours* are the samplers of
Few-Step, and *the host's* are those of ComfyUI. All were measured on {subject.title}, at guidance
{subject.guidance:g}, with their default options (some of ours also with others, which are named), each on the schedule
that was best for it on other prompts and seeds. `*` marks a schedule without its last level above 0.

An evaluation is one call of the model, in which guidance runs the network twice. A sampler with several
evaluations a step gets fewer steps. The host's `..._gpu` samplers are left out, since they only draw the noise on
another device. Its `..._cfg_pp` samplers apply guidance in another way and lead to another image, so their error says
little.
"""


_ROUNDED = ", because the model rounds each level to one of 1000, and other levels have another limit"


def _describe_errors(results: Results, floor: tuple[float, float], bench: Bench) -> str:
    size, (entry, schedule), (check, check_schedule) = bench.size, *bench.limits[:2]
    found = duels(results.scores, size.budgets)
    lines = [
        "## Deterministic samplers",
        "",
        f"The error is that of the final latent: root mean square over an image, in {bench.subject.unit}, against "
        f"{entry} ({entry.source}) with {size.reference_steps} steps on {schedule} from the same noise. The table "
        f"gives the median over {size.pairs} images, [5%, 95%] of bootstrap draws, and the 90th percentile. Cells with "
        f"more than {CONTENDER:g} times the least error were measured on {min(size.batch, size.pairs)} images.",
        "",
        f"A second reference, {check} ({check.source}) with as many steps on {check_schedule}, differs from the first "
        f"by {floor[0]:.2g} (90th percentile: {floor[1]:.2g}){'' if bench.subject.levels.flow else _ROUNDED}. "
        "Differences that are smaller than this mean nothing.",
        "",
        f"![Error against evaluations]({bench.subject.stem}.png)",
        "",
        "| evaluations | best of ours | error, 90% | best of the host | error, 90% | ours / host |",
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
            "| evaluations | sampler | error |",
            "| --- | --- | --- |",
        ]
        for budget in size.budgets:
            best = min(((c, s) for c, s in borrowed if c.budget == budget), key=lambda b: b[1].median, default=None)
            if best:
                lines.append(f"| {budget} | {best[0].entry}, {best[0].schedule} | {best[1].median:.4f} |")
        lines += ["", _gained_by_schedule(results.scores, found), ""]
    return "\n".join(lines)


def _gained_by_schedule(scores: dict[Cell, Score], found: list[Duel]) -> str:
    """At which budgets a sampler of the host on our schedules does what the best of ours does."""
    alike = [
        str(duel.budget)
        for duel in found
        for _, median in best_line(scores, [duel.budget], lambda cell: cell.source == "borrowed")
        if median <= ALIKE * scores[duel.ours].median
    ]
    return (
        f"At {', '.join(alike) or 'no number of'} evaluations the best of the host on our schedules is as good as the "
        "best of ours: there the gain over the host comes from the schedule, not from the sampler."
    )


def _describe_distribution(distribution: Distribution, bench: Bench, complete: bool) -> str:
    wasserstein, frechet = distribution.halves()
    size, (entry, schedule) = bench.size, bench.limits.many_steps
    axes, directions = distributions.AXES, distributions.DIRECTIONS
    lines = [
        "## Stochastic samplers",
        "",
        f"Distances of {size.samples} samples to as many samples of many steps ({entry}, {size.many_steps} steps, "
        f"{schedule}) and to the training images: sliced Wasserstein (SW, {directions} directions) and squared Fréchet "
        f"(FD, {axes} principal axes), ± the standard error (jackknife over prompts). Lower is better. All sets use "
        f"the same prompts, each with its own seeds. Two independent sets of many-step samples are {wasserstein:.4f} "
        f"(SW) and {frechet:.3f} (FD) apart, so that smaller distances mean no difference.",
        "",
        f"Deterministic samplers are listed for comparison. One with {size.many_steps} evaluations, where it is "
        "listed, has converged: it shows how far the limits with and without noise are apart under guidance."
        + ("" if complete else " Samplers that are missing were not reached within the time limit."),
        "",
        "| evaluations | sampler | source | schedule | SW, many-step | FD, many-step | SW, data | FD, data |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell, _, many, data in sorted(distribution.rows, key=lambda r: (r[0].budget, r[2].frechet[0])):
        numbers = [f"{d[0]:.{places}f} ± {d[1]:.{places}f}" for pair in (many, data) if pair
                   for d, places in zip(pair, (4, 3), strict=True)]  # fmt: skip
        numbers += [""] * (4 - len(numbers))
        lines.append(f"| {cell.budget} | {cell.entry} | {cell.source} | {cell.schedule} | {' | '.join(numbers)} |")
    return "\n".join([*lines, ""])
