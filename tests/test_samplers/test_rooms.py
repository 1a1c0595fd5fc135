"""Imports between rooms, read from the source: those below never import those above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = [  # of samplers/, from below; an entry is a module or a folder
    {"phi", "checks", "distributed"},
    {"levels", "options"},
    {"plan", "noise", "spec"},
    {"integrate", "detail", "gaussian"},
    {"processes", "sampler", "schedule", "denoisers", "guidance", "trajectory", "inversion"},
    {"solvers", "schedules", "chain"},
    {"calibrated", "distill"},
]


def imports(path: Path) -> set[str]:
    """The modules that a file imports, with dots, from the root of the pack where they are its own.

    What is imported from a folder may be a module of it: `from ..samplers import guidance` is samplers.guidance.
    """
    folder = list(path.relative_to(ROOT).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            place = ROOT.joinpath(*module.split("."))
            names = [alias.name for alias in node.names]
            inner = {n for n in names if place.is_dir() and ((place / n).is_dir() or (place / f"{n}.py").exists())}
            found |= {f"{module}.{name}" for name in inner} | ({module} if len(inner) < len(names) else set())
    return found


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def room_of(module: str) -> str:
    """The part of samplers/ that a module belongs to, without its own name in a folder."""
    return module.split(".")[1] if "." in module else ""


def floor_of(room: str) -> int:
    return next(k for k, rooms in enumerate(FLOORS) if room in rooms)


def test_every_part_of_samplers_has_its_floor():
    folder = ROOT / "samplers"
    parts = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert parts - {"__init__"} == set().union(*FLOORS)


@pytest.mark.parametrize("path", files("samplers"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_samplers_import_nothing_of_the_nodes_and_nothing_from_above(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for module in imports(path):
        package = module.split(".")[0]
        assert package not in {"nodes", "webui", "comfy", "comfy_api", "bench", "demo", "tools"}, module
        if package != "samplers" or own == "samplers.__init__":
            continue
        assert module != "samplers", "the top of samplers/ is for those outside"
        mine, theirs = room_of(own), room_of(module)
        assert mine == theirs or floor_of(theirs) <= floor_of(mine), f"{own} imports {module} from above"


@pytest.mark.parametrize("package", ["samplers", "nodes"])
def test_no_circle_of_modules(package):
    graph: dict[str, set[str]] = {}
    for path in files(package):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[own] = {module for module in imports(path) if module.startswith(f"{package}.")}
    del graph[package]
    open_, done = [], set()

    def visit(module: str) -> None:
        assert module not in open_, f"a circle: {' -> '.join([*open_[open_.index(module) :], module])}"
        if module in done:
            return
        open_.append(module)
        for other in graph[module]:
            visit(other)
        done.add(open_.pop())

    for module in graph:
        visit(module)


def test_the_adapter_to_the_host_imports_no_group_of_nodes():
    groups = {f"nodes.{path.stem}" for path in (ROOT / "nodes").glob("*.py") if path.stem != "__init__"}
    for path in files("nodes/host"):
        above = imports(path) & groups
        assert not above, f"{path.relative_to(ROOT)} imports {above}"
