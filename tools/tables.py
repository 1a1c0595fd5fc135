"""The tables of the documents, made from the registry, and that of Few-Step Auto, made from docs/quality.csv.

python tools/tables.py          writes them anew
"""

from __future__ import annotations

import csv
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from samplers import SAMPLERS, SCHEDULES  # noqa: E402

README = ROOT / "README.md"
SAMPLERS_PAGE = ROOT / "docs" / "SAMPLERS.md"
AUTO_PAGE = ROOT / "web" / "docs" / "FewStepAuto.md"
KSAMPLER_PAGES = [ROOT / "web" / "docs" / f"FewStepKSampler{kind}.md" for kind in ("", "Advanced")]
AUTO_PAGE_ZH = ROOT / "web" / "docs" / "FewStepAuto" / "zh.md"
QUALITY = ROOT / "docs" / "quality.csv"
PICKS = ROOT / "nodes" / "picks.json"
MODELS = ROOT / "nodes" / "models.json"
MODELS_PAGE = ROOT / "docs" / "MODELS.md"
TEMPLATES = "https://github.com/Comfy-Org/workflow_templates/blob/main/templates/"
DEMO_PAGES = [
    ROOT / "demo" / "README.md",
    *(ROOT / "web" / "docs" / name for name in ("FewStepDemoModel.md", "FewStepDemoModel/zh.md")),
]
NAMES_PAGE = ROOT / "docs" / "NAMES.md"
KNOWN_NAMES = json.loads((ROOT / "nodes" / "known_names.json").read_text(encoding="utf-8"))


