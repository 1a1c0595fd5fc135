"""How far long work is: what its node says from the first evaluation on, to the end or until it is stopped."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from in_the_host import module
from small_models import conditioning, small_model

CFG = 2.5


class Clock:
    """Seconds, which pass by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def meter(comfyui):
    """A progress with a clock, and what it has shown: (done, total, text)."""
    clock, shown = Clock(), []
    progress = module(comfyui, "host.progress").Progress(
        lambda done, total, text, denoised: shown.append((done, total, text)), every=1.0, clock=clock
    )

    def evaluate(seconds: float, cost: float = 1.0) -> None:
        progress.begins()
        clock.now += seconds
        progress.done(cost)

    return SimpleNamespace(progress=progress, clock=clock, shown=shown, evaluate=evaluate)


def test_stage_count_and_time_left_from_the_first_evaluation(meter):
    """32 images of 50 steps, in batches of 16, then 250 runs of 16 images and 6 steps; an evaluation takes 2 s."""
    progress = meter.progress
    progress.estimate("about 250 runs of 16 images")
    progress.stage("Reference images", 32, 32 * 50, after=250 * 16 * 6)
    assert meter.shown == [(0, 25600, "Reference images 0/32")]
    meter.clock.now = 30.0  # the model is loaded
    meter.evaluate(2.0, 16)
    left = (25600 - 16) / 16 * 2.0
    assert progress.left == pytest.approx(left) and progress.left > 3000
    words = "about 53 min left\nabout 250 runs of 16 images: 54 min at this model's speed"
    assert meter.shown[-1] == (16, 25600, f"Reference images 0/32, {words}")
    for _ in range(9):
        meter.evaluate(1.0, 16)  # the first one was slower
    assert progress.left == pytest.approx((25600 - 160) / 16)
    assert meter.shown[-1][2].startswith("Reference images 3/32, about 26 min left")
    progress.stage("Fitting, round 2 of 4", cost=360 * 16)
    progress.note("error 0.030 -> 0.017 (43 % less)")
    meter.evaluate(1.0, 16)
    assert meter.shown[-1] == (
        176,
        160 + 360 * 16,
        "Fitting, round 2 of 4, about 6 min left\nerror 0.030 -> 0.017 (43 % less)",
    )


def test_things_are_counted_from_those_that_are_done(meter):
    """A stage gives account of itself again, with other numbers; it costs more than it was thought to."""
    meter.progress.stage("Batches", 10, 100.0)
    meter.evaluate(1.0, 9.0)
    assert meter.progress.text.startswith("Batches 0/10")
    meter.evaluate(1.0, 1.0)
    assert meter.progress.text.startswith("Batches 1/10")
    meter.progress.stage("Batches", 10, 5.0, done=9)
    assert meter.progress.text.startswith("Batches 9/10")
    for _ in range(8):
        meter.evaluate(1.0, 1.0)
    assert meter.progress.text == "Batches 10/10" and not meter.progress.left
    assert all(0 <= done <= total for done, total, _ in meter.shown)


def test_it_is_shown_as_often_as_it_is_read(meter):
    """A new stage at once; evaluations once a second here."""
    meter.progress.stage("Sampling", 100, 100)
    for _ in range(100):
        meter.evaluate(0.1)
    assert 10 <= len(meter.shown) <= 13
    before = len(meter.shown)
    meter.progress.stage("Decoding")
    assert [text for *_, text in meter.shown[before:]] == ["Decoding"]


