"""Brings locales/ in line with what the pack says: entries of what is gone go, those of what is new come, empty.

    .host/venv/bin/python tools/translations.py
    .host/venv/bin/python tools/translations.py --reviewed

For each language there are

* nodeDefs.json, what the nodes show. English needs no file: the host takes it from the nodes themselves.
* main.json, under "fewstep": messages (see messages.py), by their English. One that has changed is another message, and
  the translation of the old one is printed as it goes.
* web/docs/<node>/<language>.md, the help pages.
* english.json, a digest of the English that each text of a node and each help page was translated from. Where the
  English has changed since, the translation is printed, and a test fails. Bring it up to date, or see that it still
  fits, and say `--reviewed`.
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
from messages import messages

LOCALES, DOCS = ROOT / "locales", ROOT / "web" / "docs"


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


def with_pages(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of all nodes, each with its help page."""
    return {id: own | {"page": (DOCS / f"{id}.md").read_text(encoding="utf-8")} for id, own in nodes.items()}


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
    pages = with_pages(wanted)
    said, english = {text: text for text in messages()}, dict(leaves(wanted))
    for folder in sorted(path.parent for path in LOCALES.glob("*/nodeDefs.json")):
        nodes, main = aligned(wanted, read(folder / "nodeDefs.json")), read(folder / "main.json")
        write(folder / "nodeDefs.json", nodes)
        known = main.get("fewstep", {})
        for text in sorted(known.keys() - said):
            print(f"{folder.name}: no longer said\n  {text}\n  {known[text]}")
        write(folder / "main.json", main | {"fewstep": aligned(said, known)})
        made_from = read(folder / "english.json")
        translated = dict(leaves(nodes))
        for where in outdated(pages, made_from):
            if where[-1] == "page":
                print(f"{folder.name}: web/docs/{where[0]}/{folder.name}.md, from web/docs/{where[0]}.md")
            else:
                print(f"{folder.name}: {'.'.join(where)}\n  {english[where]}\n  {translated[where]}")
        write(folder / "english.json", digests(pages) if options.reviewed else aligned(pages, made_from))


if __name__ == "__main__":
    main()
