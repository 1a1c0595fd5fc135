"""What helps a user: tooltips, help pages and translations cover every node and every input, and nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from host import ROOT
from messages import messages
from translations import LOCALES, aligned, digests, leaves, outdated, texts, with_pages

DOCS = ROOT / "web" / "docs"
PAGES = {path.stem: path for path in DOCS.glob("*.md")}
LONGEST = 60  # lines of a page
LARGEST = 60 * 1024  # bytes of a picture


@pytest.fixture
def nodes(comfyui) -> dict[str, Any]:
    """The nodes of the pack, by id."""
    pack = comfyui.nodes["FewStepSampler"].RELATIVE_PYTHON_MODULE
    return {id: cls for id, cls in comfyui.nodes.items() if getattr(cls, "RELATIVE_PYTHON_MODULE", None) == pack}


def test_every_node_has_a_page_that_names_every_input(nodes):
    assert nodes.keys() == PAGES.keys()
    for id, cls in nodes.items():
        text, schema = PAGES[id].read_text(), cls.define_schema()
        assert text.startswith(f"# {schema.display_name}\n")
        missing = [part.id for part in schema.inputs if f"`{part.id}`" not in text]
        assert not missing, f"{id}.md does not name {missing}"


@pytest.mark.parametrize("language", sorted(path.parent.name for path in LOCALES.glob("*/nodeDefs.json")))
@pytest.mark.parametrize("page", sorted(PAGES))
def test_translated_pages_have_the_parts_of_the_english_ones(page, language):
    """Where the front end looks for them: docs/<node>/<language>.md."""
    english, text = (
        PAGES[page].read_text(encoding="utf-8"),
        (DOCS / page / f"{language}.md").read_text(encoding="utf-8"),
    )
    names = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))[page]
    assert text.startswith(f"# {names['display_name']}\n")
    for part in (r"^#+ ", r"^\|", r"^\* ", r"!\[.+\]\((\S+)\)", r"arXiv (\d{4}\.\d{5})"):
        assert len(re.findall(part, text, re.MULTILINE)) == len(re.findall(part, english, re.MULTILINE)), part
    missing = [name for name in names["inputs"] if f"`{name}`" in english and f"`{name}`" not in text]
    assert not missing


@pytest.mark.parametrize("page", sorted(PAGES))
def test_pages_are_short_and_have_a_picture(page):
    text = re.sub("<!-- words -->.*<!-- /words -->", "", PAGES[page].read_text(), flags=re.DOTALL)  # a list to look in
    assert len(text.splitlines()) < LONGEST
    pictures = re.findall(r"!\[.+\]\((\S+)\)", text)
    assert f"images/{page}.png" in pictures, "tools/screenshots.py draws it"
    for picture in pictures:
        assert (DOCS / picture).stat().st_size <= LARGEST


def test_no_picture_without_a_page():
    assert {path.stem for path in (DOCS / "images").iterdir()} <= PAGES.keys()


def test_every_input_has_a_tooltip(nodes):
    for id, cls in nodes.items():
        assert not [part.id for part in cls.define_schema().inputs if not part.tooltip], id


FOR_AUTHORS = {"ARCHITECTURE", "EXTENDING", "LIBRARY", "PUBLISHING"}
SHORTHAND = re.compile(r"\bNFE\b|\btold\b|\bkept apart\b")


def test_texts_for_artists_have_no_shorthand(nodes):
    documents = [ROOT / "README.md", *PAGES.values(), *(ROOT / "demo").glob("*.md")]
    documents += [path for path in (ROOT / "docs").glob("*.md") if path.stem not in FOR_AUTHORS]
    said = {path.name: path.read_text(encoding="utf-8") for path in documents}
    said |= {".".join(where): text for where, text in leaves({id: texts(cls) for id, cls in nodes.items()})}
    said |= {text: text for text in messages()}
    assert not {where: found[0] for where, text in said.items() if (found := SHORTHAND.search(text))}


def test_the_readme_says_what_is_counted_before_it_counts():
    """Steps, evaluations and passes, once and above the first table that has numbers of them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before = text[: text.index("| evaluations |")]
    for word in ("step", "evaluation", "passes"):
        assert f"*{word}*" in before


def test_english_is_that_of_the_nodes():
    """A file for it would only repeat them."""
    assert not (LOCALES / "en").exists()


@pytest.mark.parametrize("path", sorted(LOCALES.glob("*/nodeDefs.json")), ids=lambda path: path.parent.name)
def test_translations_are_complete(nodes, path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found == aligned({id: texts(cls) for id, cls in nodes.items()}, found), "run tools/translations.py"
    missing = [where for where, text in leaves(found) if not text.strip()]
    assert not missing


@pytest.mark.parametrize("path", sorted(LOCALES.glob("*/english.json")), ids=lambda path: path.parent.name)
def test_translations_are_of_the_english_of_now(nodes, path):
    english = with_pages({id: texts(cls) for id, cls in nodes.items()})
    old = [".".join(where) for where in outdated(english, json.loads(path.read_text(encoding="utf-8")))]
    assert not old, "translate these again, then run tools/translations.py --reviewed"


def test_an_english_text_that_has_changed_is_found():
    english = {"Node": {"display_name": "A node", "inputs": {"steps": {"tooltip": "How many."}}}}
    made_from = digests(english)
    assert not outdated(english, made_from)
    english["Node"]["inputs"]["steps"]["tooltip"] = "How many steps."
    assert outdated(english, made_from) == [("Node", "inputs", "steps", "tooltip")]
    assert len(outdated(english, {})) == 2


def test_every_language_has_both_files():
    assert {path.parent for path in LOCALES.glob("*/english.json")} == {
        path.parent for path in LOCALES.glob("*/nodeDefs.json")
    }


def test_translations_mean_what_they_say():
    """The front end takes { } @ | for its own syntax, but for what it never asks for, our messages."""
    for path in [*LOCALES.glob("*/nodeDefs.json"), *LOCALES.glob("*/main.json")]:
        texts = leaves(json.loads(path.read_text(encoding="utf-8")))
        wrong = [where for where, text in texts if where[0] != "fewstep" and set(text) & set("{}@|")]
        assert not wrong, path


def test_chinese_is_chinese():
    found = json.loads((LOCALES / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    english = [
        where
        for where, text in leaves(found)
        if where[-1] in ("tooltip", "description", "display_name") and not re.search("[\u4e00-\u9fff]", text)
    ]
    assert not english
