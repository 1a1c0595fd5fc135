"""Distillation in the real host: students, their files, and what is said where one is sampled in another way."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from in_the_host import ksample, module
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import conditioning, small_model
from standins import write_checkpoint

CFG = 2.5
SMALL = {
    "evaluations": 2, "rank": 4, "iterations": 4, "learning_rate": 2e-3, "batch": 4, "seed": 3, "samples": 4,
    "teacher_sampler": "dpmpp_2m", "teacher_schedule": "auto", "teacher_steps": 8, "filename": "mine",
}  # fmt: skip


def prompts(count: int) -> list:
    return [entry for k in range(count) for entry in conditioning(10 + k)]


def latent(channels: int = 4) -> dict:
    return {"samples": torch.zeros(1, channels, 8, 8)}


def execute(comfyui, model=None, **changed):
    inputs = {
        "positive": prompts(2), "negative": conditioning(2), "latent_image": latent(), "cfg": CFG, **SMALL, **changed,
    }  # fmt: skip
    return comfyui.nodes["FewStepDistill"].execute(model or small_model("EPS"), **inputs).result


def load_lora(comfyui, model, file: str):
    return comfyui.nodes["LoraLoaderModelOnly"]().load_lora_model_only(model, file, 1.0)[0]


def sample(comfyui, model, cfg: float = 1.0, steps: int = 2, sampler: str = "ddim", **inputs) -> torch.Tensor:
    """By Few-Step KSampler on the schedule trained."""
    given = {"positive": prompts(1), "negative": conditioning(2), "latent_image": latent(), **inputs}
    node, common = comfyui.nodes["FewStepKSampler"], {"sampler_name": sampler, "scheduler": "trained", "denoise": 1.0}
    return node.execute(model, seed=5, cfg=cfg, steps=steps, **common, **given).result[0]["samples"]


def work(comfyui, model=None, positive=None, cfg: float = CFG, **changed):
    """The training itself."""
    host, session = module(comfyui, "host.distillation"), module(comfyui, "host.session")
    options = {name: value for name, value in (SMALL | changed).items() if name != "filename"}
    one = session.Session(model or small_model("EPS"), positive or prompts(2), conditioning(2), cfg, latent())
    return host.Distillation(one, **options)


def metadata(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return file.metadata()


def student_of(path: Path) -> dict:
    return json.loads(metadata(path)["fewstep_student"])


# Learning


@pytest.mark.parametrize("model_type", ["EPS", "V_PREDICTION", "FLOW"])
@pytest.mark.slow
def test_a_student_learns_what_guidance_does(comfyui, loras, model_type):
    """On samples that it was not trained on it is nearer to the teacher than the model at the same levels without."""
    training = work(comfyui, small_model(model_type), iterations=12)
    steps = list(training)
    assert steps[-1].loss < 0.9 * steps[0].loss
    assert steps[-1].after < 0.9 * steps[-1].before
    assert training.levels[0] == pytest.approx(float(training.session.sampling.sigma_max), rel=1e-6)
    assert training.levels[-1] == 0 and len(training.levels) == 3


def test_the_levels_of_a_student_are_some_of_its_teacher(comfyui):
    training = work(comfyui, evaluations=3, teacher_steps=8)
    assert len(training._sigmas) == 10  # rounded up to a multiple of 3
    assert training.levels == training._sigmas[::3]


def test_a_plan_is_followed_as_a_teacher(comfyui, loras):
    plans = module(comfyui, "host.training")
    plan = plans.CalibratedPlan(plans.Recipe("ipndm_v", (14.6, 5.0, 1.5, 0.3, 0.0)))
    model, path = execute(comfyui, teacher=plan, iterations=1)[0], loras / "mine_00001_.safetensors"
    assert student_of(path)["levels"] == [14.6, 1.5, 0.0]
    assert student_of(path)["about"]["teacher"] == {"sampler": "ipndm_v", "schedule": "plan", "steps": 4}
    assert sample(comfyui, model).isfinite().all()


def test_prompts_that_share_no_batch_are_learned_from(comfyui):
    long = [[torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1)), {}]]
    training = work(comfyui, positive=prompts(1) + long, iterations=1)
    assert not training.session.alike and all(math.isfinite(step.loss) for step in training)


def test_noise_is_never_used_twice_nor_that_of_validation(comfyui):
    training = work(comfyui, iterations=5, batch=4)
    seeds = [sample.seed for k in range(5) for sample in training._batch_of(k)]
    assert len({*seeds}) == 20 and not {*seeds} & {sample.seed for sample in training.validation}


# Files


@pytest.fixture(scope="module")
def checkpoints(comfy_process, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: write_checkpoint(kind, folder / f"{kind}.ckpt") for kind in ("SD15", "SDXL")}


def network_of(path: Path, dtype: torch.dtype | None = None):
    """The MODEL of a checkpoint without its text encoder, and prompts for it."""
    import comfy.sd

    options = {} if dtype is None else {"dtype": dtype}
    model = comfy.sd.load_checkpoint_guess_config(
        str(path), output_vae=False, output_clip=False, model_options=options
    )[0]
    width = 2048 if path.stem == "SDXL" else 768

    def prompt(seed: int) -> list:
        generator = torch.Generator().manual_seed(seed)
        return [[torch.randn(1, 77, width, generator=generator), {"pooled_output": torch.randn(1, 1280)}]]

    return model, {"positive": prompt(1), "negative": prompt(2)}


LITTLE = {"evaluations": 1, "teacher_steps": 2, "iterations": 1, "batch": 1, "samples": 1, "learning_rate": 1e-2}


@pytest.mark.parametrize("kind", ["SD15", "SDXL"])
@pytest.mark.slow
def test_the_file_is_an_ordinary_lora(comfyui, loras, checkpoints, kind, caplog, monkeypatch):
    """With LoraLoader it gives the image of the MODEL output, bit for bit: both have the tensors of the file. The names
    are those of the network's layers, which ComfyUI and, for these two, the WebUIs read."""
    monkeypatch.setattr(module(comfyui, "host.distillation"), "LARGE", 1)  # with activations computed a second time
    model, inputs = network_of(checkpoints[kind])
    made, _, report = execute(comfyui, model, **inputs, **LITTLE)
    path = loras / "mine_00001_.safetensors"
    assert path.name in report
    tensors = load_file(path)
    layers = {
        name.removesuffix(".weight").replace(".", "_")
        for name, weight in model.model.diffusion_model.named_parameters()
        if weight.ndim > 1
    }
    parts = ("lora_up.weight", "lora_down.weight", "alpha")
    assert tensors.keys() == {f"lora_unet_{layer}.{part}" for layer in layers for part in parts}
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_down" in name)
    caplog.clear()
    loaded = load_lora(comfyui, model, path.name)
    assert "not loaded" not in caplog.text and len(loaded.patches) == len(layers)
    images = [ksample(comfyui, m, "fewstep_ddim", steps=1, cfg=1.0, **inputs) for m in (model, made, loaded)]
    plain, ours, theirs = images
    assert torch.equal(ours, theirs) and not torch.equal(ours, plain)
    assert student_of(path)["about"]["model"]["family"] == kind


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.slow
def test_weights_of_fewer_bits_can_be_trained_over(comfyui, loras, checkpoints, dtype):
    model, inputs = network_of(checkpoints["SD15"], dtype)
    assert model.model.get_dtype() == dtype
    training = work(comfyui, model, positive=inputs["positive"], **LITTLE | {"iterations": 2})
    training.session._negative = inputs["negative"]
    training._guided._negative = training._own._negative = inputs["negative"]
    losses = [step.loss for step in training]
    assert all(map(math.isfinite, losses))
    assert any(tensor.any() for name, tensor in training.student.tensors.items() if "lora_down" in name)


