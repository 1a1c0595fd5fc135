"""How good the images are for their evaluations: every sampler of ours and of the host on the demo model.

    make bench-quality                          within 40 minutes on two cores; run it again to go on where it stopped
    make bench-quality FORM="rectified flow"    the demo model's other form: quality_flow.csv, .png, QUALITY_FLOW.md
    FULL=1 make bench-quality                   for a GPU: more pairs, all stochastic samplers, no limit of time

On a checkpoint of one's own, which holds model, text encoder and VAE as ComfyUI's Load Checkpoint wants them:

    python bench/quality.py --checkpoint sd15.safetensors --prompts prompts.txt --width 512 --height 512 --cfg 7

with a prompt in each line of the file. Some samplers on some schedules are measured (--samplers all, --schedules all:
all of them), and the report with its chart and a sheet of images lies in output/quality-NAME.

Deterministic samplers are held against a trajectory of 200 steps from the same starting noise, stochastic ones
against the distribution of the training images and of many-step samples. Each sampler runs on the schedule that was
best for it on other prompts and seeds than the ones reported. Writes docs/quality.csv, .png and QUALITY.md.

Settings, as options or in the environment: FULL, BUDGETS="4 8", PAIRS, SAMPLES, SAMPLERS="dpmpp_2m host:euler",
SCHEDULES, MINUTES, WORKERS, FORM, CHECKPOINT, PROMPTS, WIDTH, HEIGHT, CFG.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tools")) if path not in sys.path]

import torch  # noqa: E402

from bench import calibrated, cells  # noqa: E402
from bench.cells import Entry, Pair, Schedule  # noqa: E402
from bench.distributions import Sampling  # noqa: E402
from bench.errors import Bench, Cell, Score  # noqa: E402
from bench.jobs import Cache  # noqa: E402
from bench.picture import draw  # noqa: E402
from bench.report import describe  # noqa: E402
from bench.results import Results, duels, leaders, write_csv  # noqa: E402
from bench.runner import OutOfTime, Runner  # noqa: E402
from bench.settings import FULL, OWN, OWN_SAMPLERS, OWN_SCHEDULES, QUICK, VARIANTS, Size  # noqa: E402
from bench.sheet import draw_sheet  # noqa: E402
from bench.subjects import FORMS, Checkpoint, Demo, Subject  # noqa: E402


def benchmark(bench: Bench, samplers: Sequence[str], schedules: Sequence[str]) -> Results:
    """Measure everything, or what is named, as far as the time goes."""
    results = Results(bench.scores, bench.failures)
    try:
        _measure(bench, samplers, schedules, results)
        results.complete = True
    except OutOfTime:
        print("the time limit is reached: run again to go on", file=sys.stderr)
    return results


def _measure(bench: Bench, names: Sequence[str], over: Sequence[str], results: Results) -> None:
    subject = bench.subject
    entries = [e for e in cells.our_entries(VARIANTS) + cells.host_entries() if _is_wanted(e, names)]
    schedules = {
        source: [schedule for schedule in known if _is_wanted(schedule, over)]
        for source, known in (("ours", cells.our_schedules()), ("host", cells.host_schedules()))
    }
    stochastic = [entry for entry in entries if _stochastic(subject, entry)]
    adaptive = [entry for entry in entries if entry.adaptive]
    fixed = [e for e in entries if e not in stochastic and e not in adaptive]
    choices = {entry: schedules[entry.source] for entry in fixed}
    bench.expect(choices, len(stochastic))
    if isinstance(subject, Checkpoint):
        _announce(bench)
    results.floor = bench.floor()
    free = [Cell(entry, Schedule(entry.source, "karras"), None) for entry in adaptive]
    bench.report(bench.choose(choices) + free, "all")

    files = [
        f for f in calibrated.fitted(subject) if f.evaluations in bench.size.budgets and _is_wanted(f.entry, names)
    ]
    fitted = [Cell(f.entry, calibrated.OWN_LEVELS, f.evaluations) for f in files]
    bench.scores |= bench.score("report, calibrated", fitted, bench.size.reported_on(subject), bench.size.batch)

    lent = dict.fromkeys(leaders(bench.scores, "host", bench.size.borrowers), schedules["ours"])
    if lent:
        bench.report(bench.choose(lent), "borrowed")
    if bench.size.samples and stochastic:
        sampling = Sampling(bench)
        results.distribution = sampling.result
        chosen = sampling.choose(stochastic, _liked(bench.scores, schedules))
        compared = [cell for budget in bench.size.sample_budgets for duel in duels(bench.scores, [budget])
                    for cell in (duel.ours, duel.host)]  # fmt: skip
        weak = [cell for pair in calibrated.without_gain(subject, bench.scores) for cell in pair]
        sampling.measure(chosen, compared, weak)


def _announce(bench: Bench) -> None:
    """Say how long it may take, after two evaluations, of which the first also loads the model."""
    subject, pair = bench.subject, (Pair(bench.subject.prompts[0], 0),)
    levels = cells.make_levels(subject, Entry("ours", "euler"), Schedule("ours", "time_uniform"), 1)
    for _ in range(2):
        started = time.monotonic()
        cells.sample(subject, Entry("ours", "euler"), levels, pair)
        seconds = time.monotonic() - started
    cost = sum(bench.runner.expected.values())
    text = (
        f"about {cost:,.0f} evaluations of an image, {seconds:.2g} s each on one worker: {seconds * cost / 60:.0f} min"
    )
    print(f"{text}, less what is in the cache", file=sys.stderr, flush=True)


def _stochastic(subject: Subject, entry: Entry) -> bool:
    try:
        return cells.is_stochastic(subject, entry)
    except Exception:
        return False  # it will fail again, and be recorded, among the deterministic ones


def _liked(scores: dict[Cell, Score], schedules: dict[str, list[Schedule]]) -> dict[str, list[Schedule]]:
    """The schedules of each source, those first that most deterministic samplers were best on."""
    votes: dict[Schedule, int] = defaultdict(int)
    for cell in scores:
        if cell.budget is not None and cell.source != "borrowed" and 8 <= cell.budget <= 15:
            votes[cell.schedule] += 1
    return {source: sorted(all_, key=lambda s: -votes[s]) for source, all_ in schedules.items()}


def _is_wanted(entry: Entry | Schedule, names: Sequence[str]) -> bool:
    return not names or any(name in ("all", entry.name, f"{entry.source}:{entry.name}") for name in names)


def write(results: Results, bench: Bench, folder: Path) -> str:
    """The files; gives the text."""
    folder.mkdir(parents=True, exist_ok=True)
    subject = bench.subject
    write_csv(results.rows(), folder / f"{subject.stem}.csv")
    if results.floor and any(c.budget for c in results.scores):
        draw(results.scores, results.floor[0], subject.unit, folder / f"{subject.stem}.png")
    text = describe(results, bench)
    if isinstance(subject, Checkpoint) and results.complete:
        draw_sheet(bench, folder / "sheet.png")
        text += "\n![The same seeds, sampled by the best of each kind](sheet.png)\n"
    (folder / f"{subject.stem.upper()}.md").write_text(text, encoding="utf-8")
    return text


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    environment = os.environ.get
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", default=environment("FULL", "0") not in ("", "0"))
    parser.add_argument("--quick", action="store_true", help="next to nothing, for tests")
    parser.add_argument("--budgets", type=_numbers, default=environment("BUDGETS"), help="evaluations")
    parser.add_argument(
        "--pairs", "--images", type=int, default=environment("PAIRS"), help="of prompt and seed, for the report"
    )
    parser.add_argument("--samples", type=int, default=environment("SAMPLES"), help="of stochastic samplers; 0: none")
    parser.add_argument("--samplers", type=str.split, default=environment("SAMPLERS", ""), help="only these")
    parser.add_argument("--minutes", type=float, default=environment("MINUTES"), help="time limit")
    parser.add_argument("--workers", type=int, default=environment("WORKERS"), help="processes")
    parser.add_argument("--schedules", type=str.split, default=environment("SCHEDULES", ""), help="only these")
    parser.add_argument("--form", default=environment("FORM", "noise prediction"), help="of the demo model")
    own = parser.add_argument_group("a checkpoint of one's own")
    own.add_argument("--checkpoint", type=_path, default=environment("CHECKPOINT"), help="file that ComfyUI loads")
    own.add_argument("--prompts", type=_path, default=environment("PROMPTS"), help="file with a prompt in each line")
    own.add_argument("--negative", default="", help="negative prompt")
    own.add_argument("--width", type=int, default=environment("WIDTH", "512"))
    own.add_argument("--height", type=int, default=environment("HEIGHT", "512"))
    own.add_argument("--cfg", type=float, default=environment("CFG", "7"), help="guidance scale")
    own.add_argument(
        "--plans", type=Path, nargs="+", default=[], help="files of plans and predictors to be measured, too"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / ".host" / "cache" / "quality")
    parser.add_argument("--out", type=Path, help="folder; docs, or output/quality-NAME for a checkpoint")
    return parser.parse_args(arguments)


def make_subject(o: argparse.Namespace) -> Subject:
    """What is measured.

    Raises:
        ValueError: naming the option at fault.
    """
    if not o.checkpoint:
        if o.form not in FORMS:
            raise ValueError(f"--form {o.form!r} must be one of {', '.join(map(repr, FORMS))}")
        return Demo(o.form)
    if not o.prompts:
        raise ValueError("--checkpoint needs --prompts, a file with a prompt in each line")
    for path in (o.checkpoint, o.prompts, *o.plans):
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
    prompts = tuple(line.strip() for line in o.prompts.read_text(encoding="utf-8").splitlines() if line.strip())
    if not prompts:
        raise ValueError(f"--prompts {o.prompts.name} holds no prompt")
    return Checkpoint(o.checkpoint, prompts, o.width, o.height, o.cfg, o.negative, tuple(o.plans))


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.replace(",", " ").split()))


def make_size(o: argparse.Namespace) -> Size:
    size = QUICK if o.quick else FULL if o.full else OWN if o.checkpoint else Size()
    given = {
        name: value for name in ("budgets", "pairs", "samples", "minutes") if (value := getattr(o, name)) is not None
    }
    return replace(size, **given)


def main(arguments: Sequence[str] | None = None) -> Runner:
    o = parse(arguments)
    subject, size = make_subject(o), make_size(o)
    own = bool(o.checkpoint)
    samplers = o.samplers or (OWN_SAMPLERS if own else ())
    schedules = o.schedules or (OWN_SCHEDULES if own else ())
    out = o.out or (ROOT / "output" / f"quality-{o.checkpoint.stem}" if own else ROOT / "docs")
    alone = torch.cuda.is_available() or o.quick or own  # a big model is loaded once
    workers = o.workers or (1 if alone else os.cpu_count() or 1)
    with Runner(Cache(o.cache), workers, size.minutes) as runner:
        bench = Bench(subject, size, runner)
        results = benchmark(bench, samplers, schedules)
    print(write(results, bench, out))
    return runner


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the workers are stopped, too
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped: run it again to go on")
    except ValueError as error:
        sys.exit(f"{error}")
