"""Which files of nodes/ may import which others: groups of nodes, then nodes/ui, then nodes/host, then samplers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import ROOT

ABOVE_THE_GROUPS = {"nodes/__init__.py", "nodes/routes.py", "nodes/requests.py"}
MODULES = sorted((ROOT / "nodes").rglob("*.py"))


def imported(path: Path) -> Iterator[Path]:
    """The files and folders of the pack that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            yield folder.joinpath(*(node.module or "").split("."))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    name, found = path.relative_to(ROOT).as_posix(), {p.relative_to(ROOT).as_posix() for p in imported(path)}
    if name.startswith("nodes/host/"):
        allowed = ("samplers", "nodes/host/")
    elif name.startswith("nodes/ui/"):
        allowed = ("samplers", "nodes/host/", "nodes/ui/")
    elif name in ABOVE_THE_GROUPS:
        allowed = ("samplers", "nodes")
    else:  # a group of nodes stands without the others: a host to come may not bear one of them
        allowed = ("samplers", "nodes/host/", "nodes/ui/")
    assert not [other for other in found if not other.startswith(allowed)]
