"""What the documents say is what the code does."""

from __future__ import annotations

import re

import tomllib
from host import ROOT
from tables import README, with_tables


def test_readme_tables_are_those_of_the_registry():
    text = README.read_text()
    assert with_tables(text) == text, "run `python tools/tables.py`"


def test_links_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("demo/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_registry_metadata():
    """The Comfy registry wants a name without "ComfyUI", and the licence that is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "fewstep"
    assert (ROOT / project["license"]["file"]).exists() and (ROOT / project["readme"]).exists()
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text()


def test_nothing_to_install_beyond_the_host():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert not [line for line in lines if line.strip() and not line.startswith("#")]
