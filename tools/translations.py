"""Brings locales/*/nodeDefs.json in line with the nodes: entries of what is gone go, those of what is new come, empty.

    .host/venv/bin/python tools/translations.py
    .host/venv/bin/python tools/translations.py --reviewed

English needs no file: the host takes it from the nodes themselves. Beside each nodeDefs.json lies english.json, which
holds for each translation a digest of the English text that it was made from. Where the English has changed since, the
translation is printed, and a test fails. Bring it up to date, or see that it still fits, and say `--reviewed`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
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


def digests(wanted: Any) -> Any:
    """The same tree with a digest of each text."""
    if isinstance(wanted, Mapping):
        return {key: digests(part) for key, part in wanted.items()}
    return hashlib.sha256(wanted.encode()).hexdigest()[:8]


def leaves(part: Any, *above: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """All texts of a tree, each with the keys that lead to it."""
    if isinstance(part, Mapping):
        for key, below in part.items():
            yield from leaves(below, *above, key)
    else:
        yield above, part


def outdated(wanted: Any, made_from: Any) -> list[tuple[str, ...]]:
    """Where the English is another one than a translation was made from."""
    then = dict(leaves(made_from))
    return [where for where, digest in leaves(digests(wanted)) if then.get(where) != digest]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviewed", action="store_true", help="all translations fit the English of now")
    options = parser.parse_args()
    import_comfyui()
    nodes = asyncio.run(asyncio.run(import_pack().comfy_entrypoint()).get_node_list())
    wanted = {cls.define_schema().node_id: texts(cls) for cls in nodes}
    english = dict(leaves(wanted))
    for path in sorted(LOCALES.glob("*/nodeDefs.json")):
        translated, made_from = aligned(wanted, read(path)), path.with_name("english.json")
        write(path, translated)
        old = outdated(wanted, read(made_from))
        for where in old:
            print(f"{path.parent.name}: {'.'.join(where)}\n  {english[where]}\n  {dict(leaves(translated))[where]}")
        write(made_from, digests(wanted) if options.reviewed else aligned(wanted, read(made_from)))


if __name__ == "__main__":
    main()
