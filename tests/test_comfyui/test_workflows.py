"""The example workflows, each run by the real host to a saved image, at small size and with stand-in checkpoints.

`make workflows` makes workflows/*.json, which the front end opens, and tests/prompts/*.json, their prompts, which the
front end itself is found to make of them, too (tests/browser).
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import os
import urllib.parse
import urllib.request
from copy import deepcopy

import numpy as np
import pytest
from host import GIVEN, ROOT, Server, server
from PIL import Image
from standins import write_checkpoint, write_node
from thumbnail import thumbnail
from wires import TITLE, hidden, wires
from workflow import LOWER, inputs, refusals, to_prompt

from workflows import FOLDER, LIGHTNING, PROMPTS, REFINER, SCHNELL, SD15, SDXL, WORKFLOWS, make, written

CHECKPOINTS = {
    SD15["name"]: "SD15.ckpt",
    SDXL["name"]: "SDXL.ckpt",
    REFINER["name"]: "SDXLRefiner.ckpt",
    LIGHTNING["name"]: "SDXL.ckpt",
}

# What is made smaller: numbers by input, at most so much; nodes that sample many times. Nothing else is changed.
SMALL = {"width": 64, "height": 64, "steps": 6, "step": 4, "batch_size": 1, "upscale": 2, "tile": 64}
SHORT = {
    "FewStepCalibrate": {"evaluations": 2, "samples": 1, "teacher_steps": 4, "rounds": 1, "base": "dpmpp_2m"},
    "FewStepDistill": {"evaluations": 1, "samples": 1, "teacher_steps": 2, "iterations": 1, "batch": 1, "rank": 4},
    "FewStepCompare": {"samplers": "euler\nfewstep_ipndm_v", "steps": "3", "reference_steps": 6},
    "FewStepDiffEditMask": {"noises": 2},
    "ImageScale": {"height": 96},
}

# Sides of the image that comes out, by a part of the name; else 64.
SIDES = {
    "Demo compare": None,
    "Demo": (64, 64),
    "image to image": (96, 96),
    "inpainting": (96, 96),
    "edit": (96, 96),
    "DiffEdit": (96, 96),
    "hires fix": (128, 128),
    "compare": None,
}

LETTER = 13  # width in the title of a group
BADGE = 20  # height of what the front end draws over a title

# Those that share checkpoints one after the other: the host then keeps them, and the text that it has encoded.
NAMES = sorted(WORKFLOWS, key=lambda name: (name.startswith("SDXL"), list(WORKFLOWS).index(name)))


def small(prompt: dict) -> dict:
    """A workflow's prompt for stand-in checkpoints, 64 pixels and few steps."""
    prompt = deepcopy(prompt)
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if name in SMALL and isinstance(value, int | float):
                node["inputs"][name] = min(value, SMALL[name])
        node["inputs"] |= SHORT.get(node["class_type"], {})
        if node["inputs"].get("ckpt_name") == SCHNELL["name"]:
            node |= {"class_type": "StandInFluxSchnell", "inputs": {}}
        elif "ckpt_name" in node["inputs"]:
            node["inputs"]["ckpt_name"] = CHECKPOINTS[node["inputs"]["ckpt_name"]]
    return prompt


@pytest.fixture(scope="module")
def host(comfy_process, tmp_path_factory) -> Server:
    """A server with folders of its own: the pack, stand-in checkpoints, and a picture with a hole in it."""
    base = tmp_path_factory.mktemp("base")
    for folder in ("custom_nodes", "models/checkpoints", "input", "output"):
        (base / folder).mkdir(parents=True)
    os.symlink(ROOT, base / "custom_nodes" / "fewstep", target_is_directory=True)
    for name in set(CHECKPOINTS.values()):
        write_checkpoint(name.removesuffix(".ckpt"), base / "models" / "checkpoints" / name)
    write_node(base / "models" / "checkpoints" / "SD15.ckpt", base / "custom_nodes" / "standin.py")
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    picture[..., 3] = 255
    picture[16:48, 16:48, 3] = 0
    Image.fromarray(picture).save(base / "input" / "example.png")
    with server(base / "server.log", "--base-directory", str(base)) as running:
        yield running


@pytest.fixture(scope="module")
def object_info(host) -> dict:
    return host.get("/object_info")


