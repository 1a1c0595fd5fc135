"""Where a node is found in the host: its place in the menu, and the words that find it in the search box."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from comfy_api.latest import io


def host_node(id: str) -> Any:
    """A node of the host; None where it has none of that name."""
    return getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(id)


CATEGORY = f"{getattr(host_node('KSampler'), 'CATEGORY', 'sampling')}/Few-Step"
"""Beside the host's own: in sampling, since 2026 in model/sampling."""


def search_words(*words: str) -> dict[str, Any]:
    """An argument for `io.Schema` of hosts that know it. For those before, web/search.js has a few for each node."""
    return {"search_aliases": list(words)} if "search_aliases" in inspect.signature(io.Schema).parameters else {}
