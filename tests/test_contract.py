"""What users save in workflows and files, and so must stay. contract.json is its list.

Something new is added to the list, at the end of its own list where that is ordered: widget values are saved by
position. Nothing is taken from it.

    .host/venv/bin/python tests/test_contract.py        adds what is new to contract.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CONTRACT = Path(__file__).with_name("contract.json")


def current(nodes: dict) -> dict:
    from samplers import SAMPLERS, SCHEDULES

    def specs(registry) -> dict:
        return {
            id: {"dropdown": f"fewstep_{id}" if spec.curated else None, "options": sorted(o.name for o in spec.options)}
            for id, spec in registry.items()
        }

    def node(cls) -> dict:
        schema = cls.define_schema()
        return {"inputs": [i.id for i in schema.inputs], "outputs": [o.get_io_type() for o in schema.outputs]}

    return {
        "samplers": specs(SAMPLERS),
        "schedules": specs(SCHEDULES),
        "nodes": {id: node(cls) for id, cls in sorted(nodes.items()) if id.startswith("FewStep")},
    }


def test_nothing_that_users_saved_is_gone(comfyui):
    landed, now = json.loads(CONTRACT.read_text()), current(comfyui.nodes)
    for kind in ("samplers", "schedules"):
        for id, spec in landed[kind].items():
            assert id in now[kind]
            assert spec["dropdown"] in (None, now[kind][id]["dropdown"])
            assert set(spec["options"]) <= set(now[kind][id]["options"])
    for id, node in landed["nodes"].items():
        assert now["nodes"][id]["inputs"][: len(node["inputs"])] == node["inputs"], "new inputs go to the end"
        assert now["nodes"][id]["outputs"][: len(node["outputs"])] == node["outputs"]


def test_what_is_new_is_written_down(comfyui):
    now = current(comfyui.nodes)
    assert json.loads(CONTRACT.read_text()) == now, "run tests/test_contract.py to add what is new"


if __name__ == "__main__":
    import asyncio

    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tools")]
    from host import BASE, COMFYUI

    sys.path.insert(0, str(COMFYUI))
    sys.argv = sys.argv[:1]
    from comfy.cli_args import args

    args.cpu, args.base_directory = True, str(BASE)
    import nodes as host_nodes

    for pack in sorted((BASE / "custom_nodes").iterdir()):
        asyncio.run(host_nodes.load_custom_node(str(pack)))
    CONTRACT.write_text(json.dumps(current(host_nodes.NODE_CLASS_MAPPINGS), indent=1) + "\n")
