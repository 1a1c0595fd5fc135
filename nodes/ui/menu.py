"""Where a node is found in the host: its place in the menu, and the words that find it in the search box."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ...samplers import SAMPLERS


def host_node(id: str) -> Any:
    """A node of the host; None where it has none of that name."""
    return getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(id)


CATEGORY = f"{getattr(host_node('KSampler'), 'CATEGORY', 'sampling')}/Few-Step"
"""Beside the host's own: in sampling, since 2026 in model/sampling. Nodes that sample; the others are in submenus."""
GUIDANCE, PLANS, EDITING, COMPARING, DEMO = (
    f"{CATEGORY}/{submenu}" for submenu in ("guidance", "plans", "editing", "comparing", "demo")
)

KNOWN_NAMES: Mapping[str, Mapping[str, Mapping[str, Any]]] = json.loads(
    Path(__file__).parents[1].joinpath("known_names.json").read_text(encoding="utf-8")
)
"""What to choose here, for what samplers and schedules are called elsewhere: by kind, by whose name it is, by name.

What to choose is a name of ours, with options that differ from their defaults in brackets; or that and a remark.
"""

_heard: list[str] = []


def search_words(*words: str) -> dict[str, Any]:
    """An argument for `io.Schema` of hosts that know it. From others web/search.js gets the words by `words_of`."""
    _heard[:] = dict.fromkeys(words)
    return {"search_aliases": [*_heard]} if "search_aliases" in inspect.signature(io.Schema).parameters else {}


def words_of(node: type[io.ComfyNode]) -> list[str]:
    """The search words of a node, whatever host this is."""
    _heard.clear()
    node.define_schema()
    return [*_heard]


def also_called() -> dict[str, list[str]]:
    """What ComfyUI and RES4LYF call samplers of ours, with some of their options, where it is another name."""
    found: dict[str, list[str]] = {}
    for whose in ("ComfyUI", "RES4LYF"):
        for name, ours in KNOWN_NAMES["samplers"][whose].items():
            node, device = name != name.lower(), name.endswith("_gpu")  # which are the same, elsewhere
            if isinstance(ours, str) and name not in SAMPLERS and not node and not device:
                found.setdefault(ours.split()[0], []).append(name)
    return found


def known_names(kind: str) -> list[str]:
    """What `samplers` or `schedules` are called elsewhere."""
    return [*dict.fromkeys(name for names in KNOWN_NAMES[kind].values() for name in names)]
