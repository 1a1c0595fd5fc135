"""What the documents say is what the code does."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib
import torch
from host import ROOT
from tables import NAMES_PAGE, PICKS, README, tables, with_tables

from samplers import SAMPLERS, SCHEDULES

DOCUMENTS = [path for folder in ("", "docs/", "docs/zh/", "demo/", "web/docs/") for path in ROOT.glob(f"{folder}*.md")]


@pytest.mark.parametrize("path", tables(), ids=lambda path: path.name)
def test_tables_are_those_of_the_code(path: Path):
    assert with_tables(path) == path.read_text(), "run `python tools/tables.py`"


def test_readme_names_what_auto_picks():
    """Read back from the table, for every number of evaluations, kind of model and choice."""
    rows = _rows("evaluations")
    columns = [picks for kind in json.loads(PICKS.read_text()).values() for picks in kind.values()]
    budgets = []
    for first, *cells in rows:
        start, end = (*re.findall(r"\d+", first), "40" if "more" in first else first)[:2]
        for budget in range(int(start), int(end) + 1):
            budgets.append(budget)
            for cell, picks in zip(cells, columns, strict=True):
                pick = [pick for pick in picks if pick["start"] <= budget][-1]
                sampler, schedule = re.fullmatch(r"`(\w+)`.*, `(\w+)`(?:\\\*)?", cell).groups()
                assert (sampler, schedule) == (pick["sampler"], pick["schedule"])
                assert cell.endswith("*") == pick["discard_penultimate"]
                assert all(f"{name} {value}" in cell for name, value in pick["options"].items())
    assert budgets == list(range(1, 41))


def test_readme_names_every_node():
    pages = {path.stem for path in ROOT.glob("web/docs/*.md")}
    linked = {page for row in _rows("node") for page in re.findall(r"\(web/docs/(\w+)\.md\)", row[0])}
    assert linked == pages


def test_readme_quotes_messages_as_they_are():
    """Each message of the table of errors is in the code; `...` stands for what a run fills in."""
    texts = [
        text for folder in ("nodes", "samplers") for path in (ROOT / folder).rglob("*.py") for text in _texts(path)
    ]
    for message in (message for row in _rows("message") for message in re.findall("`(.+?)`", row[0])):
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("...")))
        assert any(pattern.search(text) for text in texts), message


def _rows(first: str) -> list[list[str]]:
    """The cells of the table of README.md whose header begins with this word."""
    table = README.read_text().split(f"\n| {first} |")[1].split("\n\n")[0]
    return [row.strip("| ").split(" | ") for row in table.splitlines()[2:] if row.startswith("|")]


def _texts(path: Path) -> Iterator[str]:
    """The strings of a module; `...` in the place of what an f-string fills in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_a_name_that_ksampler_has_needs_no_option_there():
    """Its lists have none; and CFG++ is set there in another node than in ours."""
    rows = re.findall(r"^\| (`.+?`) \| (`.+?) \| (yes)? ?\| (.*?) ?\|$", NAMES_PAGE.read_text(), re.MULTILINE)
    assert len(rows) > 100
    for name, choose, shown, remark in rows:
        id, options = re.fullmatch(r"`(\w+)`(.*)", choose).groups()
        assert bool(shown) == (not options and any(id in all and all[id].curated for all in (SAMPLERS, SCHEDULES)))
        assert "`cfg_pp`" not in remark or "Few-Step Guidance Patch" in remark, name
    assert {name for name, _, shown, _ in rows if shown}.isdisjoint({"`res_3m`", "`uni_pc`", "`TCDScheduler`"})


def test_code_runs():
    """Of docs/LIBRARY.md, one block after the other; what they take from their reader is given here."""
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = {"prompt": torch.ones(1, 7, 4), "negative": torch.zeros(1, 7, 4)}

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(4, 4, 1)

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            assert len(x_t) == len(t) == len(context) and t.max() <= 999
            return self.layer(x_t) * context.mean()

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "LIBRARY.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        names = {"noise": noise, "network": Network(), "model": lambda x, sigma: x / 2, **text}
        exec(block, names)
        assert names["image"].shape == noise.shape and names["image"].isfinite().all()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path):
    """To a file that is there, and to a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)", document.read_text()):
        if target.startswith("http"):
            continue
        file, _, heading = target.partition("#")
        path = document.parent / file if file else document
        assert path.exists(), target
        assert not heading or heading in _headings(path), target


def _headings(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_document_can_be_reached_from_the_readme():
    found, left = set(), [README]
    while left:
        document = left.pop().resolve()
        if document.suffix == ".md" and document not in found and document.exists():
            found.add(document)
            targets = re.findall(r"\]\(([^)#\s]+)", document.read_text())
            left += [document.parent / target for target in targets if not target.startswith("http")]
    assert {path.resolve() for path in DOCUMENTS} <= found


def test_registry_metadata():
    """The Comfy registry wants a name without "ComfyUI", and the licence that is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "fewstep"
    assert (ROOT / project["license"]["file"]).exists() and (ROOT / project["readme"]).exists()
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text()