def test_the_file_is_the_student_that_was_measured(comfyui, loras):
    """Up to the rounding of the file to fp16, 2^-11 of each of two factors: compared with what the LoRA changes."""
    model = small_model("EPS")
    training = work(comfyui, model, iterations=4)
    measured = [step.samples for step in training][-1]
    made = training.student.on(model)
    own = training.session.on(made, 1.0)
    plain = training.session.on(model, 1.0)
    images, before = (s.run(training._plain, training.levels, training.validation) for s in (own, plain))
    assert (images - measured).norm() < 0.01 * (measured - before).norm()


def test_metadata_say_what_it_is(comfyui, loras):
    execute(comfyui, iterations=2)
    execute(comfyui, iterations=1)
    paths = sorted(loras.iterdir())
    assert [path.name for path in paths] == ["mine_00001_.safetensors", "mine_00002_.safetensors"]
    found = student_of(paths[0])
    assert found["sampler"] == "ddim" and not found["flow"] and len(found["levels"]) == 3
    assert found["training"]["rank"] == 4 and found["training"]["images"] == 8
    about = found["about"]
    assert about["guidance"] == CFG and about["iterations"] == 2 and about["model"]["prediction"] == "EPS"
    assert about["teacher"] == {"sampler": "dpmpp_2m", "schedule": "karras", "steps": 8}
    assert metadata(paths[0])["ss_network_dim"] == "4"