def test_without_any_cost_no_time_is_invented(meter):
    meter.progress.stage("Sampling")
    assert meter.progress.left is None
    meter.evaluate(1.0, 0.0)
    assert meter.progress.left is None and meter.progress.text == "Sampling"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (500, "8 min"), (89.9 * 60, "90 min"), (91 * 60, "1 h 31 min")],
)
def test_times_in_words(comfyui, seconds, words):
    assert module(comfyui, "host.progress").duration(seconds) == words


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.0301, 0.0171, "error 0.030 -> 0.017 (43 % less)"),
        (0.5, 0.5, "error 0.50 -> 0.50 (not smaller)"),
        (0.5, 0.6, "error 0.50 -> 0.60 (20 % more)"),
        (0.5, float("inf"), "error 0.50 before"),
        (0.5, None, "error 0.50 before"),
        (0.0, 0.0, "error 0 -> 0 (not smaller)"),
        (float("inf"), float("inf"), ""),
        (None, None, ""),
        (123.4, 12.34, "error 1.2e+02 -> 12 (90 % less)"),
    ],
)
def test_errors_in_words(comfyui, before, after, words):
    assert module(comfyui, "ui.plans").error_text(before, after) == words


# The nodes


def latent(*, image: bool = False) -> dict:
    return {"samples": torch.randn(1, 4, 8, 8) if image else torch.zeros(1, 4, 8, 8)}


def inputs_of(comfyui, node: str) -> dict:
    """Small work for each of those that may take long."""
    sampler, sigmas = (
        comfyui.nodes["FewStepSampler"].execute("dpmpp_2m").result[0],
        comfyui.nodes["FewStepScheduler"].execute(small_model("EPS"), "karras", 6, 1.0).result[0],
    )
    both = {"positive": conditioning(1), "negative": conditioning(2), "latent_image": latent(), "cfg": CFG}
    plan = {"evaluations": 4, "seed": 3, "samples": 4, "teacher_steps": 12}
    return {
        "FewStepCalibrate": {**both, **plan, "base": "euler", "rounds": 1, "batch": 0},
        "FewStepTrainAMED": {
            **both, **plan, "base": "amed_dpm_2m", "afs": False, "schedule": "karras", "iterations": 3, "batch": 4,
            "scale_dir": 0.01, "scale_time": 0.2, "teacher_extra": 2, "learning_rate": 0.01,
        },
        "FewStepDistill": {
            **both, **plan, "rank": 4, "iterations": 3, "batch": 4, "learning_rate": 0.001, "filename": "mine",
            "teacher_sampler": "dpmpp_2m", "teacher_schedule": "auto",
        },
        "FewStepCompare": {
            **both, "samplers": "euler\nheun", "schedules": "karras", "steps": "3, 4", "seed": 1, "denoise": 1.0,
            "reference_steps": 8, "tile": 64,
        },
        "FewStepTrajectory": {**both, "seed": 1, "batch": 2, "steps": 8},
        "FewStepFilmStrip": {**both, "sampler": sampler, "sigmas": sigmas, "seed": 1, "columns": 4, "tile": 64},
        "FewStepInvert": {
            **both, "latent_image": latent(image=True), "cfg": 1.0, "sampler": "ddim", "sigmas": sigmas,
            "refinements": 1, "check": True,
        },
        "FewStepDiffEditMask": {
            "source": conditioning(1), "target": conditioning(2), "latent_image": latent(image=True),
            "noise_level": 0.5, "noises": 8, "batch": 2, "threshold": 0.5, "outliers": 3.0, "seed": 1,
        },
    }[node]  # fmt: skip


LONG = {
    "FewStepCalibrate": ("Reference images 0/8", r"error [\d.]+ -> [\d.]+ \(\d+ % less\)"),
    "FewStepDistill": ("Reference images 0/4", "^saved as mine_0000"),
    "FewStepTrainAMED": ("Reference images 0/4", r"error [\d.]+ -> [\d.]+ \((\d+ % (less|more)|not smaller)\)"),
    "FewStepCompare": ("Reference of 8 steps", r"Done in \d+ s"),
    "FewStepTrajectory": ("Sampling, step 1/8", r"Done in \d+ s"),
    "FewStepFilmStrip": ("Sampling, step 1/6", r"Done in \d+ s"),
    "FewStepInvert": ("Inverting, step 1/18", r"Round-trip error, in percent of the image, one for each image: [\d.]+"),
    "FewStepDiffEditMask": ("Comparing predictions, noise 2/8", r"Done in \d+ s"),
}
"""By node: what it says after its first evaluation, and at the end."""