# Of the documents


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [header, ["---"] * len(list(header)), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _yes(fact: bool) -> str:
    return "yes" if fact else ""


def _evaluations(spec) -> str:
    """Evaluations of a step in the middle of a run, in words."""
    return "2 or 3 an attempt" if spec.adaptive else str(_evaluations_of_a_step(spec))


def _evaluations_of_a_step(spec) -> int:
    longer, shorter = ([float(s) for s in range(n, 0, -1)] for n in (9, 8))
    return spec.nfe(longer) - spec.nfe(shorter)


def _options(spec) -> str:
    """Its own; those that all have are listed once, beside the table."""
    return ", ".join(f"`{o.name}`" for o in spec.options if o not in spec.common) or "none"


def _in_chinese(table: str) -> str:
    """The table of what Few-Step Auto picks, which is mostly names."""
    for english, chinese in _CHINESE.items():
        table = re.sub(english, chinese, table)
    return table


_CHINESE = {
    r"with more variety": "同左，more variety",
    r" \((\d+) evaluations a step\)": r"（每步 \1 次求值）",
    r" \(order (\d+)\)": r"（\1 阶）",
    r"evaluations": "求值次数",
    r"(\d+) to (\d+)": r"\1 到 \2",
    r"(\d+) and more": r"\1 以上",
}


def tables() -> dict[Path, dict[str, str]]:
    """By document and name."""
    return {
        README: {"picks": _picked()},
        AUTO_PAGE: {"picks": _picked()},
        **{page: {"options": _all_options()} for page in KSAMPLER_PAGES},
        MODELS_PAGE: {"families": _families(), "distilled": _distilled()},
        AUTO_PAGE_ZH: {"picks": _in_chinese(_picked())},
        SAMPLERS_PAGE: {
            "samplers": _listed(SAMPLERS),
            "sampler properties": _sampler_properties(),
            "schedules": _listed(SCHEDULES),
            "schedule properties": _schedule_properties(),
        },
        **{page: {"words": _demo_words()} for page in DEMO_PAGES},
        NAMES_PAGE: {
            f"{kind} of {whose}": _known(kind, names)
            for kind, by_whose in KNOWN_NAMES.items()
            for whose, names in by_whose.items()
        },
    }


def _families() -> str:
    """What is recommended for each family of models, and where that was read."""
    rows = []
    for family in json.loads(MODELS.read_text())["families"]:
        known = {"note": "", "varied": None, "also": []} | family
        samplers = " or ".join(f"`{id}`" for id in (known["sampler"], known["varied"]) if id)
        takes = "the measured choice" if known["measured"] else "what is recommended"
        if "distilled" in known:
            takes = f"`trained`, `{known['distilled']}`"
        classes = ", ".join(f"`{name}`" for name in known["classes"])
        recommended = f"{samplers}, `{known['schedule']}`"
        about = (takes, known["note"], _sources(known["sources"]))
        rows.append((known.get("model", known["name"]), classes, recommended, *_numbers(known), *about))
        rows += [(other["model"], "the same", "the same", *_numbers(other), takes, "", "") for other in known["also"]]
    header = ("model", "class in ComfyUI", "sampler, schedule", "steps", "cfg", "shift", "Auto takes", "", "source")
    return _table(header, rows)


def _numbers(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Steps, guidance and shift, as they are recommended."""
    return _between(*settings["steps"]), _between(*settings["cfg"]), str(settings.get("shift", ""))


def _distilled() -> str:
    """By what Few-Step Auto knows a distilled model, and what it takes."""
    return _table(
        ("name contains", "`distilled`", "sampler", "cfg", "source"),
        (
            (
                f"`{_escaped(m['names'])}`",
                f"`{m['id']}`",
                f"`{m['sampler']}`" + "".join(f", `{k}` = {v}" for k, v in m.get("options", {}).items()),
                _between(*m["cfg"]),
                _sources(m["sources"]),
            )
            for m in json.loads(MODELS.read_text())["distilled"]
        ),
    )


def _escaped(pattern: str) -> str:
    return pattern.replace("|", "\\|")


def _between(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _sources(sources: Iterable[str]) -> str:
    """Addresses; ComfyUI's workflow templates by their names."""

    def written(source: str) -> str:
        name = source.removeprefix("template:")
        return source if name == source else f"[{name}]({TEMPLATES}{name}.json)"

    return " ".join(map(written, sources))


def _all_options() -> str:
    """The names of all options, in lines."""
    lines = []
    for kind, specs in (("Samplers", SAMPLERS), ("Schedules", SCHEDULES)):
        names = dict.fromkeys(option.name for spec in specs.values() for option in spec.options)
        names = [f"`{name}`" for name in names if name not in ("start_step", "end_step")]
        lines.append(textwrap.fill(f"* {kind}: {', '.join(names)}", 120, subsequent_indent="  "))
    return "\n".join(lines)


def _listed(specs: Mapping[str, Any]) -> str:
    rows = ((f"`{s.id}`", s.label, s.help, _yes(s.curated)) for s in specs.values())
    return _table(("id", "name", "what for", "in KSampler"), rows)


def _demo_words() -> str:
    """What the demo model knows: whole words, and not what emoji are called in anger."""
    with (ROOT / "demo" / "weights.safetensors").open("rb") as file:  # length of the header, and the header
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    words = json.loads(header["__metadata__"]["vocabulary"])
    return textwrap.fill(", ".join(word for word in words if re.fullmatch("[a-z]{3,}", word) and word != "shit"), 120)


def _known(kind: str, names: Mapping[str, Any]) -> str:
    """What to choose for names that are known elsewhere."""
    registry: Mapping[str, Any] = SAMPLERS if kind == "samplers" else SCHEDULES
    rows = []
    for name, choose in names.items():
        entry, remark = (choose, "") if isinstance(choose, str) else choose
        id, options = _read(entry, registry)
        defaults = {option.name: option.default for option in registry[id].options}
        changed = [f"`{option}` = `{value}`" for option, value in options.items() if value != defaults[option]]
        given = f" ({', '.join(changed)})" if changed else ""
        rows.append((f"`{name}`", f"`{id}`{given}", _yes(registry[id].curated and not changed), remark))
    return _table(("name", kind[:-1], "in KSampler", ""), rows)


def _sampler_properties() -> str:
    return _table(
        ("id", "order", "evaluations a step", "added noise", "options", "paper"),
        (
            (f"`{s.id}`", str(s.order), _evaluations(s), _yes(s.stochastic), _options(s), s.paper)
            for s in SAMPLERS.values()
        ),
    )


def _schedule_properties() -> str:
    return _table(("id", "options", "paper"), ((f"`{s.id}`", _options(s), s.paper) for s in SCHEDULES.values()))


def _picked() -> str:
    """What Few-Step Auto takes, from one row to the next where anything changes."""
    columns = [rows for kind in picks().values() for rows in kind.values()]
    starts = sorted({row["start"] for rows in columns for row in rows})
    found: list[tuple[int, list[str]]] = []
    for start in starts:
        cells = [_cell([row for row in rows if row["start"] <= start][-1]) for rows in columns]
        if not found or found[-1][1] != cells:
            found.append((start, cells))
    ends = [start for start, _ in found[1:]]
    budgets = [_range(start, end) for (start, _), end in zip(found, [*ends, None], strict=True)]
    return _table(
        (
            "evaluations",
            "SD1.5, SD2, SDXL",
            "with more variety",
            "SD3, Flux, Wan, Qwen-Image",
            "with more variety",
        ),
        ([budget, *cells] for budget, (_, cells) in zip(budgets, found, strict=True)),
    )


def _range(start: int, end: int | None) -> str:
    if end is None:
        return f"{start} and more"
    return f"{start} to {end - 1}" if end - 1 > start else str(start)


def _cell(pick: Mapping[str, Any]) -> str:
    """Sampler and schedule of a row of Few-Step Auto."""
    notes = [f"{name} {value}" for name, value in pick["options"].items()]
    if (count := _evaluations(SAMPLERS[pick["sampler"]])) != "1":
        notes.append(f"{count} evaluations a step")
    noted = f" ({', '.join(notes)})" if notes else ""
    star = "\\*" if pick["discard_penultimate"] else ""
    return f"`{pick['sampler']}`{noted}, `{pick['schedule']}`{star}"


def with_tables(path: Path) -> str:
    """A document with everything between `<!-- name -->` and `<!-- /name -->` replaced by the table of that name.

    Raises:
        ValueError: if a table has no place in the document.
    """
    text = path.read_text()
    for name, table in tables()[path].items():
        text, found = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.S
        )
        if found != 1:
            raise ValueError(f"{path.name} has {found} places for the table {name!r}")
    return text


# Of Few-Step Auto

EXACT, VARIED = "exact seed", "more variety"  # the choices of the node

FOR_DISTILLED = ("consistency",)
"""Samplers that measure well on the demo model, too, and are made for another kind of model."""

_FLOW = "For flow models "
_MEASURED = _FLOW + "this had the least error on the demo's flow model, at its own shift (docs/SAMPLERS.md)."
_FEW = _FLOW + "nothing was measured with so few evaluations: first order, with steps in the model's own time."
_BY_THEORY = _FLOW + "this is the usual choice and was not measured: "
FLOW_PICKS = {
    EXACT: [(1, "euler", "beta*", _FEW), (5, "euler", "beta*", _MEASURED), (6, "dpm_2m", "beta*", _MEASURED)],
    VARIED: [
        (
            1,
            "euler_ancestral",
            "beta",
            _BY_THEORY + "with few steps, added noise goes best with a first-order sampler.",
        ),
        (12, "dpmpp_2m_sde", "beta", _BY_THEORY + "second order with added noise, at one evaluation a step."),
    ],
}


def picks() -> dict[str, Any]:
    """What Few-Step Auto chooses, for each kind of model and each of its choices, by rising budget."""
    with QUALITY.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "ours" and row["status"] == "ok"]
    rows = [row for row in rows if row["budget"] and row["schedule"]]
    flow = {
        variety: [_pick(start, sampler, schedule, why) for start, sampler, schedule, why in given]
        for variety, given in FLOW_PICKS.items()
    }
    return {"noise prediction": {EXACT: _exact(rows), VARIED: _varied(rows)}, "flow": flow}


