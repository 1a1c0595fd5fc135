"""Words that find a node in the host's search box, beside its name."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io


def search_words(*words: str) -> dict[str, Any]:
    """An argument for `io.Schema` of hosts that know it. For those before, web/search.js has a few for each node."""
    return {"search_aliases": list(words)} if "search_aliases" in inspect.signature(io.Schema).parameters else {}
