"""Calibration and the training of AMED in the real host."""

from __future__ import annotations

import importlib
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from in_the_host import module
from small_models import conditioning, small_model

from samplers import SCHEDULES
from samplers.calibrated.recipe import usable_bases

CFG = 2.5
COMMON = {"seed": 3, "samples": 4, "teacher_steps": 12}
CALIBRATE = {"base": "auto", "rounds": 1, "batch": 0}
TRAIN = {
    "base": "amed_dpm_2m", "afs": False, "schedule": "karras", "iterations": 6, "batch": 4, "scale_dir": 0.01,
    "scale_time": 0.2, "teacher_extra": 2, "learning_rate": 0.01,
}  # fmt: skip
OWN = {"FewStepCalibrate": CALIBRATE, "FewStepTrainAMED": TRAIN}


def prompts(count: int) -> list:
    return [entry for k in range(count) for entry in conditioning(10 + k)]


def latent(channels: int = 4) -> dict:
    return {"samples": torch.zeros(1, channels, 8, 8)}


def execute(comfyui, node: str, model=None, **changed):
    inputs = {
        "positive": prompts(2), "negative": conditioning(2), "latent_image": latent(), "cfg": CFG, "evaluations": 4,
        **COMMON, **OWN[node], **changed,
    }  # fmt: skip
    return comfyui.nodes[node].execute(model or small_model("EPS"), **inputs).result


def demo_model(comfyui, texts: list[str]) -> SimpleNamespace:
    parts = [comfyui.nodes["FewStepDemoModel"].execute(text, "").result for text in texts]
    (empty,) = comfyui.nodes["FewStepDemoLatent"].execute(1).result
    positive = [entry for _, entries, _ in parts for entry in entries]
    return SimpleNamespace(model=parts[0][0], positive=positive, negative=parts[0][2], latent=empty)


def sample(comfyui, plan, model, seed: int = 1) -> torch.Tensor:
    sampler, sigmas = comfyui.nodes["FewStepPlanSampler"].execute(plan).result
    node = comfyui.nodes["SamplerCustom"]
    arguments = (model, True, seed, CFG, conditioning(10), conditioning(2), sampler, sigmas, latent())
    return node.execute(*arguments).result[0]["samples"]


# Sessions


@pytest.fixture
def session(comfyui):
    def make(model=None, positive=None, **options):
        inputs = model or small_model("EPS"), positive or prompts(3), conditioning(2), CFG, latent()
        return module(comfyui, "host.session").Session(*inputs, **options)

    return make


@pytest.fixture
def euler(comfyui):
    host, samplers = (
        module(comfyui, "host.sampling"),
        sys.modules[module(comfyui, "host.sampling").SamplerSpec.__module__],
    )
    registry = importlib.import_module(samplers.__name__.rpartition(".")[0])
    return host.sampler_function(registry.SAMPLERS["euler"])


SIGMAS = SCHEDULES["karras"].function(4, 0.03, 14.6).float()


def samples_of(comfyui, count: int, over: int = 3) -> list:
    return [module(comfyui, "host.session").Sample(k % over, 5 + k) for k in range(count)]


@pytest.mark.network
def test_prompts_in_one_batch_are_prompts_one_by_one(comfyui, session, euler):
    samples = samples_of(comfyui, 7)
    together, one_by_one = session(), session(batch=1)
    sizes: list[int] = []
    found = together.run(euler, SIGMAS, samples, sizes.append)
    assert sizes == [7] * 4
    torch.testing.assert_close(found, one_by_one.run(euler, SIGMAS, samples), rtol=1e-5, atol=1e-5)


