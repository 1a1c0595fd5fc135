"""The pack in a running ComfyUI, used over HTTP as a client does."""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp
import numpy as np
import pytest
from host import BASE, ROOT, SetupError
from PIL import Image
from workflow import to_prompt

from samplers import SAMPLERS, SCHEDULES
from samplers.calibrated.plan import load

BUILT_IN = "built-in: amed_dpm_2m (SD1.5, 10 evaluations)"
TEXT = 3  # the host's number of a binary message with a line of text: its node's name and the text


def demo_run():
    """demo/run.py, which is a script and not in a package."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("demo_run", ROOT / "demo" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def prompt(running_host, demo_workflow) -> dict:
    return to_prompt(demo_workflow, running_host.get("/object_info"))


def images(running_host, prompt: dict) -> list[np.ndarray]:
    names = asyncio.run(demo_run().run(running_host.url, prompt))
    folder = running_host.log.parent
    return [np.asarray(Image.open(folder / name)) for name in names]


def node(prompt: dict, class_type: str) -> dict:
    return next(n["inputs"] for n in prompt.values() if n["class_type"] == class_type)


def test_log_is_clean(running_host):
    """The host logs an import that failed and goes on: nothing of the kind, and no warning, may name the pack."""
    log = running_host.log.read_text().splitlines()
    loaded = [line for line in log if "custom_nodes/fewstep" in line]
    assert len(loaded) == 1  # in the list of import times
    assert not [line for line in loaded if "FAILED" in line]
    assert not [line for line in log if "fewstep" in line.lower() and line not in loaded]


def test_nodes_are_listed_with_tooltips(running_host):
    info = running_host.get("/object_info")
    for name in ("FewStepSampler", "FewStepScheduler", "FewStepDemoModel", "FewStepDemoDecode"):
        assert name in info
    for name in ("FewStepSampler", "FewStepScheduler"):
        for group in info[name]["input"].values():
            for kind, options in group.values():
                assert options.get("tooltip"), f"{name}: an input of type {kind} has no tooltip"
    assert sorted(info["FewStepSampler"]["input"]["required"]["sampler"][1]["options"]) == sorted(SAMPLERS)
    assert info["FewStepScheduler"]["input"]["required"]["schedule"][1]["options"] == list(SCHEDULES)


def test_demo_workflow_renders(running_host, prompt):
    """The default demo: four different images with something on white, and the same ones from the same seed."""
    first = images(running_host, prompt)
    assert [image.shape for image in first] == [(256, 256, 3)] * 4
    for image in first:
        assert image.std() > 20  # a picture, not a flat or black field
        assert np.median(image[:8]) > 200  # the white border of an emoji
    node(prompt, "FewStepDemoDecode")["upscale"] = 4  # so that the host does not answer from its cache
    again = images(running_host, prompt)
    assert all(np.array_equal(a[::2, ::2], b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])
    node(prompt, "SamplerCustom")["noise_seed"] = 2
    assert not np.array_equal(images(running_host, prompt)[0], again[0])


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "euler_ancestral"])
@pytest.mark.slow
def test_a_stochastic_sampler_writes_the_same_file_twice(running_host, prompt, sampler):
    """From the same seed, byte for byte; the host's cache is emptied in between. Another seed, another file."""
    node(prompt, "FewStepSampler")["sampler"] = sampler

    written = set()

    def files() -> list[bytes]:
        running_host.post("/free", {"free_memory": True})
        time.sleep(2)  # the host does so between two prompts, and does not say when
        names = asyncio.run(demo_run().run(running_host.url, prompt))
        assert not written & set(names)  # new files, not those of the cache
        written.update(names)
        return [(running_host.log.parent / name).read_bytes() for name in names]

    first, again = files(), files()
    assert len(first) == 4 and first == again
    node(prompt, "SamplerCustom")["noise_seed"] = 2
    assert files() != first


def test_ksampler_dropdown_over_http(running_host, prompt):
    """KSampler with our names: accepted, and the same image as the nodes give."""
    by_nodes = images(running_host, prompt)
    latent = next(key for key, n in prompt.items() if n["class_type"] == "FewStepDemoLatent")
    custom = next(key for key, n in prompt.items() if n["class_type"] == "SamplerCustom")
    old = prompt[custom]["inputs"]
    inputs = {"seed": old["noise_seed"], "steps": 10, "cfg": old["cfg"], "denoise": 1.0, "latent_image": [latent, 0]}
    inputs |= {name: old[name] for name in ("model", "positive", "negative")}
    inputs |= {"sampler_name": "fewstep_dpmpp_2m", "scheduler": "fewstep_karras"}
    prompt[custom] = {"class_type": "KSampler", "inputs": inputs}
    assert all(np.array_equal(a, b) for a, b in zip(by_nodes, images(running_host, prompt), strict=True))
    inputs["sampler_name"] = "fewstep_no_such"
    status, body = running_host.post("/prompt", {"prompt": prompt})
    assert status == 400 and "fewstep_no_such" in json.dumps(body)


def test_out_of_range_inputs_are_refused(running_host, prompt):
    node(prompt, "FewStepScheduler")["steps"] = 0
    status, body = running_host.post("/prompt", {"prompt": prompt})
    assert status == 400 and "steps" in json.dumps(body)


def test_a_refusal_names_node_and_input(running_host, prompt):
    node(prompt, "FewStepScheduler")["steps"] = 0
    with pytest.raises(SetupError, match=r"FewStepScheduler: .*\(steps"):
        asyncio.run(demo_run().run(running_host.url, prompt))


