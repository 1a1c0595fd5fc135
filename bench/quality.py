"""How good the images are for their evaluations: every sampler of ours and of the host on the demo model.

    make bench-quality              within 40 minutes on two cores; run it again to go on where it stopped
    FULL=1 make bench-quality       for a GPU: more pairs, all stochastic samplers, no limit of time

Deterministic samplers are held against a trajectory of 200 steps from the same starting noise, stochastic ones
against the distribution of the training images and of many-step samples. Each sampler runs on the schedule that was
best for it on other prompts and seeds than the ones reported. Writes docs/quality.csv, .png and QUALITY.md.

Settings, as options or in the environment: FULL, BUDGETS="4 8", PAIRS, SAMPLES, SAMPLERS="dpmpp_2m host:euler",
MINUTES, WORKERS.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tools")) if path not in sys.path]

import torch  # noqa: E402

from bench import calibrated, cells  # noqa: E402
from bench.cells import Entry, Schedule  # noqa: E402
from bench.distributions import Sampling  # noqa: E402
from bench.errors import Bench, Cell, Score  # noqa: E402
from bench.jobs import Cache  # noqa: E402
from bench.picture import draw  # noqa: E402
from bench.report import describe  # noqa: E402
from bench.results import Results, duels, leaders, write_csv  # noqa: E402
from bench.runner import OutOfTime, Runner  # noqa: E402
from bench.settings import FULL, QUICK, VARIANTS, Size  # noqa: E402


def benchmark(bench: Bench, names: Sequence[str]) -> Results:
    """Measure everything, as far as the time goes."""
    results = Results(bench.scores, bench.failures)
    try:
        _measure(bench, names, results)
        results.complete = True
    except OutOfTime:
        print("the time limit is reached: run again to go on", file=sys.stderr)
    return results


def _measure(bench: Bench, names: Sequence[str], results: Results) -> None:
    entries = [e for e in cells.our_entries(VARIANTS) + cells.host_entries() if _is_wanted(e, names)]
    schedules = {"ours": cells.our_schedules(), "host": cells.host_schedules()}
    stochastic = [entry for entry in entries if _stochastic(entry)]
    adaptive = [entry for entry in entries if entry.adaptive]
    fixed = [e for e in entries if e not in stochastic and e not in adaptive]
    choices = {entry: schedules[entry.source] for entry in fixed}
    bench.expect(choices, len(stochastic))

    results.floor = bench.floor()
    free = [Cell(entry, Schedule(entry.source, "karras"), None) for entry in adaptive]
    bench.report(bench.choose(choices) + free, "all")

    files = [f for f in calibrated.fitted() if f.evaluations in bench.size.budgets and _is_wanted(f.entry, names)]
    fitted = [Cell(f.entry, calibrated.OWN_LEVELS, f.evaluations) for f in files]
    bench.scores |= bench.score("report, calibrated", fitted, bench.size.reported_on, bench.size.batch)

    lent = dict.fromkeys(leaders(bench.scores, "host", bench.size.borrowers), schedules["ours"])
    if lent:
        bench.report(bench.choose(lent), "borrowed")
    if bench.size.samples and stochastic:
        sampling = Sampling(bench)
        results.distribution = sampling.result
        chosen = sampling.choose(stochastic, _liked(bench.scores, schedules))
        compared = [cell for budget in bench.size.sample_budgets for duel in duels(bench.scores, [budget])
                    for cell in (duel.ours, duel.host)]  # fmt: skip
        weak = [cell for pair in calibrated.without_gain(bench.scores) for cell in pair]
        sampling.measure(chosen, compared, weak)


def _stochastic(entry: Entry) -> bool:
    try:
        return cells.is_stochastic(entry)
    except Exception:
        return False  # it will fail again, and be recorded, among the deterministic ones


def _liked(scores: dict[Cell, Score], schedules: dict[str, list[Schedule]]) -> dict[str, list[Schedule]]:
    """The schedules of each source, those first that most deterministic samplers were best on."""
    votes: dict[Schedule, int] = defaultdict(int)
    for cell in scores:
        if cell.budget is not None and cell.source != "borrowed" and 8 <= cell.budget <= 15:
            votes[cell.schedule] += 1
    return {source: sorted(all_, key=lambda s: -votes[s]) for source, all_ in schedules.items()}


def _is_wanted(entry: Entry, names: Sequence[str]) -> bool:
    return not names or any(name in (entry.name, f"{entry.source}:{entry.name}") for name in names)


def write(results: Results, bench: Bench, folder: Path) -> str:
    """The files; gives the text."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(results.rows(), folder / "quality.csv")
    if results.floor and any(c.budget for c in results.scores):
        draw(results.scores, results.floor[0], folder / "quality.png")
    text = describe(results, bench.size)
    (folder / "QUALITY.md").write_text(text)
    return text


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    environment = os.environ.get
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", default=environment("FULL", "0") not in ("", "0"))
    parser.add_argument("--quick", action="store_true", help="next to nothing, for tests")
    parser.add_argument("--budgets", type=_numbers, default=environment("BUDGETS"), help="evaluations")
    parser.add_argument("--pairs", type=int, default=environment("PAIRS"), help="of prompt and seed, for the report")
    parser.add_argument("--samples", type=int, default=environment("SAMPLES"), help="of stochastic samplers; 0: none")
    parser.add_argument("--samplers", type=str.split, default=environment("SAMPLERS", ""), help="only these")
    parser.add_argument("--minutes", type=float, default=environment("MINUTES"), help="time limit")
    parser.add_argument("--workers", type=int, default=environment("WORKERS"), help="processes")
    parser.add_argument("--cache", type=Path, default=ROOT / ".host" / "cache" / "quality")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    return parser.parse_args(arguments)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.replace(",", " ").split()))


def make_size(o: argparse.Namespace) -> Size:
    size = QUICK if o.quick else FULL if o.full else Size()
    given = {
        name: value for name in ("budgets", "pairs", "samples", "minutes") if (value := getattr(o, name)) is not None
    }
    return replace(size, **given)


def main(arguments: Sequence[str] | None = None) -> Runner:
    o = parse(arguments)
    size = make_size(o)
    workers = o.workers or (1 if torch.cuda.is_available() or o.quick else os.cpu_count() or 1)
    with Runner(Cache(o.cache), workers, size.minutes) as runner:
        bench = Bench(size, runner)
        results = benchmark(bench, o.samplers)
    print(write(results, bench, o.out))
    return runner


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the workers are stopped, too
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped: run it again to go on")