@pytest.fixture
def told(comfyui, monkeypatch, tmp_path) -> SimpleNamespace:
    """What reaches the front end: the lines of text on the node, how many evaluations each came after, and the bar."""
    import comfy.utils
    import folder_paths

    found = SimpleNamespace(texts=[], after=[], bar=[], evaluations=0, stop_at=None)

    def write(work: str = "", said: str = "") -> None:
        found.texts.append(work or said)
        found.after.append(found.evaluations)

    def asked(function, given):
        import comfy.model_management

        found.evaluations += 1
        if found.evaluations == found.stop_at:
            comfy.model_management.interrupt_current_processing()
        return function(given["input"], given["timestep"], **given["c"])

    found.model = small_model("EPS")
    found.model.set_model_unet_function_wrapper(asked)
    monkeypatch.setattr(module(comfyui, "host.display"), "_write", write)
    hook = lambda done, total, preview, node_id=None: found.bar.append((done, total))  # noqa: E731
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    module(comfyui, "host.comparison").FINISHED.__init__()
    return found


@pytest.mark.parametrize("node", LONG)
def test_every_long_work_says_how_far_it_is(comfyui, told, loras, node):
    first, last = LONG[node]
    comfyui.nodes[node].execute(told.model, **inputs_of(comfyui, node))
    assert told.after[0] == 0, "nothing is said before the first evaluation"
    at_once = next(after for after in told.after if after)
    assert at_once <= 2, "an evaluation is one call of the network or two"
    early = [text for text, after in zip(told.texts, told.after, strict=True) if after == at_once][-1]
    assert early.startswith(first) and re.search(r", about \d+ s left", early), early
    assert re.search(last, told.texts[-1]), told.texts[-1]
    assert told.bar == sorted(told.bar, key=lambda now: now[0]) and all(done <= total for done, total in told.bar)
    assert told.bar[-1][0] == told.bar[-1][1] > 0, "the bar is full at the end"


@pytest.mark.parametrize("node", ["FewStepCalibrate", "FewStepTrainAMED", "FewStepDistill", "FewStepCompare"])
@pytest.mark.slow
def test_the_time_of_it_all_is_said_after_one_evaluation(comfyui, told, loras, node):
    comfyui.nodes[node].execute(told.model, **inputs_of(comfyui, node))
    batches = "about 3 batches of 4 images"
    work = {
        "FewStepCalibrate": r"about \d+ runs of 4 images", "FewStepTrainAMED": batches, "FewStepDistill": batches,
    }  # fmt: skip
    early = next(text for text, after in zip(told.texts, told.after, strict=True) if after)
    assert re.search(work.get(node, "5 runs") + r": \d+ s at this model's speed$", early), early


@pytest.mark.parametrize("node", ["FewStepCalibrate", "FewStepTrainAMED", "FewStepDistill"])
@pytest.mark.slow
def test_the_cost_that_was_said_is_the_cost(comfyui, told, loras, node):
    """The whole of the bar as it was first said, but for rounds that end early or go on."""
    comfyui.nodes[node].execute(told.model, **inputs_of(comfyui, node))
    assert told.bar[0][1] == pytest.approx(told.bar[-1][1], rel=0.5 if node == "FewStepCalibrate" else 1e-9)


@pytest.mark.parametrize("node", LONG)
def test_every_long_work_says_that_it_was_stopped(comfyui, told, folder, loras, node):
    """And on which node a plan of it is found, or what to do to go on."""
    import comfy.model_management

    told.stop_at = 3
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        comfyui.nodes[node].execute(told.model, **inputs_of(comfyui, node))
    said = {
        "FewStepCalibrate": "Stopped before anything was fitted",
        "FewStepTrainAMED": "Stopped before anything was fitted",
        "FewStepDistill": "Stopped before anything was learned",
        "FewStepCompare": "Stopped: 0 of 4 images finished. Queue it again to continue",
        "FewStepDiffEditMask": "Stopped: Comparing predictions, noise 4/8",
        "FewStepInvert": "Stopped: Inverting, step 2/18",
        "FewStepFilmStrip": "Stopped: Sampling, step 2/6",
        "FewStepTrajectory": "Stopped: Sampling, step 2/8",
    }
    assert told.texts[-1] == said[node]