def saved(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def run(host: Server, prompt: dict) -> list[str]:
    spec = importlib.util.spec_from_file_location("demo_run", ROOT / "demo" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return asyncio.run(module.run(host.url, prompt))


def test_titles_are_shown_whole():
    """ComfyUI cuts them where they are wider than the small picture."""
    assert max(map(len, WORKFLOWS)) <= 27


def test_every_workflow_is_known():
    for folder in (FOLDER, PROMPTS):
        assert {path.stem for path in folder.glob("*.json")} == set(WORKFLOWS)


@pytest.mark.skipif(GIVEN is not None, reason="they are made with the ComfyUI of `make setup`, and name its version")
@pytest.mark.parametrize("name", NAMES)
def test_files_are_what_the_tool_makes(object_info, host, name):
    """After a change of a node: make workflows."""
    version = host.get("/system_stats")["system"]["comfyui_version"]
    assert (FOLDER / f"{name}.json").read_text() == written(make(name, object_info, version))


@pytest.mark.parametrize("name", NAMES)
def test_prompt_is_that_of_the_workflow_and_fits_this_host(object_info, name):
    """Every required input is given, none is unknown, and every value is one of those that the node takes."""
    text = (PROMPTS / f"{name}.json").read_text()
    assert text == written(to_prompt(saved(name), object_info))
    assert refusals(json.loads(text), object_info) == []


def test_what_a_host_would_refuse_is_found(object_info):
    prompt = json.loads((PROMPTS / "SD1.5 image to image.json").read_text())
    ids = {node["class_type"]: id for id, node in prompt.items()}
    given = {kind: prompt[id]["inputs"] for kind, id in ids.items()}
    given["ImageScale"] |= {"upscale_method": "best", "more": 1}
    del given["ImageScale"]["crop"]
    given["KSampler"] |= {"steps": 0, "cfg": "7", "model": [ids["LoadImage"], 0]}
    prompt[ids["SaveImage"]]["class_type"] = "NoSuchNode"
    assert sorted(refusals(prompt, object_info)) == [
        "ImageScale.crop: required, and not given",
        "ImageScale.more: no such input",
        "ImageScale.upscale_method: 'best' is no choice",
        "KSampler.cfg: '7' is no FLOAT",
        "KSampler.model: takes MODEL, and LoadImage does not give it",
        "KSampler.steps: 0 is out of range",
        "NoSuchNode: no such node",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_prompt_has_the_values_of_the_workflow(object_info, name):
    """Nodes, inputs and values are those of the graph, and the host knows them all."""
    workflow, prompt = saved(name), json.loads((PROMPTS / f"{name}.json").read_text())
    nodes = {str(node["id"]): node for node in workflow["nodes"] if node["type"] in object_info}
    assert {id: node["type"] for id, node in nodes.items()} == {id: n["class_type"] for id, n in prompt.items()}
    for id, node in nodes.items():
        known = [field.name for field in inputs(object_info[node["type"]])]
        given = prompt[id]["inputs"]
        assert set(given) <= set(known)
        links = {slot["name"] for slot in node["inputs"] if slot["link"]}
        shown = [value for value in node["widgets_values"] if value not in ("fixed", "image")]
        assert [given[name] for name in known if name in given and name not in links] == shown
    for link, source, slot, target, place, kind in workflow["links"]:
        output, end = nodes[str(source)]["outputs"][slot], nodes[str(target)]["inputs"][place]
        assert link in output["links"] and link == end["link"] and kind == output["type"]
        assert end["type"] in (kind, "*")
        assert prompt[str(target)]["inputs"][end["name"]] == [str(source), slot]


def test_every_workflow_has_a_small_picture_of_its_own():
    """Those with a checkpoint are drawn as the tool draws them; those on the demo model show what it makes."""
    seen = set()
    for name in NAMES:
        path = FOLDER / f"{name}.jpg"
        pixels = np.asarray(Image.open(path))
        assert path.stat().st_size < 40_000 and pixels.shape == (400, 640, 3)
        seen.add(pixels[::8, ::8].tobytes())
        if "Checkpoint" in (FOLDER / f"{name}.json").read_text():
            drawn = np.asarray(thumbnail(name, saved(name)))
            assert np.abs(drawn.astype(int) - pixels).mean() < 3  # JPEG
    assert len(seen) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_says_what_it_needs(name):
    """A note names each checkpoint; a node says of which pack it is, and a loader where its file is found."""
    nodes = saved(name)["nodes"]
    notes = "\n".join(node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    for node in nodes:
        if node["type"] == "CheckpointLoaderSimple":
            (model,) = node["properties"]["models"]
            assert model["name"] == node["widgets_values"][0] and f"**{model['name']}**" in notes
            assert model["url"].endswith(model["name"]) and model["directory"] == "checkpoints"
        if node["type"] == "MarkdownNote":
            assert "`" not in node["widgets_values"][0]  # code is not readable on a coloured note
        else:
            assert node["properties"]["cnr_id"] == ("fewstep" if "FewStep" in node["type"] else "comfy-core")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_lies_on_something_else(name):
    """Nodes do not overlap, with room for what is drawn over their titles, and every node lies in a group; wires pass
    behind no node, and those that are named in a prompt lead to the right or through reroutes.

    tests/browser/layout.mjs looks at the same in the front end, in both of its designs.
    """
    workflow = saved(name)
    boxes = {node["id"]: (*node["pos"], *node["size"]) for node in workflow["nodes"]}
    whole = {id: (x, y - TITLE, width, height + TITLE) for id, (x, y, width, height) in boxes.items()}
    for id, (x, y, width, height) in whole.items():
        for other, (left, top, wide, high) in whole.items():
            apart = x + width <= left or left + wide <= x or y + height <= top - BADGE or top + high <= y - BADGE
            assert id == other or apart
        assert any(
            gx <= x and gy <= y and x + width <= gx + gw and y + height <= gy + gh
            for gx, gy, gw, gh in (group["bounding"] for group in workflow["groups"])
        )
    assert hidden(workflow, whole) == []


@pytest.mark.parametrize("name", NAMES)
def test_no_wire_goes_over_the_title_of_a_group(name):
    """From its second letter on; and titles are no wider than their groups. With Vue nodes, reroutes are lower."""
    workflow = saved(name)
    over = []
    for group in workflow["groups"]:
        left, top, width, _ = group["bounding"]
        right = left + LETTER * len(group["title"])
        assert right <= left + width
        for (link, way), lower in itertools.product(wires(workflow), (0, LOWER)):
            if any(left + LETTER < x < right and top + 6 < y + lower < top + 28 for x, y in way):
                over.append((group["title"], link[1], link[3], lower))
    assert over == []


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_is_seen_on_a_small_screen(name):
    """The front end shows nodes in three quarters of it: at 65 % or more, and titles of groups below its own things."""
    workflow = saved(name)
    left, top = (min(node["pos"][k] for node in workflow["nodes"]) for k in (0, 1))
    right, bottom = (max(node["pos"][k] + node["size"][k] for node in workflow["nodes"]) for k in (0, 1))
    scale = min(0.75 * 1366 / (right - left + 20), 0.75 * 768 / (bottom - top + TITLE + 20))
    assert scale >= 0.65
    view = workflow["extra"]["ds"]
    assert view["scale"] == pytest.approx(scale, abs=1e-3)
    for x, y, width, height in (group["bounding"] for group in workflow["groups"]):
        seen = [
            view["scale"] * (value + view["offset"][k % 2]) for k, value in enumerate((x, y, x + width, y + height))
        ]
        assert seen[0] >= 60 and seen[1] >= 90 and seen[2] <= 1366 and seen[3] <= 768


def test_a_wire_behind_a_node_is_found():
    workflow = saved(NAMES[0])
    (link, way), *_ = wires(workflow)
    x, y = way[len(way) // 2]
    box = (x - 5, y - 5, 10, 10)
    assert hidden(workflow, {99: box})[0].startswith(f"the wire from node {link[1]} to node {link[3]}")
    assert hidden(workflow, {99: (x - 5, y + 2000, 10, 10)}) == []


@pytest.mark.parametrize(
    "name", [name if "emo" in name else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_workflow_runs_to_an_image(host, name):
    prompt = small(json.loads((PROMPTS / f"{name}.json").read_text()))
    prefixes = [n["inputs"]["filename_prefix"] for n in prompt.values() if n["class_type"] == "SaveImage"]
    images = [image for image in run(host, prompt) if image.startswith(tuple(prefixes))]
    assert len(images) == len(prefixes)
    sides = next((sides for part, sides in SIDES.items() if part in name), (64, 64))
    for image in images:
        pixels = np.asarray(Image.open(host.log.parent / "output" / image))
        assert sides is None or pixels.shape == (*sides, 3)
        assert pixels.std() > 2


def test_templates_can_be_opened(host):
    """The list that the front end shows, and the file behind each entry, by the address that it asks for."""
    assert sorted(host.get("/api/workflow_templates")["fewstep"]) == sorted(path.stem for path in FOLDER.glob("*.json"))
    for path in FOLDER.glob("*.json"):
        address = urllib.parse.quote(f"/api/workflow_templates/fewstep/{path.name}", safe="/+,")
        with urllib.request.urlopen(host.url + address) as answer:
            assert json.loads(answer.read()) == json.loads(path.read_text())


def test_an_unknown_node_or_value_is_refused(object_info):
    """By the converter, as by the front end."""
    workflow = saved(NAMES[0])
    node = workflow["nodes"][-1]
    node["widgets_values"].append("more")
    with pytest.raises(ValueError, match="1 values too many"):
        to_prompt(workflow, object_info)
    node["widgets_values"] = []
    with pytest.raises(ValueError, match=f"no value for {node['type'] and 'filename_prefix'}"):
        to_prompt(workflow, object_info)
    node["type"] = "NoSuchNode"
    with pytest.raises(ValueError, match="'NoSuchNode'; is its pack installed"):
        to_prompt(workflow, object_info)
    node["type"], node["mode"] = "SaveImage", 4
    with pytest.raises(ValueError, match="bypassed"):
        to_prompt(workflow, object_info)


def test_inputs_newer_than_a_workflow_are_at_their_defaults(object_info):
    """As in the front end: workflows that were saved before an input was there still open and run."""
    workflow = saved("SDXL in 10 steps")
    sampler = next(node for node in workflow["nodes"] if node["type"] == "FewStepSampler")
    whole = to_prompt(workflow, object_info)
    sampler["widgets_values"] = sampler["widgets_values"][:1]
    assert to_prompt(workflow, object_info) == whole
