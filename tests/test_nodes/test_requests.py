"""Requests of the front end within limits: whatever is asked is answered in words, in JSON, in time, by one thread."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import threading
import time

import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from front_end import node, scheduler
from host import ROOT
from in_the_host import module
from machine import moment
from mutations import mutated

from samplers import SAMPLERS

LEVELS = {"sigma_min": 0.03, "sigma_max": 14.6, "flow": False, "shift": 1.0}
FLOW = {"sigma_min": 0.001, "sigma_max": 1.0, "flow": True, "shift": 3.0}


def guidance(schedule: str, **fields) -> dict:
    return node("FewStepGuidance", schedule=schedule, cfg=7.0, values="7, 5, 1", **fields)


LOADED = node("FewStepLoadPlan", file="built-in: amed_dpm_2m (SD1.5, 10 evaluations)", text="")
PART = {"type": "SplitSigmas", "inputs": {"sigmas": scheduler(), "step": 3}, "output": 1}
REQUESTS = [
    {"node": node("FewStepSampler", sampler="dpmpp_2m", order=2), "sigmas": scheduler(), "guidance": 7.5},
    {"node": node("FewStepSampler", sampler="ddim", eta=0.5), "sigmas": PART, "levels": LEVELS, "guidance": [7, 5]},
    {"node": node("FewStepSampler", sampler="euler"), "sigmas": scheduler(), "guidance": guidance("cosine")},
    {"node": node("FewStepSampler", sampler="euler"), "levels": FLOW, "guidance": guidance("list")},
    {"node": node("FewStepAuto", evaluations=9, variety="exact seed", denoise=1.0), "levels": LEVELS},
    {"node": node("FewStepPlanSampler", plan=LOADED, see_bottleneck=True), "guidance": 7.0},
    {"node": scheduler("beta", 5), "levels": FLOW},
    {"node": node("FewStepKSampler", sampler_name="dpmpp_2s", scheduler="karras", steps=6, cfg=7.0, denoise=0.5)},
]


@pytest.fixture
def requests(comfyui):
    return module(comfyui, "requests")


def asked(requests, draw, bodies: list, **headers) -> list[tuple[int, str]]:
    """Status and text of the answers to bodies, one after the other, by a server as the host's."""

    headers = {"Content-Type": "application/json", **headers}

    async def run() -> list[tuple[int, str]]:
        app = web.Application(client_max_size=100 * 2**20)
        app.router.add_post("/", requests.answer(draw))
        async with TestClient(TestServer(app)) as client:
            found = []
            for body in bodies:
                async with client.post(
                    "/", data=body, headers={"Content-Type": "application/json", **headers}
                ) as response:
                    found.append((response.status, await response.text()))
            return found

    return asyncio.run(run())


def strictly(text: str):
    """JSON as browsers read it."""

    def refuse(constant: str):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