# Going on, stopping, too little memory


@pytest.mark.slow
def test_a_student_is_trained_further(comfyui, loras):
    """It begins where the file ends, and with noise that it has not seen."""
    execute(comfyui, iterations=6)
    file = "mine_00001_.safetensors"
    before = student_of(loras / file)["about"]["error_after"]
    execute(comfyui, iterations=1, start_from=file, learning_rate=1e-6, rank=32)
    again = student_of(loras / "mine_00002_.safetensors")
    assert again["about"]["error_after"] == pytest.approx(before, rel=0.01)  # the file is rounded to fp16
    assert again["training"]["images"] == 28 and again["training"]["rank"] == 4
    training = work(comfyui, start=loras / file, iterations=1, learning_rate=0.5)  # far too high
    for step in training:
        assert step.after == pytest.approx(before, rel=0.01)  # what it began with is still the best
    first = training._batch_of(0)[0].seed
    assert first == work(comfyui)._batch_of(5)[-1].seed + 1


def test_a_start_that_does_not_fit_is_said(comfyui, loras):
    execute(comfyui, iterations=1)
    tensors = load_file(loras / "mine_00001_.safetensors")
    known = metadata(loras / "mine_00001_.safetensors")
    name = next(name for name in tensors if "lora_down" in name)
    save_file({**tensors, name: tensors[name][:, :1].contiguous()}, loras / "other.safetensors", known)
    save_file(tensors, loras / "plain.safetensors")
    (loras / "cut.safetensors").write_bytes((loras / "mine_00001_.safetensors").read_bytes()[:-9])
    for file, named in (
        ("other.safetensors", "start_from: it is no student of this model"),
        ("plain.safetensors", "start_from: plain.safetensors is no student of Few-Step Distill"),
        ("cut.safetensors", "start_from: cut.safetensors cannot be read"),
        ("nowhere.safetensors", "start_from: 'nowhere.safetensors' is not in models/loras"),
    ):
        with pytest.raises(ValueError, match=named):
            execute(comfyui, start_from=file)
    alpha, plain = next(name for name in tensors if "alpha" in name), "does not hold finite floating-point numbers"
    for key, odd, named in (
        (name, tensors[name].to(torch.float8_e4m3fn), plain),
        (name, tensors[name].int(), plain),
        (name, tensors[name].to(torch.complex64), plain),
        (name, torch.full_like(tensors[name], torch.nan), plain),
        (alpha, torch.tensor(torch.inf), plain),
        (alpha, torch.ones(2), "start_from: it is no student of this model"),
        (name, torch.ones(()), "start_from: it is no student of this model"),
    ):
        save_file({**tensors, key: odd}, loras / "odd.safetensors", known)
        with pytest.raises(ValueError, match=f"start_from.*{named.removeprefix('start_from')}"):
            execute(comfyui, start_from="odd.safetensors")


def test_what_is_stopped_keeps_the_best(comfyui, loras, monkeypatch):
    """The host's own interruption, in the middle; of two that were stopped the newer stays."""
    import comfy.model_management as management
    import comfy.utils

    for _ in range(2):
        stopped = []

        def stop_late(done, total, preview, node_id=None, stopped=stopped):
            if done >= 0.8 * total and not stopped:
                stopped.append(done)
                management.interrupt_current_processing()

        with monkeypatch.context() as patch:
            patch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop_late)
            with pytest.raises(management.InterruptProcessingException):
                execute(comfyui)
    (path,) = loras.iterdir()
    assert path.name == "interrupted_student_00002_.safetensors"
    assert student_of(path)["about"]["interrupted"] and student_of(path)["about"]["iterations"] < 4
    assert sample(comfyui, load_lora(comfyui, small_model("EPS"), path.name)).isfinite().all()


def test_stopped_at_once_there_is_nothing_to_keep(comfyui, loras):
    import comfy.model_management as management

    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        execute(comfyui)
    assert not list(loras.iterdir())