@pytest.mark.network
def test_a_sample_is_that_of_a_sampler_node(comfyui, session, euler):
    model, samples = small_model("EPS"), samples_of(comfyui, 3)
    found = session(model).run(euler, SIGMAS, samples)
    for latents, (prompt, seed) in zip(found, samples, strict=True):
        (select,) = comfyui.nodes["KSamplerSelect"].execute("euler").result
        arguments = (model, True, seed, CFG, [prompts(3)[prompt]], conditioning(2), select, SIGMAS, latent())
        theirs = comfyui.nodes["SamplerCustom"].execute(*arguments).result[0]["samples"][0]
        torch.testing.assert_close(latents, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.network
@pytest.mark.parametrize(
    "settings",
    [{"mask": torch.ones(1, 8, 8)}, {"start_percent": 0.5}, {"area": (4, 4, 0, 0)}],
    ids=lambda s: next(iter(s)),
)
def test_prompts_with_settings_of_their_own_keep_them(comfyui, session, euler, settings):
    """They are not put into one batch, and the samples are what they are alone."""
    plain, special, other = prompts(3)
    positive = [plain, [special[0], {**special[1], **settings}], other]
    mixed, samples = session(positive=positive), samples_of(comfyui, 6)
    assert not mixed.alike
    found = mixed.run(euler, SIGMAS, samples)
    for k, (prompt, seed) in enumerate(samples):
        alone = session(positive=[positive[prompt]]).run(euler, SIGMAS, [samples[0]._replace(prompt=0, seed=seed)])
        torch.testing.assert_close(found[k], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.network
def test_too_little_memory_makes_smaller_batches(comfyui, session, euler):
    samples = samples_of(comfyui, 7)

    def greedy(model, x, *arguments, **options):
        if len(x) > 2:
            raise torch.cuda.OutOfMemoryError("no")
        return euler(model, x, *arguments, **options)

    found = session().run(greedy, SIGMAS, samples)
    torch.testing.assert_close(found, session().run(euler, SIGMAS, samples), rtol=1e-5, atol=1e-5)


# Calibration


def test_calibration_lowers_the_error_and_its_file_samples(comfyui, folder):
    model = small_model("EPS")
    plan, plot, report = execute(comfyui, "FewStepCalibrate", model)
    about = plan.about
    assert about.improved and about.error_after < 0.95 * about.error_before
    assert about.guidance == CFG and about.prompts == 2 and about.teacher["steps"] == 12
    assert plot.ndim == 4 and "4 evaluations" in report
    comfyui.nodes["FewStepSavePlan"].execute(plan, "mine")
    again = comfyui.nodes["FewStepLoadPlan"].execute(next(folder.glob("mine*")).name).result[0]
    found = sample(comfyui, again, model)
    assert found.isfinite().all()
    assert torch.equal(found, sample(comfyui, plan, model))


@pytest.mark.parametrize("model_type", ["V_PREDICTION", "FLOW"])
@pytest.mark.slow
def test_calibration_of_other_models(comfyui, model_type):
    plan, *_ = execute(comfyui, "FewStepCalibrate", small_model(model_type), samples=2, cfg=1.0, base="euler")
    assert plan.recipe.flow == (model_type == "FLOW")
    assert not plan.recipe.guides  # there is no guidance to be fitted
    assert plan.about.error_after <= plan.about.error_before


def test_without_a_gain_the_plan_is_the_plain_sampler(comfyui, monkeypatch, caplog):
    calibration = module(comfyui, "host.calibration")
    real = calibration.calibrate

    def fruitless(*arguments, **options):
        return (progress for progress in real(*arguments, **options) if progress.stage == "starts")

    monkeypatch.setattr(calibration, "calibrate", fruitless)
    plan, _, report = execute(comfyui, "FewStepCalibrate", samples=2, base="dpmpp_2m")
    assert plan.about.improved is False and plan.about.error_after == plan.about.error_before
    assert not any(any(t[2:4]) for t in plan.recipe.tunings)
    assert "plain sampler" in caplog.text and "not better in validation" in report


def test_samples_for_validation_are_others(comfyui):
    split = module(comfyui, "host.reference").split
    for count in (1, 3, 4, 9):
        fitted, held = split(count, 100, 16, 16)
        assert len(fitted) == len(held) == 16
        assert not {s.seed for s in fitted} & {s.seed for s in held}
        if count >= 4:
            assert not {s.prompt for s in fitted} & {s.prompt for s in held}
            assert {s.prompt for s in held} == set(range(3, count, 4))


# Training


@pytest.mark.parametrize("goal", ["last sample", "each step"])
@pytest.mark.slow
def test_training_lowers_the_loss(comfyui, goal):
    """On the model of the demo, on the same batch in every iteration."""
    demo = demo_model(comfyui, ["cat face"])
    session = module(comfyui, "host.session").Session(demo.model, demo.positive, demo.negative, 3.0, demo.latent)
    options = {"iterations": 6, "batch": 2, "samples": 1, "teacher_steps": 10, "learning_rate": 0.02}
    work = module(comfyui, "host.training").Training(session, evaluations=4, base="amed_dpm_2m", goal=goal, **options)
    work.training = work.training[:2] * 6
    losses = [step.loss for step in work]
    assert losses[-1] < 0.95 * losses[0]


def test_a_predictor_can_be_trained_for_what_can_follow_a_recipe(comfyui):
    assert {*module(comfyui, "host.training").AMED_BASES} == {*usable_bases()} - {"ddim"}


@pytest.mark.parametrize("base", ["amed", "ipndm"])
@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.slow
def test_training_gives_a_file_that_samples(comfyui, folder, base, afs):
    model = small_model("EPS")
    plan, plot, report = execute(comfyui, "FewStepTrainAMED", model, base=base, afs=afs, iterations=2)
    assert plan.recipe.nfe == 4 and plan.kind == "amed"
    assert math.isfinite(plan.about.error_after) and "before" in report and plot.ndim == 4
    comfyui.nodes["FewStepSavePlan"].execute(plan, "mine")
    again = comfyui.nodes["FewStepLoadPlan"].execute(next(folder.glob("mine*")).name).result[0]
    assert torch.equal(sample(comfyui, again, model), sample(comfyui, plan, model))


def test_training_with_prompts_that_share_no_batch(comfyui):
    long = [[torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1)), {}]]
    plan, *_ = execute(comfyui, "FewStepTrainAMED", positive=prompts(1) + long, iterations=2)
    assert plan.kind == "amed"


