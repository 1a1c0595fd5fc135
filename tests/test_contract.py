"""What users save in workflows and files, and so must stay. contract.json is its list.

Something new is added to the list, at the end where the list is ordered: widget values are saved by position.
Nothing is taken from it. `UPDATE_CONTRACT=1 .host/venv/bin/python -m pytest tests/test_contract.py` adds what is
new.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from samplers import SAMPLERS, SCHEDULES

CONTRACT = Path(__file__).with_name("contract.json")
FILES = {"file", "start_from"}  # inputs whose choices are the user's own files


@pytest.fixture
def current(comfyui) -> dict:
    def specs(registry) -> dict:
        return {
            id: {
                "dropdown": f"fewstep_{id}" if spec.curated else None,
                "options": {o.name: {"default": o.default, "choices": list(o.choices)} for o in spec.options},
            }
            for id, spec in registry.items()
        }

    def field(input) -> dict:
        known = {"id": input.id, "type": input.get_io_type()}
        if getattr(input, "default", None) is not None:
            known["default"] = input.default
        if getattr(input, "options", None) and input.id not in FILES:
            known["choices"] = list(input.options)
        return known

    def node(cls) -> dict:
        schema = cls.define_schema()
        return {
            "inputs": [field(input) for input in schema.inputs],
            "outputs": [o.get_io_type() for o in schema.outputs],
        }

    return {
        "samplers": specs(SAMPLERS),
        "schedules": specs(SCHEDULES),
        "nodes": {id: node(cls) for id, cls in sorted(comfyui.nodes.items()) if id.startswith("FewStep")},
    }


def test_nothing_that_users_saved_is_gone(current):
    landed = json.loads(CONTRACT.read_text())
    for kind in ("samplers", "schedules"):
        for id, spec in landed[kind].items():
            assert id in current[kind]
            assert spec["dropdown"] in (None, current[kind][id]["dropdown"])
            for name, option in spec["options"].items():
                now = current[kind][id]["options"][name]
                assert now["default"] == option["default"], "another default is another image from the same workflow"
                assert set(option["choices"]) <= set(now["choices"])
    for id, node in landed["nodes"].items():
        for before, now in zip(node["inputs"], current["nodes"][id]["inputs"], strict=False):
            assert (now["id"], now["type"]) == (before["id"], before["type"]), "new inputs go to the end"
            assert now.get("default") == before.get("default"), "prompts for the API may leave it out"
            assert set(before.get("choices", [])) <= set(now.get("choices", []))
        assert len(current["nodes"][id]["inputs"]) >= len(node["inputs"])
        assert current["nodes"][id]["outputs"][: len(node["outputs"])] == node["outputs"]


def test_what_is_new_is_written_down(current):
    if os.environ.get("UPDATE_CONTRACT"):
        CONTRACT.write_text(json.dumps(current, indent=1) + "\n")
    assert json.loads(CONTRACT.read_text()) == current, "see the head of this file for how to add what is new"