def test_an_error_while_sampling_reaches_the_client(running_host, prompt):
    node(prompt, "FewStepSampler")["solver_type"] = "published"
    with pytest.raises(SetupError, match="dpmpp_2m: option solver_type = 'published' must be one of midpoint, heun"):
        asyncio.run(demo_run().run(running_host.url, prompt))


def test_interrupt_over_http(running_host, prompt):
    """Cancel from the interface ends a long run at once and leaves the host usable."""
    node(prompt, "FewStepScheduler")["steps"] = 5000
    status, queued = running_host.post("/prompt", {"prompt": prompt})
    assert status == 200
    deadline = time.monotonic() + 60
    while queued["prompt_id"] not in {item[1] for item in running_host.get("/queue")["queue_running"]}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    running_host.post("/interrupt", {})
    while queued["prompt_id"] not in (history := running_host.get(f"/history/{queued['prompt_id']}")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    messages = [kind for kind, _ in history[queued["prompt_id"]]["status"]["messages"]]
    assert "execution_interrupted" in messages
    node(prompt, "FewStepScheduler")["steps"] = 2
    assert len(images(running_host, prompt)) == 4


def test_a_plan_at_another_guidance_warns_on_the_node_that_samples(running_host, prompt):
    """As progress text, which the front end shows on the node that is executing."""
    plan = load(ROOT / "demo" / "plans" / "calibrated-5.safetensors")
    sampling = next(key for key, n in prompt.items() if n["class_type"] == "SamplerCustom")
    prompt["load"] = {"class_type": "FewStepLoadPlan", "inputs": {"file": BUILT_IN, "text": plan.text()}}
    prompt["plan"] = {"class_type": "FewStepPlanSampler", "inputs": {"plan": ["load", 0], "see_bottleneck": True}}
    prompt[sampling]["inputs"] |= {"sampler": ["plan", 0], "sigmas": ["plan", 1]}
    shown = {}
    for cfg in (3.0, 6.0):
        prompt[sampling]["inputs"]["cfg"] = cfg
        texts, kinds = asyncio.run(texts_while_running(running_host.url, prompt))
        assert "execution_success" in kinds
        shown[cfg] = [text for text in texts if "Warning" in text]
    assert not shown[3.0] and len(shown[6.0]) == 1
    assert shown[6.0][0].startswith(f"{sampling}Warning: this plan was made at guidance 3 and runs at 6")


def calibration(prompt: dict, **changed) -> dict:
    """A prompt that calibrates a plan for the demo model and saves it, with the prompts of the demo workflow."""
    sampler = node(prompt, "SamplerCustom")
    kept = {key: n for key, n in prompt.items() if n["class_type"] in ("FewStepDemoModel", "FewStepDemoLatent")}
    inputs = {name: sampler[name] for name in ("model", "positive", "negative", "latent_image", "cfg")}
    inputs |= {"evaluations": 2, "base": "euler", "seed": 0, "samples": 2, "teacher_steps": 4, "rounds": 1, "batch": 0}
    calibrate = {"class_type": "FewStepCalibrate", "inputs": inputs | changed}
    save = {"class_type": "FewStepSavePlan", "inputs": {"plan": ["calibrate", 0], "filename": "of_a_test"}}
    return {**kept, "calibrate": calibrate, "save": save}


async def texts_while_running(url: str, prompt: dict, stop_at: str = "") -> tuple[list[str], list[str]]:
    """The lines of text that the nodes show, and the kinds of messages; interrupted once a line holds `stop_at`."""
    texts, kinds = [], []
    async with aiohttp.ClientSession(url) as session, session.ws_connect("/ws?clientId=test") as events:
        async with session.post("/prompt", json={"prompt": prompt, "client_id": "test"}) as answer:
            queued = await answer.json()
            assert answer.status == 200, queued
        async for message in events:
            if message.type == aiohttp.WSMsgType.BINARY:
                if int.from_bytes(message.data[:4], "big") == TEXT:
                    texts.append(message.data[8:].decode())
                    if stop_at and stop_at in texts[-1]:
                        await session.post("/interrupt", json={})
                        stop_at = ""
                continue
            event = message.json()
            kinds.append(event["type"])
            done = event["type"] in ("execution_success", "execution_interrupted", "execution_error")
            if done and event["data"]["prompt_id"] == queued["prompt_id"]:
                return texts, kinds
    raise AssertionError("the host went away")


@pytest.mark.slow
def test_calibration_over_http(running_host, prompt):
    """It shows progress and its error in words; stopped, it keeps the best in a file, and the host goes on."""
    folder = BASE / "models" / "fewstep"
    before = set(folder.glob("*"))
    try:
        long = calibration(prompt, samples=8, rounds=50)
        texts, kinds = asyncio.run(texts_while_running(running_host.url, long, stop_at="->"))
        assert "execution_interrupted" in kinds and any("error" in text for text in texts)
        (stopped,) = set(folder.glob("*")) - before
        assert stopped.name.startswith("interrupted") and load(stopped).recipe.nfe == 2
        assert f"Stopped. Best plan saved as {stopped.name}; choose it in Load Plan" in texts[-1]
        assert any("Reference images" in text for text in texts) and "fewstep.plans" in kinds
        texts, kinds = asyncio.run(texts_while_running(running_host.url, calibration(prompt)))
        assert "execution_success" in kinds and "progress" in kinds and any(" -> " in text for text in texts)
        assert "saved as" in texts[-1]
        (saved,) = set(folder.glob("of_a_test*"))
        assert load(saved).about.error_after <= load(saved).about.error_before
    finally:
        for path in set(folder.glob("*")) - before:
            path.unlink()