@pytest.fixture(scope="module")
def calibrated(comfy_process):
    """A calibrated plan, with guidance, slopes and levels of its own."""
    with torch.inference_mode():
        return execute(comfy_process, "FewStepCalibrate", base="ipndm_v")[0]


@pytest.mark.slow
def test_training_begins_with_a_calibrated_plan(comfyui, folder, calibrated):
    """base, schedule and afs are its own; what comes out has its error, or a lower one, and can be trained further."""
    assert calibrated.recipe.guides and any(t.slope for t in calibrated.recipe.tunings)
    changed = {"start": calibrated, "seed": 30, "iterations": 2}
    plan, _, report = execute(comfyui, "FewStepTrainAMED", base="euler", afs=True, schedule="beta", **changed)
    assert plan.recipe.base == "ipndm_v" and not plan.recipe.afs
    assert [t.slope for t in plan.recipe.tunings] == [t.slope for t in calibrated.recipe.tunings]
    assert plan.about.error_after <= plan.about.error_before and "the plan that it started from" in report
    (again, *_) = execute(comfyui, "FewStepTrainAMED", **changed | {"start": plan, "learning_rate": 1e-6})
    assert again.about.error_before == pytest.approx(plan.about.error_after, rel=1e-5)
    model = small_model("EPS")
    comfyui.nodes["FewStepSavePlan"].execute(plan, "mine")
    loaded = comfyui.nodes["FewStepLoadPlan"].execute(next(folder.glob("mine*")).name).result[0]
    assert torch.equal(sample(comfyui, loaded, model), sample(comfyui, plan, model))