def test_a_student_that_cannot_be_saved_goes_elsewhere(comfyui, monkeypatch, tmp_path, caplog):
    import folder_paths

    (tmp_path / "file").write_text("")
    nowhere, elsewhere = tmp_path / "file" / "loras", tmp_path / "output"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(nowhere)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(elsewhere))
    with pytest.raises(OSError, match="could not be saved"):
        execute(comfyui, iterations=1)
    (path,) = elsewhere.iterdir()
    assert str(path) in caplog.text and student_of(path)["levels"]


def test_too_little_memory_halves_the_batch(comfyui, loras):
    """The gradient of a batch is added up from parts: the weights go where those of the whole batch go.

    Compared with the way that they have gone: gradients in another order differ by rounding, and Adam divides each by
    its own size, so that one near 0 may go either way.
    """

    def learned(most: int) -> tuple[torch.Tensor, list[int]]:
        model, sizes = small_model("EPS").clone(), []

        def greedy(network, given):
            if torch.is_grad_enabled():
                sizes.append(len(given["input"]))
                if sizes[-1] > most:
                    raise torch.cuda.OutOfMemoryError("no")
            return network(given["input"], given["timestep"], **given["c"])

        model.set_model_unet_function_wrapper(greedy)
        training = work(comfyui, model, iterations=2)
        start = torch.cat([weight.detach().flatten().clone() for weight in training._learner.parameters.values()])
        list(training)
        return torch.cat([weight.detach().flatten() for weight in training._learner.parameters.values()]) - start, sizes

    whole, sizes = learned(100)
    parts, smaller = learned(2)
    assert sizes == [4] * 4 and smaller == [4, *[2] * 8]  # once too many, then what fits
    assert (parts - whole).norm() < 0.01 * whole.norm()


# Bad input


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"evaluations": 0}, "evaluations = 0"),
        ({"evaluations": 9}, "evaluations = 9 must be at most 8"),
        ({"positive": []}, "positive"),
        ({"cfg": math.nan}, "cfg = nan"),
        ({"latent_image": {"samples": torch.ones(1, 7, 8, 8)}}, "latent_image has 7 channels"),
        ({"samples": 0}, "samples = 0"),
        ({"rank": 0}, "rank = 0"),
        ({"iterations": 0}, "iterations = 0"),
        ({"batch": 0}, "batch = 0"),
        ({"learning_rate": math.nan}, "learning_rate = nan"),
        ({"learning_rate": 0.0}, "learning_rate = 0"),
        ({"teacher_steps": 2}, "teacher_steps = 2"),
        ({"teacher_sampler": "dpmpp_2m_sde"}, "teacher_sampler = 'dpmpp_2m_sde'"),
        ({"teacher_schedule": "nonsense"}, "teacher_schedule = 'nonsense'"),
        ({"filename": "../up"}, r"filename = '../up' must be a name, .* inside models/loras"),
        ({"filename": "con"}, "filename = 'con' holds 'con', which cannot be the name of a file on Windows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_the_input(comfyui, loras, changed, named):
    with pytest.raises(ValueError, match=named):
        execute(comfyui, **changed)
    assert not list(loras.iterdir())


def test_a_teacher_that_does_not_fit_is_said(comfyui, loras):
    plans = module(comfyui, "host.training")
    odd = plans.Recipe("euler", (14.6, 5.0, 1.5, 0.0))
    even = plans.Recipe("euler", (14.6, 5.0, 1.5, 0.3, 0.0))
    about = module(comfyui, "host.work").About
    with torch.inference_mode(False):
        predictor = plans.Predictor()
    for plan, named in (
        (plans.CalibratedPlan(odd), "teacher: its number of steps, 3, must be 2, 3 or more times evaluations = 2"),
        (
            plans.CalibratedPlan(even, about=about(guidance=7.0)),
            "teacher: .* at guidance 7 and cfg is 2.5: set cfg",
        ),
        (plans.CalibratedPlan(even, about=about(model={"prediction": "CONST"})), "teacher: .* for another model"),
        (plans.CalibratedPlan(even, predictor), "teacher: this plan has a predictor"),
    ):
        with pytest.raises(ValueError, match=named):
            execute(comfyui, teacher=plan)


def test_quantised_weights_are_said(comfyui, loras):
    model = small_model("EPS")
    layer = model.model.diffusion_model.time_embed[0]
    layer.weight = torch.nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"model: time_embed.0 has weights of torch.int8, which no gradient goes through"
    ):
        execute(comfyui, model)