def _measured(budget: int) -> str:
    return f"Measured on the demo model at {budget} evaluations (docs/QUALITY.md):"


def _exact(rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Of each budget the sampler with the least median error."""
    found = []
    for budget, measured in _by_budget(rows, "median"):
        best = min(measured, key=lambda row: float(row["median"]))
        why = f"{_measured(budget)} the least error of all samplers without added noise, {float(best['median']):.2g}."
        found.append(_pick(budget if found else 1, best["sampler"], best["schedule"], why))
    return found


def _varied(rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Of each budget, among those with added noise that are within a standard error of the nearest to the distribution
    of many-step samples, one with the fewest evaluations a step, and of these one of the highest order. Below the first
    budget one of a single evaluation a step: of others there would be too few steps.
    """
    rows = [row for row in rows if SAMPLERS[_read(row["sampler"])[0]].stochastic]
    rows = [row for row in rows if row["sampler"] not in FOR_DISTILLED]
    found = []
    for budget, measured in _by_budget(rows, "frechet_many"):
        if not found:
            found.append(_nearest(1, budget, [row for row in measured if row["nfe"] == row["budget"]]))
        found.append(_nearest(budget, budget, measured))
    return found


def _nearest(start: int, budget: int, rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    least = min(rows, key=_distance)
    limit = _distance(least) + float(least["frechet_many_error"])
    equal = [row for row in rows if _distance(row) <= limit]

    def rank(row: Mapping[str, str]) -> tuple[int, int, float]:
        spec = SAMPLERS[_read(row["sampler"])[0]]
        return _evaluations_of_a_step(spec), -spec.order, _distance(row)

    best = min(equal, key=rank)
    why = (
        f"{_measured(budget)} among samplers with added noise, one of the closest to samples of many steps (Fréchet "
        f"distance {_distance(best):.2g})."
    )
    return _pick(start, best["sampler"], best["schedule"], why)


def _distance(row: Mapping[str, str]) -> float:
    return float(row["frechet_many"])


def _by_budget(rows: Iterable[Mapping[str, str]], measure: str) -> list[tuple[int, list[Mapping[str, str]]]]:
    """The rows that have the measure."""
    budgets: dict[int, list[Mapping[str, str]]] = {}
    for row in rows:
        if row[measure]:
            budgets.setdefault(int(row["budget"]), []).append(row)
    return sorted(budgets.items())


def _pick(start: int, sampler: str, schedule: str, why: str) -> dict[str, Any]:
    name, options = _read(sampler)
    return {
        "start": start,
        "sampler": name,
        "options": options,
        "schedule": schedule.removesuffix("*"),
        "discard_penultimate": schedule.endswith("*"),
        "why": why,
    }


def _read(entry: str, registry: Mapping[str, Any] = SAMPLERS) -> tuple[str, dict[str, Any]]:
    """A sampler of the benchmark, such as `unipc (order=2)`, or a schedule: id and options."""
    name, _, rest = entry.partition(" (")
    known = {option.name: type(option.default) for option in registry[name].options}
    pairs = (pair.split("=") for pair in rest.rstrip(")").split(", ") if pair)
    return name, {key: value == "True" if known[key] is bool else known[key](value) for key, value in pairs}


def picks_text() -> str:
    return json.dumps(picks(), indent=1) + "\n"


if __name__ == "__main__":
    for path in tables():
        path.write_text(with_tables(path))
    PICKS.write_text(picks_text())