@pytest.mark.slow
def test_a_start_that_nothing_improves_comes_out_again(comfyui, calibrated, monkeypatch):
    training = module(comfyui, "host.training").Training
    real = training._error
    errors = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr(training, "_error", lambda *arguments: real(*arguments) and next(errors))
    plan, _, report = execute(comfyui, "FewStepTrainAMED", start=calibrated, iterations=2)
    assert plan.recipe == calibrated.recipe and plan.about.improved is False and "not better in validation" in report


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"evaluations": 5}, "start is a plan of 4 evaluations, and evaluations = 5"),
        ({"model": "V_PREDICTION"}, "start: this plan was made for another model: prediction"),
    ],
    ids=["evaluations", "model"],
)
def test_a_start_that_does_not_fit_is_said(comfyui, calibrated, changed, named):
    model = small_model(changed.pop("model", "EPS"))
    with pytest.raises(ValueError, match=named):
        execute(comfyui, "FewStepTrainAMED", model, start=calibrated, **changed)


# By backpropagation


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@pytest.mark.parametrize("derivatives", ["differences", "backpropagation"])
@pytest.mark.slow
def test_both_kinds_of_derivatives_lower_the_error(comfyui, derivatives):
    """Of a flow model, which is told its levels exactly, on images that nothing was fitted to. The weights and all
    that belongs to the model are as they were: also those that were made in inference mode."""
    model = small_model("FLOW")
    assert all(weight.is_inference() for weight in model.model.diffusion_model.parameters())
    before = dict(model.model.named_parameters())
    plan, *_ = execute(
        comfyui, "FewStepCalibrate", model, evaluations=3, cfg=1.5, base="euler", derivatives=derivatives
    )
    assert plan.about.error_after < 0.9 * plan.about.error_before
    assert all(weight is before[name] for name, weight in model.model.named_parameters())


@pytest.mark.network
def test_prompts_that_share_no_batch_have_the_gradient_of_all(comfyui):
    """The slope over images of several prompts, one by one and in one batch, and that by differences."""
    gradients, session = module(comfyui, "host.gradients"), module(comfyui, "host.session")
    reference = module(comfyui, "host.reference")
    model, recipe = small_model("FLOW"), gradients.Recipe("euler", (1.0, 0.7, 0.4, 0.0), True)
    samples = samples_of(comfyui, 4, 2)
    parameters = [gradients.Parameter("level", 1), gradients.Parameter("guidance", 2)]
    by = torch.tensor([0.02, -0.01], dtype=torch.float64)
    found = []
    for batch in (0, 1):
        one = session.Session(model, prompts(2), conditioning(2), 2.0, latent(), batch=batch)
        target = torch.zeros(4, *one.shape)
        found.append(gradients.Gradients(one, samples, target).slope(recipe, parameters, by))
    for ours, others in zip(*found, strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-3, atol=1e-6)
    squares, slope = found[0]
    weights = 1 / squares

    def cost(there):
        moved = importlib.import_module(gradients.Parameter.__module__).moved(recipe, parameters, there.tolist())
        samples_ = reference.final_samples(one, reference.CalibratedPlan(moved), samples)
        return (weights * samples_.flatten(1).square().mean(dim=1)).mean()

    for k in range(2):
        h = torch.zeros(2, dtype=torch.float64)
        h[k] = 1e-2
        assert float(slope[k]) == pytest.approx(float(cost(by + h) - cost(by - h)) / 2e-2, rel=0.05)


@pytest.mark.network
def test_too_little_memory_for_backpropagation_makes_smaller_batches(comfyui, session):
    host = module(comfyui, "host.gradients")
    recipe = host.Recipe("euler", (1.0, 0.7, 0.4, 0.0), True)
    samples, by = samples_of(comfyui, 5, 2), torch.tensor([0.02], dtype=torch.float64)

    def slope(most: int) -> tuple:
        model, sizes = small_model("FLOW").clone(), []

        def greedy(network, given):
            sizes.append(len(given["input"]))
            if sizes[-1] > most:
                raise torch.cuda.OutOfMemoryError("no")
            return network(given["input"], given["timestep"], **given["c"])

        model.set_model_unet_function_wrapper(greedy)
        gradients = host.Gradients(session(model, prompts(2)), samples, torch.zeros(5, 4, 8, 8))
        return *gradients.slope(recipe, [host.Parameter("level", 1)], by), sizes

    *whole, sizes = slope(100)
    *parts, smaller = slope(4)
    assert sizes[-1] > 4 >= smaller[-1]
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)