def test_a_model_without_gradients_is_said(comfyui, loras):
    model = small_model("EPS").clone()

    def closed(network, given):
        with torch.no_grad():
            return network(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(closed)
    with pytest.raises(ValueError, match="model: no gradient goes through it"):
        execute(comfyui, model)


def test_a_model_that_sets_its_own_guidance_is_said(comfyui, loras):
    guidance = module(comfyui, "guidance").Guidance("constant", cfg=7.0)
    model = comfyui.nodes["FewStepGuidancePatch"].execute(small_model("EPS"), guidance).result[0]
    with pytest.raises(ValueError, match="model: it sets its guidance by itself, to 7"):
        execute(comfyui, model)


def test_inputs_are_not_modified(comfyui, loras):
    model, positive, image = small_model("EPS"), prompts(2), latent()
    weights = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    state, copies = torch.get_rng_state(), [entry[0].clone() for entry in positive]
    execute(comfyui, model, positive=positive, latent_image=image, iterations=1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(*(ksample(comfyui, each, "fewstep_ddim") for each in (model, small_model("EPS"))))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.model.state_dict().items())
    assert all(torch.equal(entry[0], copy) and not entry[1] for entry, copy in zip(positive, copies, strict=True))
    assert not image["samples"].any() and not model.model_options["transformer_options"] and not model.attachments
    assert not any("forward" in vars(m) or m._forward_hooks for m in model.model.modules())
    assert not any(getattr(m, "weight_function", []) for m in model.model.modules())


# Sampling a student


@pytest.fixture
def student(comfyui, loras):
    """The MODEL of a student of two evaluations."""
    return execute(comfyui, iterations=1)[0]


def loader(file: str, strength: float = 1.0) -> dict:
    """A graph in which a student's LoRA is loaded on the way to a node."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.ckpt"}},
        "2": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["1", 0], "lora_name": file, "strength_model": strength},
        },
        "3": {"class_type": "FewStepAuto", "inputs": {"model": ["2", 0]}},
        "4": {"class_type": "CFGGuider", "inputs": {"model": ["2", 0]}},
        "5": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["4", 0]}},
    }


def test_what_it_was_trained_for_survives_a_clone_and_a_file(comfyui, loras, student):
    students = module(comfyui, "host.students")
    kept = students.student_of(student.clone(), None, None)
    assert kept is not None and kept.steps == 2 and kept.about.guidance == CFG
    plain = small_model("EPS")
    for node in ("3", "5"):
        assert students.student_of(plain, loader("mine_00001_.safetensors"), node) == kept
    assert students.student_of(plain, loader("mine_00001_.safetensors", 0.0), "3") is None
    assert students.student_of(plain, None, "3") is None


def test_trained_and_auto_have_its_levels(comfyui, student):
    levels = torch.tensor(module(comfyui, "host.students").student_of(student, None, None).levels)
    for steps in (2, 7):
        found = comfyui.nodes["FewStepScheduler"].execute(student, "trained", steps, 1.0).result[0]
        assert torch.equal(found, levels)
    sampler, sigmas, text = comfyui.nodes["FewStepAuto"].execute(student, 8, "exact seed", 1.0).result
    assert torch.equal(sigmas, levels) and sampler.sampler_function.__name__ == "sample_fewstep_ddim"
    assert "steps = 2" in text and "cfg 1" in text and "guidance 2.5 is in it" in text
    _, part, _ = comfyui.nodes["FewStepAuto"].execute(student, 2, "exact seed", 0.5).result
    assert torch.equal(part, levels[1:])
    *_, few = comfyui.nodes["FewStepAuto"].execute(student, 1, "exact seed", 1.0).result
    assert "was trained for steps = 2: set evaluations to that number" in few
    *_, strong = comfyui.nodes["FewStepAuto"].execute(student, 2, "exact seed", 1.0, cfg=7.0).result
    assert "this run has cfg 7" in strong
    with pytest.raises(ValueError, match="SDXL-Lightning"):  # another model is chosen
        comfyui.nodes["FewStepScheduler"].execute(student, "trained", 3, 1.0, distilled="sdxl_lightning")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"cfg": 7.0}, "this student has guidance 2.5 in it and was trained for cfg 1, and this run has cfg 7"),
        ({"sampler": "dpmpp_2m"}, "this student was trained for the sampler ddim and this run has dpmpp_2m"),
        ({"sampler": "euler"}, None),
    ],
)
def test_another_way_to_sample_it_is_said(comfyui, student, caplog, changed, said):
    caplog.clear()
    sample(comfyui, student, **changed)
    assert "this student" not in caplog.text if said is None else said in caplog.text


def test_other_steps_are_said_by_any_node_that_samples(comfyui, student, caplog):
    caplog.clear()
    ksample(comfyui, student, "fewstep_ddim", cfg=1.0, steps=6)
    assert "this student was trained for steps = 2 and this run has 6" in caplog.text
    caplog.clear()
    ksample(comfyui, student, "fewstep_ddim", cfg=1.0, steps=2)
    assert "this student was trained at the noise levels 14.61, 0.8289, 0 and this run has 14.61" in caplog.text


def test_a_student_of_another_model_is_left_out(comfyui, loras, student, caplog):
    students, auto = module(comfyui, "host.students"), module(comfyui, "auto")
    found = students.student_of(student, None, None)
    other = {**found.about.model, "family": "SDXL"}
    levels = module(comfyui, "host.model").level_range(student.get_model_object("model_sampling"))
    choice = auto.choose(
        levels, other | students.facts_of(found), evaluations=2, variety="exact seed", denoise=1.0, use_plans=False
    )
    assert "The connected student is left out: this student is for the Few-Step demo; your model is SDXL" in choice.text
    flow = small_model("FLOW")
    flow.set_attachments("fewstep_student", found)
    caplog.clear()
    ksample(comfyui, flow, "fewstep_ddim", scheduler="simple")
    assert "this student was made for another model" in caplog.text


DAMAGE = {
    "cut in the header": lambda content: content[:20],
    "empty": lambda content: b"",
    "a header longer than the file": lambda content: struct.pack("<Q", 2**62) + content[8:],
    "no JSON": lambda content: struct.pack("<Q", 9) + b"not JSON!",
    "metadata that are a list": lambda content: struct.pack("<Q", 21) + b'{"__metadata__":[1]}  ',
    "no student": lambda content: header_with("[]"),
    "NaN": lambda content: header_with('{"version": 1, "levels": [NaN, 0], "sampler": "ddim"}'),
    "ascending": lambda content: header_with('{"version": 1, "levels": [1, 2], "sampler": "ddim"}'),
    "a later version": lambda content: header_with('{"version": 99}'),
    "another sampler": lambda content: header_with('{"version": 1, "levels": [1, 0], "sampler": ["x"]}'),
    "nested": lambda content: header_with("[" * 100000),
    "about": lambda content: header_with('{"version": 1, "levels": [1, 0], "sampler": "ddim", "about": {"model": 3}}'),
}


def header_with(student: str) -> bytes:
    header = json.dumps({"__metadata__": {"fewstep_student": student}}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize("kind", list(DAMAGE))
@pytest.mark.slow
def test_a_file_that_is_damaged_or_hostile_is_no_student(comfyui, loras, student, kind):
    path = loras / "mine_00001_.safetensors"
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    students = module(comfyui, "host.students")
    assert students.student_of(small_model("EPS"), loader(path.name), "3") is None


def test_a_file_that_is_replaced_is_read_again(comfyui, loras, student):
    students, path = module(comfyui, "host.students"), loras / "mine_00001_.safetensors"
    assert students.student_of_file(path.name).steps == 2
    header = '{"version": 1, "levels": [3, 2, 1, 0], "sampler": "consistency"}'
    path.write_bytes(header_with(header))
    assert students.student_of_file(path.name).steps == 3
    assert students.student_of_file(path.name).sampler == "consistency"


def test_a_plot_has_the_levels_of_the_student(comfyui, routes, student):
    """From the facts that a node has sent; facts that are none are an error in the plot."""
    known = module(comfyui, "host.model").levels_ui(student, module(comfyui, "host.students").facts_of(
        module(comfyui, "host.students").student_of(student, None, None)
    ))  # fmt: skip
    request = {
        "node": {"type": "FewStepScheduler", "inputs": {"schedule": "trained", "steps": 5}},
        "levels": known["fewstep_levels"][0],
        "model": known["fewstep_model"][0],
    }
    assert routes.sigmas(request)["sigmas"] == pytest.approx([14.6146, 0.82887, 0.0], rel=1e-4)
    with pytest.raises(ValueError, match="field fewstep_student is not valid JSON"):
        routes.sigmas({**request, "model": {"student": "?"}})


def test_every_input_and_output_has_a_tooltip(comfyui):
    schema = comfyui.nodes["FewStepDistill"].define_schema()
    assert all(part.tooltip for part in (*schema.inputs, *schema.outputs))
