"""What the documents say is what the code does."""

from __future__ import annotations

import re

import tomllib
import torch
from host import ROOT
from tables import README, with_tables


def test_readme_tables_are_those_of_the_registry():
    text = README.read_text()
    assert with_tables(text) == text, "run `python tools/tables.py`"


def test_readme_code_runs():
    """One block after the other; what they take from their reader is given here."""
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = {"prompt": torch.ones(1, 7, 4), "negative": torch.zeros(1, 7, 4)}

    def network(x_t: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        assert len(x_t) == len(t) == len(context) and t.max() <= 999
        return x_t * context.mean()

    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        names = {"noise": noise, "network": network, "model": lambda x, sigma: x / 2, **text}
        exec(block, names)
        assert names["image"].shape == noise.shape and names["image"].isfinite().all()


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
