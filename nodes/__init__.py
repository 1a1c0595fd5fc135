"""ComfyUI nodes: thin wrappers around `samplers`.

Each group of nodes is imported on its own: what a host to come does not bear is left out, with a line in the log, and
the rest of the pack works.
"""

import functools
import importlib.util
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_api.latest import ComfyExtension, io

from .needs import missing

__all__ = ["comfy_entrypoint", "register"]

GROUPS = (
    ".ksampler", ".sampling", ".parts", ".guidance", ".plans", ".inversion", ".auto", ".compare", ".side_by_side",
    ".trajectory", ".calibrate", ".distill",
    "..demo.nodes",
)  # fmt: skip
"""Modules with a list NODES each, in the order of the host's lists."""

REGISTERED = {
    "the folder models/fewstep": (".host.plan_files", "register_folder"),
    "the plots in the nodes": (".routes", "register_routes"),
    "the names of samplers in ComfyUI's lists": (".registration", "register_samplers"),
    "the names of schedules in ComfyUI's lists": (".registration", "register_schedules"),
}
"""What the host hears of, and by which function."""


@functools.cache
def _tell(text: str, *, with_trace: bool = False) -> None:
    """A warning in the log, once."""
    logging.warning("Few-Step: %s. The rest works; look for a newer Few-Step", text, exc_info=with_trace)


def _attempt(what: str, work: Callable[[], Any]) -> Any:
    """What some work gives. If it fails, the log says so, and what it was for is left out: None."""
    try:
        return work()
    except Exception as error:  # of a host to come: anything
        known = isinstance(error, ImportError | AttributeError)
        _tell(f"left out: {what}: {type(error).__name__}: {error}", with_trace=not known)
        return None


def _nodes() -> list[type[io.ComfyNode]]:
    """All that can be imported."""
    nodes: list[type[io.ComfyNode]] = []
    for name in GROUPS:
        module = _attempt(_names(name), functools.partial(importlib.import_module, name, __package__))
        nodes += [] if module is None else module.NODES
    return nodes


def _names(module: str) -> str:
    """The nodes of a group, from its source: it may be one that cannot be imported."""
    found = importlib.util.find_spec(module, __package__)
    source = Path(found.origin).read_text(encoding="utf-8") if found and found.origin else ""
    return ", ".join(re.findall(r"^class (\w+)\(io\.ComfyNode\)", source, re.MULTILINE)) or module


def register() -> None:
    """Tell the host of the folder for plans, of the routes of the front end, and of our samplers and schedules."""
    for what, (name, function) in REGISTERED.items():
        _attempt(what, functools.partial(_call, name, function))


def _call(module: str, function: str) -> None:
    getattr(importlib.import_module(module, __package__), function)()


def loaded() -> list[type[io.ComfyNode]]:
    """Those whose inputs and outputs this host knows."""
    return [node for node in _NODES if _attempt(node.__name__, node.GET_SCHEMA) is not None]


class FewStep(ComfyExtension):
    async def on_load(self) -> None:
        """Called by hosts of 2026. Those before do not, so that the import registers, too; what is there stays."""
        register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return loaded()


async def comfy_entrypoint() -> FewStep:
    return FewStep()


_NODES = _nodes()
for _affected, _lacks in missing().items():
    _tell(f"this ComfyUI has no {', '.join(_lacks)}; affected: {_affected}")
