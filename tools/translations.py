"""Brings locales/*/nodeDefs.json in line with the nodes: entries of what is gone go, those of what is new come, empty.

    .host/venv/bin/python tools/translations.py

English needs no file: the host takes it from the nodes themselves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from host import ROOT, import_comfyui, import_pack

LOCALES = ROOT / "locales"


def texts(cls: Any) -> dict[str, Any]:
    """What a node shows, in the shape of a locale file."""
    schema = cls.define_schema()

    found = {"display_name": schema.display_name}
    if schema.description:
        found["description"] = schema.description
    inputs = {part.id: {"name": part.id} | _tooltip(part) for part in schema.inputs}
    outputs = {
        str(i): {"name": output.display_name or output.get_io_type()} | _tooltip(output)
        for i, output in enumerate(schema.outputs)
    }
    return found | {"inputs": inputs, "outputs": outputs}


def _tooltip(part: Any) -> dict[str, str]:
    return {"tooltip": part.tooltip} if part.tooltip else {}


def aligned(wanted: Any, found: Any) -> Any:
    """`found` with the keys of `wanted`, and nothing where it has none."""
    if isinstance(wanted, Mapping):
        found = found if isinstance(found, Mapping) else {}
        return {key: aligned(part, found.get(key)) for key, part in wanted.items()}
    return found if isinstance(found, str) else ""


def main() -> None:
    import_comfyui()
    nodes = asyncio.run(asyncio.run(import_pack().comfy_entrypoint()).get_node_list())
    wanted = {cls.define_schema().node_id: texts(cls) for cls in nodes}
    for path in sorted(LOCALES.glob("*/nodeDefs.json")):
        after = aligned(wanted, json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(after, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