# What is read


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"null", "the request = None must be an object"),
        (b"", "the request = None must be an object"),
        (b"\xff", "not UTF-8"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b'{"node": NaN}', "NaN or infinity"),
        ({}, "node = None must be an object"),
        ({"node": []}, "node = [] must be an object"),
        ({"node": {"type": 3, "inputs": {}}}, "node: type = 3 must be the id of a node"),
        ({"node": {"type": "FewStepSampler"}}, "node: inputs = None must be an object"),
        ({"node": node("KSampler")}, "'KSampler' is not a node that samples"),
        ({**REQUESTS[0], "levels": [1]}, "levels = [1] must be an object"),
        ({**REQUESTS[0], "levels": "x"}, "levels = 'x' must be an object"),
        ({**REQUESTS[0], "levels": {**LEVELS, "flow": "yes"}}, "levels: flow = 'yes' must be true or false"),
        ({**REQUESTS[0], "levels": {"sigma_max": 1}}, "levels: sigma_min = None must be a number"),
        ({**REQUESTS[0], "levels": {**LEVELS, "sigma_max": 10**400}}, "levels: sigma_max = a whole number of more"),
        ({**REQUESTS[0], "levels": {**LEVELS, "shift": 0}}, "levels: shift = 0 must be a finite number between"),
        ({**REQUESTS[0], "guidance": []}, "guidance: a list holds 1 to 1000 scales"),
        ({**REQUESTS[0], "guidance": [1, None]}, "guidance[1] = None must be a number"),
        ({**REQUESTS[0], "guidance": "7"}, "guidance = '7' must be a number"),
        ({**REQUESTS[0], "guidance": True}, "guidance = True must be a number"),
        ({**REQUESTS[0], "guidance": scheduler()}, "guidance: type = 'FewStepScheduler' must be FewStepGuidance"),
        ({**REQUESTS[0], "sigmas": 3}, "sigmas = 3 must be an object"),
        ({"node": node("FewStepPlanSampler", plan="x")}, "plan = 'x' must be an object"),
        ({"node": node("FewStepSampler", sampler=["ddim"])}, "sampler = ['ddim'] must be a text"),
        ({"node": node("FewStepSampler", sampler="ddim", eta="1")}, "eta = '1' must be a number"),
        ({**REQUESTS[0], "sigmas": {**PART, "output": 2.5}}, "output = 2.5 must be a whole number"),
        ({**REQUESTS[0], "sigmas": node("SplitSigmas")}, "SplitSigmas has the node of its sigmas as an input"),
        ({"node": node("FewStepLoadPlan", file="x", text=3)}, "text = 3 must be a text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_request_that_no_front_end_makes(routes, requests, body, named):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    ((status, text),) = asked(requests, routes.plan, [data])
    assert status == 400 and named in strictly(text)["error"]


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"node": scheduler(steps=0)}, "steps = 0 must lie between 1 and 10000"),
        ({"node": scheduler(steps=5000)}, "more than 1000 steps are not drawn"),
        ({"node": scheduler(schedule="karas")}, "did you mean 'karras'"),
        ({"node": scheduler(), "levels": {**FLOW, "sigma_max": 14.0}}, "end at 1"),
        ({"node": node("FewStepSampler", sampler="ddim", eta=11)}, "eta = 11 must be a finite number between"),
        ({"node": node("FewStepSampler", sampler="ddim", eta=10**400)}, "eta = a whole number of more than"),
        ({"node": {**REQUESTS[4]["node"], "inputs": {"variety": "none"}}}, "variety = 'none' must be exact seed or"),
        ({"node": node("FewStepPlanSampler")}, "Connect a plan"),
        ({**REQUESTS[0], "guidance": guidance("list") | {"inputs": {"schedule": "list", "values": "1e999"}}}, "values"),
        ({**REQUESTS[0], "guidance": guidance("zigzag")}, "shape = 'zigzag' must be one of"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_widgets_can_hold_is_told_in_the_node(routes, requests, request_, named):
    draw = routes.sigmas if request_["node"]["type"] == "FewStepScheduler" else routes.plan
    ((status, text),) = asked(requests, draw, [json.dumps(request_).encode()])
    assert status == 200 and named in strictly(text)["error"]


def test_a_file_says_nothing_of_where_it_lies(comfyui, routes, requests, folder):
    """Neither one that is damaged, nor one that may not be read."""
    folder.mkdir()
    (folder / "bad.safetensors").write_bytes(b"bad")
    (folder / "folder.safetensors").symlink_to(folder)
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    for file in ("bad.safetensors", "folder.safetensors", "loop.safetensors"):
        plan = node("FewStepPlanSampler", plan=node("FewStepLoadPlan", file=file, text=""))
        ((status, text),) = asked(requests, routes.plan, [json.dumps({"node": plan}).encode()])
        assert status == 200 and strictly(text)["error"]
        assert str(folder) not in text and folder.parent.name not in text


def test_widgets_that_are_left_out_have_their_defaults(routes, requests):
    assert routes.sigmas({"node": node("FewStepScheduler")}) == routes.sigmas(
        {"node": scheduler(steps=10, model=node("FewStepDemoModel", text="x"), control_after_generate="fixed")}
    )


# Limits


def test_a_long_body_is_neither_read_nor_parsed(routes, requests):
    """With its length said before, and without."""
    drawn: list = []

    async def chunks():
        for _ in range(80):
            sent.append(1)
            yield b" " * 2**20

    sent: list[int] = []
    long = b"[" + b"0," * 40 * 2**20
    for body in (long, chunks()):
        start = time.process_time()
        ((status, text),) = asked(requests, drawn.append, [body])
        assert status == 413 and "longer than 1,048,576 bytes" in strictly(text)["error"]
        assert time.process_time() - start < 10 * moment()
    assert not drawn


def test_a_body_that_is_compressed_wrongly(routes, requests):
    ((status, text),) = asked(requests, routes.plan, [b"no deflate"], **{"Content-Encoding": "deflate"})
    assert status == 400 and strictly(text)["error"]


def test_one_thread_answers_all_and_rests(requests, monkeypatch):
    """Ten clients at once: one request at a time, and in between pauses that are as much longer as said."""
    running, seen, spans = [], [], []

    def draw(_) -> dict:
        running.append(1)
        seen.append((len(running), threading.current_thread().name))
        start = time.monotonic()
        time.sleep(0.02)
        spans.append((start, time.monotonic()))
        running.pop()
        return {}

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/", requests.answer(draw))
        async with TestClient(TestServer(app)) as client:
            answers = await asyncio.gather(*(client.post("/", data=b"{}") for _ in range(10)))
            assert all(answer.status == 200 for answer in answers)

    asyncio.run(run())
    assert len(seen) == 10 and {count for count, _ in seen} == {1} and len({name for _, name in seen}) == 1
    for (start, end), (following, _) in itertools.pairwise(spans):
        assert following - end >= 0.99 * requests.REST * (end - start)


def test_more_than_can_wait_are_sent_away(requests, monkeypatch):
    monkeypatch.setattr(requests, "WAITING", 2)
    go_on = threading.Event()

    async def run() -> list[int]:
        app = web.Application()
        app.router.add_post("/", requests.answer(lambda _: {"done": go_on.wait(10)}))
        async with TestClient(TestServer(app)) as client:
            first = [asyncio.create_task(client.post("/", data=b"{}")) for _ in range(2)]
            while requests._worker.waiting < 2:
                await asyncio.sleep(0.01)
            late = await client.post("/", data=b"{}")
            go_on.set()
            return [late.status, *(answer.status for answer in await asyncio.gather(*first))]

    assert asyncio.run(run()) == [503, 200, 200]


def test_numbers_that_are_none_are_no_answer(requests):
    assert asked(requests, lambda _: {"sigma": math.nan}, [b"{}"])[0][0] == 200
    ((status, text),) = asked(requests, lambda _: {"sigma": math.inf}, [b"{}"])
    assert status == 200 and "error" in strictly(text)


def test_a_fault_of_ours_is_in_the_log_and_not_in_the_answer(requests, caplog):
    ((status, text),) = asked(requests, lambda _: open("/nowhere/at/all"), [b"{}"])  # noqa: SIM115
    assert status == 400 and "nowhere" not in text and "/nowhere/at/all" in caplog.text


def test_nothing_grows_with_what_is_asked(comfyui, routes):
    auto = module(comfyui, "auto")
    auto.picks.cache_clear()
    for k in range(20):
        for flow in (False, True, k, "x" * k):
            levels = {**(FLOW if flow else LEVELS), "flow": flow, "sigma_min": 0.001 + k / 1e4}
            try:
                routes.plan({**REQUESTS[4], "levels": levels})
            except ValueError:
                continue
            assert isinstance(flow, bool)
    assert auto.picks.cache_info().currsize <= 4


@pytest.mark.parametrize("kind", ["cosine", "linear", "auto"])
def test_the_longest_run_that_is_drawn_takes_seconds(routes, kind):
    """Of processor time, however slow the machine: a thousand steps took half a second where this was written."""
    request = {
        "node": node("FewStepSampler", sampler="euler"),
        "sigmas": scheduler(steps=1000),
        "guidance": guidance(kind),
    }
    if kind == "auto":
        request = {"node": node("FewStepAuto", evaluations=1000, variety="exact seed", denoise=1.0)}
    start = time.process_time()
    assert len(routes.plan(request)["evaluations"]) > 900
    assert time.process_time() - start < 25 * moment()


# The percent of a level


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ModelSamplingDiscrete", {}),
        ("ModelSamplingContinuousEDM", {}),
        ("ModelSamplingDiscreteFlow", {"shift": 3.0}),
        ("ModelSamplingDiscreteFlow", {"shift": 12.0}),
        ("ModelSamplingFlux", {"shift": 1.15}),
    ],
)
def test_percents_are_those_of_a_bisection(comfyui, kind, settings):
    """To a step of float32, which the host reckons in; with few questions to the host."""
    import comfy.model_sampling

    sampling, asked = getattr(comfy.model_sampling, kind)(), []
    if settings:
        sampling.set_parameters(**settings)

    class Counted:
        @staticmethod
        def percent_to_sigma(percent):
            asked.append(percent)
            return sampling.percent_to_sigma(percent)

    def bisected(sigma: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if float(sampling.percent_to_sigma(middle)) > sigma else (low, middle)
        return (low + high) / 2

    high, low = math.log(float(sampling.sigma_max)), math.log(float(sampling.sigma_min))
    levels = torch.linspace(high, low, 300, dtype=torch.float64).exp().tolist()
    levels = [*levels, 0.0, 2 * levels[0], levels[-1] / 2]
    percent = module(comfyui, "host.model").percent_at(Counted)
    assert [percent(level) for level in levels] == pytest.approx([bisected(level) for level in levels], abs=2.0**-23)
    assert len(asked) < 1000 + 6 * len(levels)
    few = module(comfyui, "host.model").percent_at(Counted)
    asked.clear()
    for level in levels[::30]:
        few(level)
    assert len(asked) < 20 * len(levels[::30])


# Fuzz

ODD = (
    None, True, [], {}, "", "1", "x" * 300, "/etc/passwd", "../x", "\0", "\ud800", -1, 0, 0.5, 1e308, -1e308, 10**20,
    10**400, [1] * 50, [[[[]]]], {"a": {"b": 1}}, {"type": "SplitSigmas", "inputs": {}, "output": 0}, scheduler(),
    LOADED, {"type": "FewStepLoadPlan", "inputs": {"file": "", "text": "{}"}}, math.nan, math.inf,
)  # fmt: skip
NAMES = ("steps", "sampler", "schedule", "plan", "sigmas", "eta", "shift", "type", "inputs", "output", "levels")


OTHERS = [
    {"samplers": "euler\nfewstep_unipc order=2", "schedules": "karras", "steps": "5, 8"},
    {"file": "mine_00001_.safetensors", "name": "another"},
]
"""What the boxes of Few-Step Compare and the window of plans ask."""


@pytest.mark.parametrize("seed", range(20))
def test_odd_bodies_are_answered(routes, requests, folder, monkeypatch, seed):
    """Each with 200, 400 or 413, in JSON, without a path of the server, in time, by every route that reads a body."""
    monkeypatch.setattr(requests, "REST", 0.0)
    source, bodies = random.Random(seed), []
    for _ in range(30):
        request = source.choice([*REQUESTS, *OTHERS])
        if "node" in request and source.random() < 0.3:
            request = {**request, "node": node("FewStepSampler", sampler=source.choice(list(SAMPLERS)))}
        for _ in range(source.randint(1, 3)):
            request = mutated(request, source, ODD, NAMES)
        body = json.dumps(request).encode()
        if source.random() < 0.2:
            place = source.randrange(len(body))
            body = body[:place] + bytes([source.randrange(256)]) * source.choice([0, 1, 3, 5000]) + body[place + 1 :]
        bodies.append(body)
    for draw in (routes.plan, routes.sigmas, routes.check, routes.rename_plan, routes.delete_plan):
        start = time.process_time()
        for status, text in asked(requests, draw, bodies):
            assert status in (200, 400, 413)
            answer = strictly(text)
            assert isinstance(answer, dict) and (status == 200 or answer["error"])
            assert str(ROOT) not in text and "/samplers/" not in text and "/nodes/" not in text
        assert time.process_time() - start < 100 * moment()