@pytest.mark.parametrize("node", ["FewStepCalibrate", "FewStepTrainAMED"])
@pytest.mark.slow
def test_stopped_late_the_node_says_where_the_plan_is(comfyui, told, folder, node):
    """By the name that Load Plan has for it."""
    import comfy.model_management

    whole = inputs_of(comfyui, node)
    comfyui.nodes[node].execute(told.model, **whole)
    told.stop_at, told.evaluations = told.evaluations - 1, 0
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        comfyui.nodes[node].execute(told.model, **whole)
    (path,) = folder.glob("*")
    assert told.texts[-1] == f"Stopped. Best plan saved as {path.name}; choose it in Load Plan"
    assert path.name in comfyui.nodes["FewStepLoadPlan"].define_schema().inputs[0].options
    assert comfyui.nodes["FewStepLoadPlan"].execute(path.name).result[0].about.interrupted


@pytest.mark.slow
def test_stopped_late_the_node_says_where_the_student_is(comfyui, told, loras):
    """By the name that the loaders of LoRAs have for it."""
    import comfy.model_management

    whole = inputs_of(comfyui, "FewStepDistill") | {"filename": "a/mine"}
    comfyui.nodes["FewStepDistill"].execute(told.model, **whole)
    told.stop_at, told.evaluations = told.evaluations - 1, 0
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        comfyui.nodes["FewStepDistill"].execute(told.model, **whole)
    (path,) = loras.glob("*.safetensors")
    assert told.texts[-1] == f"Stopped. Best student saved as {path.name}; choose it in Load LoRA"
    assert path.name in comfyui.nodes["LoraLoaderModelOnly"].INPUT_TYPES()["required"]["lora_name"][0]


def test_a_stopped_comparison_goes_on(comfyui, told):
    import comfy.model_management

    whole = inputs_of(comfyui, "FewStepCompare")
    told.stop_at = 8 + 3 + 2
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        comfyui.nodes["FewStepCompare"].execute(told.model, **whole)
    assert told.texts[-1].startswith("Stopped: 1 of 4 images finished")
    told.texts.clear()
    comfyui.nodes["FewStepCompare"].execute(told.model, **whole)
    assert told.texts[0].startswith("2 of 4: heun, karras, 3 steps")


# What a node says


@pytest.fixture
def sent(comfyui, monkeypatch) -> list[tuple[str, str]]:
    """What the server is given for the front ends: the node and its text."""
    found: list[tuple[str, str]] = []
    server = SimpleNamespace(send_progress_text=lambda text, node, *_: found.append((node, text)))
    monkeypatch.setattr(module(comfyui, "host.display"), "server", lambda: server)
    return found


def running(prompt: str, node: str):
    from comfy_execution.utils import CurrentNodeContext

    return CurrentNodeContext(prompt, node, 0)


def test_a_node_keeps_all_that_it_says_in_a_run(comfyui, sent):
    """The front end shows the last text of a node alone."""
    display = module(comfyui, "host.display")
    with running("first", "7"):
        display.say("one")
        display.warn(["two"])
        display.say("one")
    with running("first", "8"):
        display.say("three")
    with running("first", "7"):
        display.say("four")
    with running("second", "7"):
        display.say("five")
    assert sent == [
        ("7", "one"),
        ("7", "one\nWarning: two."),
        ("7", "one\nWarning: two."),
        ("8", "three"),
        ("7", "one\nWarning: two.\nfour"),
        ("7", "five"),
    ]


def test_work_takes_the_place_of_its_own_line(comfyui, sent):
    """And leaves what was said beside it."""
    display = module(comfyui, "host.display")
    with running("first", "7"):
        shown = display.Display()
        shown.show(1, 3, "1/3")
        display.say("beside it")
        shown.show(2, 3, "2/3")
        shown.show(3, 3)
    assert [text for _, text in sent] == ["1/3", "1/3\nbeside it", "2/3\nbeside it"]