def test_a_model_without_gradients_is_said(comfyui):
    model = small_model("FLOW").clone()

    def closed(network, given):
        with torch.no_grad():
            return network(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(closed)
    named = "derivatives: .*the network lets no gradient through.* choose differences"
    with pytest.raises(ValueError, match=named):
        execute(comfyui, "FewStepCalibrate", model, evaluations=2, base="euler", derivatives="backpropagation")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("this patch wants another latent"),
        torch.OutOfMemoryError("CUDA out of memory"),
        ZeroDivisionError("division by zero"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_of_a_run_by_backpropagation_stay_what_they_are(comfyui, error):
    model = small_model("FLOW").clone()

    def broken(network, given):
        if torch.is_grad_enabled() and given["input"].requires_grad:
            raise error
        return network(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(broken)
    with pytest.raises(type(error), match=str(error)) as raised:
        execute(
            comfyui, "FewStepCalibrate", model, evaluations=2, base="euler", derivatives="backpropagation", samples=1
        )
    assert raised.value is error


def test_a_model_that_leaves_torch_is_said(comfyui):
    model = small_model("FLOW").clone()

    def elsewhere(network, given):
        return torch.from_numpy(network(given["input"], given["timestep"], **given["c"]).numpy())

    model.set_model_unet_function_wrapper(elsewhere)
    named = r"derivatives: backpropagation does not go through this model \(.*grad.*\); choose differences"
    with pytest.raises(ValueError, match=named):
        execute(comfyui, "FewStepCalibrate", model, evaluations=2, base="euler", derivatives="backpropagation")


# What is stopped


class Stopped:
    """Some work that has come to a plan."""

    def __init__(self, plan):
        self._plan = plan

    @property
    def plan(self):
        if isinstance(self._plan, Exception):
            raise self._plan
        return self._plan


def predictor_plan(comfyui):
    training = module(comfyui, "host.training")
    with torch.inference_mode(False):
        return training.CalibratedPlan(training.Recipe("amed", (14.0, 5.0, 2.0, 0.5, 0.0)), training.Predictor())


def stop(comfyui, work, error: BaseException) -> None:
    """As the host's interruption stops a node; the error that comes out is the one that went in."""
    with pytest.raises(type(error)) as raised, module(comfyui, "host.work").kept(work):
        raise error
    assert raised.value is error


def stops() -> list[BaseException]:
    import comfy.model_management as management

    return [
        management.InterruptProcessingException(),
        torch.OutOfMemoryError("CUDA out of memory"),
        KeyboardInterrupt(),
    ]


@pytest.mark.parametrize("kind", range(3))
def test_a_plan_that_cannot_be_saved_goes_elsewhere_and_into_the_log(comfyui, monkeypatch, tmp_path, caplog, kind):
    """Below a file there can be no folder, for root neither."""
    import folder_paths

    (tmp_path / "file").write_text("")
    nowhere, elsewhere = tmp_path / "file" / "fewstep", tmp_path / "output"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "fewstep", ([str(nowhere)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(elsewhere))
    plan = predictor_plan(comfyui)
    stop(comfyui, Stopped(plan), stops()[kind])
    (path,) = elsewhere.iterdir()
    back = module(comfyui, "plans").load(path)
    assert back.recipe == plan.recipe and back.predictor is not None
    assert str(path) in caplog.text and module(comfyui, "host.work").unfinished(plan).text() in caplog.text


def test_a_plan_that_no_folder_takes_is_in_the_log(comfyui, monkeypatch, folder, caplog):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    plan = predictor_plan(comfyui)
    stop(comfyui, Stopped(plan), stops()[0])
    assert module(comfyui, "host.work").unfinished(plan).text() in caplog.text
    assert "No space left" in caplog.text and "its predictor is lost" in caplog.text
    assert not list(folder.glob("*"))


def test_what_stopped_the_work_is_told_though_nothing_can_be_kept(comfyui, folder, caplog):
    stop(comfyui, Stopped(RuntimeError("the device is lost")), stops()[1])
    stop(comfyui, Stopped(None), stops()[0])
    assert "the device is lost" in caplog.text and not list(folder.glob("*"))


def test_the_newest_interrupted_plan_is_kept(comfyui, folder):
    """Others of the user's stay."""
    plan = predictor_plan(comfyui)
    others = [folder / name for name in ("interrupted_of_mine_00001_.safetensors", "interrupted.safetensors")]
    for path in others:
        plan.save(path)
    for number in (1, 2, 3):
        stop(comfyui, Stopped(plan), stops()[0])
        assert set(folder.iterdir()) == {*others, folder / f"interrupted_{number:05}_.safetensors"}


def test_an_error_after_the_work_loses_nothing(comfyui, folder, monkeypatch):
    monkeypatch.setattr(module(comfyui, "calibrate"), "training_plot", lambda steps, errors: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        execute(comfyui, "FewStepTrainAMED", iterations=1, samples=1, batch=1)
    assert len(list(folder.glob("interrupted*"))) == 1


# Both


@pytest.mark.parametrize("node", list(OWN))
def test_inputs_are_not_modified(comfyui, node):
    model, positive, negative, image = small_model("EPS"), prompts(2), conditioning(2), latent()
    weights = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    copies = [entry[0].clone() for entry in positive]
    own = {"iterations": 1} if node == "FewStepTrainAMED" else {"base": "euler"}
    state = torch.get_rng_state()
    execute(comfyui, node, model, positive=positive, negative=negative, latent_image=image, samples=2, **own)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.model.state_dict().items())
    assert all(torch.equal(entry[0], copy) and not entry[1] for entry, copy in zip(positive, copies, strict=True))
    assert not image["samples"].any() and not model.model_options["transformer_options"]
    assert not any(m._forward_hooks for m in model.model.modules())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("node", list(OWN))
@pytest.mark.slow
def test_what_is_stopped_keeps_the_best(comfyui, folder, monkeypatch, node):
    """The host's own interruption, in the middle of a run."""
    import comfy.model_management as management
    import comfy.utils

    stopped = []

    def stop_late(done, total, preview, node_id=None):
        if done >= 0.8 * total and not stopped:
            stopped.append(done)
            management.interrupt_current_processing()

    with monkeypatch.context() as patch:
        patch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop_late)
        with pytest.raises(management.InterruptProcessingException):
            execute(comfyui, node, **({"base": "dpmpp_2m"} if node == "FewStepCalibrate" else {}))
    assert not management.processing_interrupted()
    (path,) = folder.glob("interrupted*")
    plan = comfyui.nodes["FewStepLoadPlan"].execute(path.name).result[0]
    assert sample(comfyui, plan, small_model("EPS")).isfinite().all()


def test_stopped_at_once_there_is_nothing_to_keep(comfyui, folder):
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        execute(comfyui, "FewStepCalibrate")
    assert not list(folder.glob("*"))


@pytest.mark.parametrize("node", list(OWN))
@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"evaluations": 0}, "evaluations = 0"),
        ({"positive": []}, "positive"),
        ({"cfg": math.nan}, "cfg = nan"),
        ({"cfg": math.inf}, "cfg = inf"),
        ({"latent_image": {"samples": torch.ones(1, 7, 8, 8)}}, "latent_image has 7 channels"),
        ({"samples": 0}, "samples = 0"),
        ({"teacher_steps": 3}, "teacher_steps = 3"),
        ({"batch": -1}, "batch = -1"),
        ({"seed": 10**20}, "seed = 1[0]{20} must be a finite number between"),
        ({"seed": -(10**400)}, "seed = a whole number of more than 60 digits must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_the_input(comfyui, folder, node, changed, named):
    with pytest.raises(ValueError, match=named):
        execute(comfyui, node, **changed)
    assert not list(folder.glob("*"))


@pytest.mark.parametrize("node", list(OWN))
def test_every_input_and_output_has_a_tooltip(comfyui, node):
    schema = comfyui.nodes[node].define_schema()
    assert all(part.tooltip for part in (*schema.inputs, *schema.outputs))
