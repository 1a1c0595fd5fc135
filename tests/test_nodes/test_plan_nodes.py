"""The nodes for calibrated plans in the real host: files, sampling, the bottleneck that a predictor reads, figures."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from in_the_host import ksample, module
from safetensors import safe_open
from safetensors.torch import save_file
from small_models import conditioning, small_model

from samplers import SCHEDULES, read_levels
from samplers.calibrated.about import About
from samplers.calibrated.plan import CalibratedPlan
from samplers.calibrated.plan import load as load_file
from samplers.calibrated.predictor import Predictor, pool
from samplers.calibrated.published import AMED_SD15, PUBLISHED
from samplers.calibrated.recipe import Recipe
from samplers.calibrated.tuning import Tuning
from samplers.guidance import Guidance
from samplers.solvers.amed import with_midpoints
from samplers.trajectory import principal

SIGMAS = (14.6, 7.0, 3.0, 1.4, 0.6, 0.2, 0.0)
CFG = 2.5


def small_plan(**about) -> CalibratedPlan:
    """A plan of 6 evaluations that changes something everywhere."""
    tunings = tuple(
        Tuning(1 - 0.01 * k, 1 + 0.01 * k, 0.05 * (k > 0), 0.02 * (k > 1), 1 + 0.1 * k) for k in range(len(SIGMAS) - 1)
    )
    return CalibratedPlan(Recipe("dpmpp_2m", SIGMAS, tunings=tunings), about=About(**about))


def small_predictor(**about) -> CalibratedPlan:
    """An AMED predictor of large effect, drawn from a fixed seed."""
    torch.manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():
        predictor = Predictor(0.3, 0.1)
        for parameter in predictor.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
        levels, tunings = predictor.fixed(read_levels(SIGMAS))
    return CalibratedPlan(
        Recipe("amed_dpm_2m", levels.sigmas, tunings=tuple(tunings)), predictor.requires_grad_(False), About(**about)
    )


def as_family(model, family: str):
    """The model, said to be of another family of the host's."""
    config = model.model.model_config
    config.__class__ = type(family, (type(config),), {})
    return model


def load(comfyui, file: str = "", text: str = ""):
    return comfyui.nodes["FewStepLoadPlan"].execute(file, text).result[0]


def sampler(comfyui, plan, **inputs):
    return comfyui.nodes["FewStepPlanSampler"].execute(plan, **inputs).result


def sample(comfyui, plan, model, *, latent=None, cfg=CFG, sigmas=None, positive=None, noise=True, **inputs):
    solver, own = sampler(comfyui, plan, **inputs)
    return run(comfyui, solver, own if sigmas is None else sigmas, model, latent, cfg, positive, noise)


def run(comfyui, solver, sigmas, model, latent=None, cfg=CFG, positive=None, noise=True):
    latent = {"samples": torch.zeros(1, 4, 8, 8)} if latent is None else latent
    node = comfyui.nodes["SamplerCustom"]
    positive = conditioning(1) if positive is None else positive
    out = node.execute(model, noise, 3, cfg, positive, conditioning(2), solver, sigmas, latent)
    return out.result[0]["samples"]


# Files


def test_the_folder_is_the_hosts(comfyui, monkeypatch):
    """models/fewstep, safetensors alone; a folder that the user's own settings name stays, and no folder is made."""
    import folder_paths

    package = comfyui.nodes["FewStepLoadPlan"].__module__.rpartition(".")[0]
    module = sys.modules[f"{package}.host.plan_files"]
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "fewstep")
    folder_paths.add_model_folder_path("fewstep", "/elsewhere/plans")
    for _ in range(2):
        module.register_folder()
    own = str(Path(folder_paths.models_dir, "fewstep"))
    assert folder_paths.folder_names_and_paths["fewstep"] == ([own, "/elsewhere/plans"], {".safetensors"})


@pytest.mark.network
@pytest.mark.parametrize("kind", ["plan", "amed"])
def test_saved_and_loaded_again(comfyui, folder, eps_model, kind):
    """The file holds all of it; as a text a predictor is its fixed plan. Nothing is ever overwritten."""
    plan = small_plan(guidance=CFG, seeds=[1, 2]) if kind == "plan" else small_predictor(guidance=CFG)
    assert not folder.exists()
    first, second = (comfyui.nodes["FewStepSavePlan"].execute(plan, "mine/plan") for _ in range(2))
    files = comfyui.nodes["FewStepLoadPlan"].define_schema().inputs[0].options
    assert files[-2:] == [os.path.join("mine", f"plan_0000{k}_.safetensors") for k in (1, 2)]
    assert str(folder / "mine" / "plan_00002_.safetensors") in second.ui.as_dict()["text"][0]
    loaded = load(comfyui, files[-1])
    assert first.result[0] is plan and loaded.as_dict() == plan.as_dict()
    if kind == "amed":
        for key, tensor in plan.predictor.state_dict().items():
            assert torch.equal(loaded.predictor.state_dict()[key], tensor)
    image = sample(comfyui, loaded, eps_model)
    assert torch.equal(sample(comfyui, plan, eps_model), image)
    pasted = load(comfyui, text=first.result[1])
    assert pasted.predictor is None
    assert torch.equal(sample(comfyui, pasted, eps_model), sample(comfyui, loaded, eps_model, see_bottleneck=False))
    assert torch.equal(sample(comfyui, pasted, eps_model), image) == (kind == "plan")


def test_text_in_a_workflow_is_the_file(comfyui, folder, eps_model):
    """Text wins over the file, through JSON as a workflow is saved; the file may then be gone."""
    text = small_plan().text()
    folder.mkdir()
    small_plan().save(folder / "a.safetensors")
    workflow = json.loads(json.dumps({"file": "gone.safetensors", "text": f"\n{text}\n"}))
    assert validate(comfyui, workflow) is None
    pasted, summary = comfyui.nodes["FewStepLoadPlan"].execute(**workflow).result
    assert "dpmpp_2m, 6 evaluations, sigma 14.6 to 0" in summary
    assert torch.equal(sample(comfyui, pasted, eps_model), sample(comfyui, load(comfyui, "a.safetensors"), eps_model))


@pytest.mark.parametrize("name", ["../plan", "a/../../plan", "/tmp/plan", "C:\\plan", "..\\plan", "", ".", " "])
def test_nothing_is_written_outside_the_folder(comfyui, folder, name):
    with pytest.raises(ValueError, match=r"^filename = .* must be a name.*inside models/fewstep"):
        comfyui.nodes["FewStepSavePlan"].execute(small_plan(), name)
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0b", r"filename = 'a\\x00b' holds '\\x00', which not every system takes"),
        ("plan\n2", r"filename = 'plan\\n2' holds '\\n'"),
        ("a\u2028b", "filename = .* holds"),
        ("\ud800", r"filename = '\\ud800' holds '\\ud800'"),
        ("a*b?", r"filename = .* holds '\*'"),
        ("CON", "filename = 'CON' holds 'CON', which cannot be the name of a file on Windows: choose another"),
        ("sub/lpt1.old/plan", "filename = .* holds 'lpt1.old'"),
        ("name.", "filename = 'name.' holds 'name.'"),
        ("x" * 300, "filename = .* is too long: a name may have 200 bytes"),
        ("計" * 100, "filename = .* is too long"),
        ("a/" * 2000 + "b", "filename = .* has 2000 folders inside each other: use at most 99"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_name_that_no_file_can_have_is_told_when_queued(comfyui, folder, name, message):
    """And in a run, where another node may have given it."""
    node = comfyui.nodes["FewStepSavePlan"]
    assert re.search(message, node.validate_inputs(name))
    with pytest.raises(ValueError, match=message):
        node.execute(small_plan(), name)
    assert not list(folder.parent.iterdir())


def test_a_path_that_is_too_long_is_the_fault_of_the_name(comfyui, folder):
    """No folders are made for it, and the plan is there under another name."""
    with pytest.raises(ValueError, match=r"filename = .* makes a path that is too long: shorten it"):
        comfyui.nodes["FewStepSavePlan"].execute(small_plan(), "/".join(["x" * 100] * 60))
    assert [path.name for path in folder.iterdir()] == ["rescued_00001_.safetensors"]


def test_names_of_other_languages_are_names(comfyui, folder):
    for name in ("Pläne/größe 計画 😀", "a.b.c", ".hidden", " plan "):
        assert comfyui.nodes["FewStepSavePlan"].validate_inputs(name) is True
        comfyui.nodes["FewStepSavePlan"].execute(small_plan(), name)
    assert len(list(folder.rglob("*_00001_.safetensors"))) == 4
    assert comfyui.nodes["FewStepSavePlan"].validate_inputs() is True  # another node gives it


def test_a_plan_that_cannot_be_saved_is_not_lost(comfyui, folder, monkeypatch, tmp_path, caplog):
    """Other folders are tried; the error says where it is."""
    import folder_paths

    folder.write_text("a file where the folder should be")
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    plan = small_predictor()
    with pytest.raises(OSError, match=r"the plan could not be saved .*; it is in .*rescued_00001_.safetensors instead"):
        comfyui.nodes["FewStepSavePlan"].execute(plan, "mine")
    (path,) = (tmp_path / "output").iterdir()
    assert load_file(path).recipe == plan.recipe and plan.text() in caplog.text


@pytest.mark.parametrize("name", ["../secret.safetensors", "secret.safetensors", "a/../../secret.safetensors"])
def test_nothing_is_read_outside_the_folder(comfyui, folder, name):
    folder.mkdir()
    small_plan().save(folder.parent / "secret.safetensors")
    for file in (name, str(folder.parent / "secret.safetensors")):
        with pytest.raises(ValueError, match=r"^file: .* is not in models/fewstep: put it there, choose another"):
            load(comfyui, file)


def test_typed_extension_is_not_doubled(comfyui, folder):
    comfyui.nodes["FewStepSavePlan"].execute(small_plan(), "plan.safetensors")
    assert [path.name for path in folder.iterdir()] == ["plan_00001_.safetensors"]


def validate(comfyui, inputs: dict) -> str | None:
    """What the host says of a LoadPlan node with these inputs when it is queued."""
    import execution

    prompt = {"1": {"class_type": "FewStepLoadPlan", "inputs": inputs}}
    valid, errors, _ = asyncio.run(execution.validate_inputs("id", prompt, "1", {}))
    return None if valid else errors[0]["details"]


def test_a_missing_file_is_told_when_queued(comfyui, folder):
    folder.mkdir()
    small_plan().save(folder / "a.safetensors")
    assert validate(comfyui, {"file": "a.safetensors", "text": ""}) is None
    assert validate(comfyui, {"file": next(iter(built_in(comfyui))), "text": ""}) is None
    assert "'b.safetensors' is not in models/fewstep: put it there" in validate(
        comfyui, {"file": "b.safetensors", "text": " "}
    )


def test_a_changed_file_is_read_again(comfyui, folder):
    folder.mkdir()
    node = comfyui.nodes["FewStepLoadPlan"]
    path = folder / "a.safetensors"
    small_plan().save(path)
    before = node.fingerprint_inputs("a.safetensors", "")
    assert node.fingerprint_inputs("a.safetensors", "") == before
    os.utime(path, ns=(1, 1))
    touched = node.fingerprint_inputs("a.safetensors", "")
    small_plan(source="another").save(path)
    os.utime(path, ns=(1, 1))
    assert len({before, touched, node.fingerprint_inputs("a.safetensors", "")}) == 3
    assert node.fingerprint_inputs("a.safetensors", "{}") != node.fingerprint_inputs("a.safetensors", "{ }")


def rewritten(path: Path, change) -> None:
    """The file with other metadata and tensors."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, path, metadata)


def recipe_with(field: str, value):
    def change(metadata, tensors):
        metadata["recipe"] = json.dumps(json.loads(metadata["recipe"]) | {field: value})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m, t: m.update(format="other"),
            r"field format is 'other', not 'fewstep-plan': this is not a file of Few-",
        ),
        (lambda m, t: m.update(version="2"), r"field version is 2 and this Few-Step reads up to 1: update Few-Step"),
        (lambda m, t: m.update(kind="lora"), r"field kind is 'lora': it must be plan or amed"),
        (lambda m, t: m.update(recipe="{"), r"field recipe is not valid JSON .* download it again"),
        (recipe_with("base", "dpmpp_9m"), r"field recipe: base = 'dpmpp_9m' is not a sampler of this version; known: "),
        (recipe_with("sigmas", [14.6, math.nan, *SIGMAS[2:]]), r"sigmas\[1\] = nan: noise levels must be finite"),
        (lambda m, t: t["heads.0.bias"].fill_(math.nan), r"tensor heads.0.bias holds NaN .* train the predictor again"),
        (lambda m, t: t.pop("heads.0.bias"), r"tensor heads.0.bias is missing: download"),
    ],
)
def test_bad_files_name_the_field_and_what_to_do(comfyui, folder, change, message):
    small_predictor().save(folder / "a.safetensors")
    rewritten(folder / "a.safetensors", change)
    with pytest.raises(ValueError, match=r"^a\.safetensors: .*" + message):
        load(comfyui, "a.safetensors")


@pytest.mark.parametrize("length", [0, 4, 100, 20_000])
def test_truncated_file(comfyui, folder, length):
    path = folder / "a.safetensors"
    small_predictor().save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged or was cut off .* copy or download it again"):
        load(comfyui, "a.safetensors")


def test_bad_text_names_the_input(comfyui):
    with pytest.raises(ValueError, match=r"^text: .* paste all of it"):
        load(comfyui, text=small_plan().text()[:-9])
    with pytest.raises(ValueError, match=r"^text: .*field kind is amed|^text: .*field predictor"):
        load(comfyui, text=json.dumps(small_predictor().as_dict() | {"predictor": None}))


# Models


@pytest.mark.parametrize(
    ("field", "value"), [("family", "SDXL"), ("sigma_max", 80.0), ("latent_channels", 16), ("prediction", "EDM")]
)
def test_a_plan_for_another_model(comfyui, eps_model, field, value):
    """Told at once where the model is connected, else when sampling begins."""
    plan = small_plan(model={field: value})
    message = f"this plan was made for another model: {field} is {value:g}" if field == "sigma_max" else f"{field} is "
    if field == "family":
        message = "this plan is for SDXL; your model is the Few-Step demo"
    for attempt in (lambda: sampler(comfyui, plan, model=eps_model), lambda: sample(comfyui, plan, eps_model)):
        with pytest.raises(ValueError, match=f"{message}.*Load the model it was made for, or calibrate"):
            attempt()


def test_a_plan_made_for_this_model(comfyui, eps_model):
    module = sys.modules[comfyui.nodes["FewStepPlanSampler"].__module__]
    plan = small_plan(model=module.fingerprint(eps_model))
    solver, sigmas = sampler(comfyui, plan, model=eps_model)
    assert run(comfyui, solver, sigmas, eps_model).isfinite().all()


@pytest.mark.parametrize(
    ("model_type", "node", "setting", "field"),
    [
        ("EPS", "ModelSamplingDiscrete", ("v_prediction", False), "prediction is EPS there and V_PREDICTION"),
        ("EPS", "ModelSamplingDiscrete", ("lcm", False), "prediction is EPS there and LCM"),
        ("FLOW", "ModelSamplingSD3", (3.0,), "shift is 1 there and 3"),
    ],
)
def test_a_model_whose_sampling_was_changed_is_another(comfyui, model_type, node, setting, field):
    module, model = sys.modules[comfyui.nodes["FewStepPlanSampler"].__module__], small_model(model_type)
    plan = small_plan(model=module.fingerprint(model))
    sampler(comfyui, plan, model=model)
    (changed,) = comfyui.nodes[node]().patch(model, *setting)
    with pytest.raises(ValueError, match=field):
        sampler(comfyui, plan, model=changed)


# Sampling


def denoiser(model, cfg: float = CFG) -> SimpleNamespace:
    """The model without any of the host's sampling: `call(x, sigma)`, guided by `scale`; `middle` is what it saw."""
    base, seen = model.model, SimpleNamespace(scale=cfg, middle=None)

    def keep(module, args, output):
        seen.middle = output

    def call(x, sigma, **_):
        with torch.no_grad():
            handle = base.diffusion_model.middle_block[-1].register_forward_hook(keep)
            cond = base.apply_model(x, sigma, c_crossattn=conditioning(1)[0][0].expand(len(x), -1, -1))
            handle.remove()
            uncond = base.apply_model(x, sigma, c_crossattn=conditioning(2)[0][0].expand(len(x), -1, -1))
        return uncond + (cond - uncond) * seen.scale

    seen.call = call
    seen.guide = lambda factor: setattr(seen, "scale", cfg * factor)
    return seen


def starting_noise(model, shape=(1, 4, 8, 8)):
    import comfy.sample

    sampling = model.get_model_object("model_sampling")
    noise = comfy.sample.prepare_noise(torch.zeros(shape), 3)
    return sampling.noise_scaling(torch.tensor(SIGMAS[0]), noise, torch.zeros(shape), False)


@pytest.mark.network
@pytest.mark.parametrize("kind", ["plan", "amed", "fixed"])
def test_same_image_as_the_library(comfyui, eps_model, kind):
    """The node's sampler is `CalibratedPlan.function` with the host's noise, guidance and bottleneck."""
    plan = small_plan() if kind == "plan" else small_predictor()
    direct = denoiser(eps_model)
    wanted = plan.function(
        direct.call, starting_noise(eps_model), disable=True, set_guidance=direct.guide,
        bottleneck=(lambda: direct.middle) if kind == "amed" else None,
    )  # fmt: skip
    ours = sample(comfyui, plan, eps_model, see_bottleneck=kind != "fixed")
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.network
def test_every_image_of_a_batch_has_its_own_numbers(comfyui, eps_model):
    """Those that it gets alone."""
    plan, batch = small_predictor(), {"samples": torch.zeros(2, 4, 8, 8)}
    both = sample(comfyui, plan, eps_model, latent=batch)
    other = sample(comfyui, plan, eps_model, latent=batch, see_bottleneck=False)
    alone = sample(comfyui, plan, eps_model)
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
    assert not torch.allclose(both, other, atol=1e-2 * float(alone.abs().max()))


@pytest.mark.network
@pytest.mark.parametrize("kind", ["plan", "amed"])
def test_image_to_image_with_a_part_of_the_sigmas(comfyui, eps_model, kind):
    """SplitSigmas: its second part starts from an image; both parts one after the other end finite."""
    plan = small_plan() if kind == "plan" else small_predictor()
    _, sigmas = sampler(comfyui, plan)
    assert sigmas.dtype == torch.float32 and sigmas.device.type == "cpu"
    assert torch.equal(sigmas, torch.tensor(plan.recipe.sigmas))
    high, low = comfyui.nodes["SplitSigmas"].execute(sigmas, 2).result
    image = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    out = sample(comfyui, plan, eps_model, sigmas=low, latent=image)
    assert out.isfinite().all() and not torch.allclose(out, sample(comfyui, plan, eps_model, sigmas=low))
    piece = CalibratedPlan(plan.recipe.piece(low), plan.predictor)
    assert torch.equal(sample(comfyui, piece, eps_model, sigmas=low, latent=image), out)
    assert sample(comfyui, plan, eps_model, sigmas=high).isfinite().all()


def test_foreign_sigmas_say_what_to_connect(comfyui, eps_model):
    (sigmas,) = comfyui.nodes["FewStepScheduler"].execute(eps_model, "karras", 6, 1.0).result
    for plan in (small_plan(), small_predictor()):
        with pytest.raises(ValueError, match="connect the sigmas that come with the plan, whole or a part"):
            sample(comfyui, plan, eps_model, sigmas=sigmas)


# Guidance


@pytest.mark.network
def test_guidance_of_each_evaluation(comfyui, eps_model):
    """The factors reach the host's guidance, and its scale is what it was afterwards."""
    scales = []
    model = eps_model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: scales.append(args["cond_scale"]) or args["denoised"])
    guider = comfyui.nodes["CFGGuider"].execute(model, conditioning(1), conditioning(2), CFG).result[0]
    plan = small_plan()
    solver, sigmas = sampler(comfyui, plan)
    zeros = torch.zeros(1, 4, 8, 8)
    guider.sample(starting_noise(model), zeros, solver, sigmas, seed=0)
    assert scales == pytest.approx([CFG * tuning.guidance for tuning in plan.recipe.tunings])
    assert guider.cfg == CFG


@pytest.mark.network
@pytest.mark.parametrize("kind", ["error", "interruption"])
def test_nothing_is_left_behind(comfyui, eps_model, kind):
    """After an error or a cancelled run the guidance is what it was and the network has no hooks; so after success."""
    import comfy.model_management

    evaluations = []

    def broken(apply, args):
        evaluations.append(args["timestep"])
        if len(evaluations) == 3:
            if kind == "error":
                raise RuntimeError("out of memory")
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()
        return apply(args["input"], args["timestep"], **args["c"])

    model = eps_model.clone()
    model.set_model_unet_function_wrapper(broken)
    fault = RuntimeError if kind == "error" else comfy.model_management.InterruptProcessingException
    for plan in (small_plan(), small_predictor()):
        evaluations.clear()
        guider = comfyui.nodes["CFGGuider"].execute(model, conditioning(1), conditioning(2), CFG).result[0]
        solver, sigmas = sampler(comfyui, plan)
        with pytest.raises(fault):
            guider.sample(starting_noise(model), torch.zeros(1, 4, 8, 8), solver, sigmas, seed=0)
        assert guider.cfg == CFG and not hooks(model)
        guider.sample(starting_noise(model), torch.zeros(1, 4, 8, 8), solver, sigmas, seed=0)
        assert guider.cfg == CFG and not hooks(model)


def hooks(model) -> list:
    modules = model.model.diffusion_model.modules()
    return [hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def test_guiders_without_a_guidance_scale(comfyui, eps_model):
    """They inherit a `cfg` that is not theirs: a plan that sets guidance says so and does not give a wrong image."""
    one = comfyui.nodes["BasicGuider"].execute(eps_model, conditioning(1)).result[0]
    dual = comfyui.nodes["DualCFGGuider"]
    two = dual.execute(eps_model, conditioning(1), conditioning(3), conditioning(2), 3, 2, "regular")
    solver, sigmas = sampler(comfyui, small_plan())
    for guider in (one, two.result[0]):
        with pytest.raises(ValueError, match="this run has no guidance scale: sample with"):
            guider.sample(starting_noise(eps_model), torch.zeros(1, 4, 8, 8), solver, sigmas, seed=0)


def test_another_size_than_the_plans_is_told(comfyui, eps_model, caplog):
    fits, differs = (CalibratedPlan(Recipe("dpmpp_2m", SIGMAS), about=About(latent=(4, *n))) for n in ((8, 8), (8, 12)))
    sample(comfyui, fits, eps_model)
    assert "size" not in caplog.text
    sample(comfyui, differs, eps_model)
    assert "made with latents of the size 8 x 12 and this one has 8 x 8" in caplog.text


def told(comfyui, monkeypatch, run) -> list[str]:
    """What a run says on the node that samples."""
    shown: list[str] = []
    monkeypatch.setattr(module(comfyui, "host.display"), "say", shown.append)
    run()
    return shown


def test_guiders_are_compared_as_far_as_they_have_a_scale(comfyui, eps_model, monkeypatch):
    """Without a negative prompt there is no guidance; a guider that mixes three prompts has no one scale."""
    one = comfyui.nodes["BasicGuider"].execute(eps_model, conditioning(1)).result[0]
    dual = comfyui.nodes["DualCFGGuider"]
    two = dual.execute(eps_model, conditioning(1), conditioning(3), conditioning(2), 3, 2, "regular").result[0]
    empty = torch.zeros(1, 4, 8, 8)
    for guider, scale, expected in ((one, 1.0, None), (one, 4.0, "4 and runs at 1"), (two, 4.0, "no single scale")):
        plan = CalibratedPlan(Recipe("dpmpp_2m", SIGMAS), about=About(guidance=scale))
        solver, sigmas = sampler(comfyui, plan)
        shown = told(
            comfyui,
            monkeypatch,
            lambda g=guider, s=solver, at=sigmas: g.sample(starting_noise(eps_model), empty, s, at),
        )
        assert bool(shown) == (expected is not None)
        assert not shown or expected in shown[0]


def test_a_scale_that_another_node_sets_on_the_way_is_compared(comfyui, eps_model, monkeypatch):
    """As the host's CFG Override does: known once the run has passed there."""
    from comfy.patcher_extension import WrappersMP

    def override(guided, x, sigma, *arguments):
        guider = guided.class_obj
        before, guider.cfg = guider.cfg, 7.0
        try:
            return guided(x, sigma, *arguments)
        finally:
            guider.cfg = before

    plan = CalibratedPlan(Recipe("dpmpp_2m", SIGMAS), about=About(guidance=CFG))
    assert not told(comfyui, monkeypatch, lambda: sample(comfyui, plan, eps_model, cfg=CFG))
    patched = eps_model.clone()
    patched.add_wrapper(WrappersMP.PREDICT_NOISE, override)
    shown = told(comfyui, monkeypatch, lambda: sample(comfyui, plan, patched, cfg=CFG))
    assert len(shown) == 1 and f"made at guidance {CFG:g} and runs at 7" in shown[0]


def test_one_node_that_samples_tells_the_same(comfyui, eps_model, monkeypatch):
    """Few-Step KSampler: guidance, also that of a schedule, size, and the kind of model."""
    plan = CalibratedPlan(Recipe("dpmpp_2m", SIGMAS), about=About(guidance=3.0, latent=(4, 16, 8)))

    def run(plan=plan, **more) -> None:
        given = {"cfg": 3.0, **more}
        comfyui.nodes["FewStepKSampler"].execute(
            model=eps_model, seed=0, steps=10, sampler_name="euler", scheduler="karras", positive=conditioning(1),
            negative=conditioning(2), latent_image={"samples": torch.zeros(1, 4, 8, 8)}, denoise=1.0, plan=plan,
            **given,
        )  # fmt: skip

    size = "Warning: this plan was made with latents of the size 16 x 8"
    (shown,) = told(comfyui, monkeypatch, run)
    assert shown.startswith(size) and "guidance" not in shown
    (shown,) = told(comfyui, monkeypatch, lambda: run(cfg=7.0))
    assert "made at guidance 3 and runs at 7" in shown.splitlines()[0] and shown.splitlines()[1].startswith(size)
    (shown,) = told(comfyui, monkeypatch, lambda: run(guidance=Guidance("interval", cfg=6.0)))
    assert "made at guidance 3 and runs at 6" in shown
    with pytest.raises(ValueError, match=r"this plan is for SD1\.5; your model is the Few-Step demo"):
        run(CalibratedPlan(Recipe("dpmpp_2m", SIGMAS), about=About(model={"family": "SD15"})))


def test_another_guidance_than_the_plans_is_told(comfyui, eps_model, caplog):
    plan = CalibratedPlan(Recipe("dpmpp_2m", SIGMAS), about=About(guidance=7.5))
    sample(comfyui, plan, eps_model, cfg=2.5)
    assert "this plan was made at guidance 7.5 and runs at 2.5" in caplog.text
    caplog.clear()
    sample(comfyui, plan, eps_model, cfg=7.5)
    assert "guidance" not in caplog.text


# The published plan


def built_in(comfyui) -> dict:
    return sys.modules[comfyui.nodes["FewStepLoadPlan"].__module__].BUILT_IN


def watched(model):
    """The model, the sigmas it is asked for, and the time steps its network is given."""
    sigmas, times = [], []

    def wrapper(apply, args):
        sigmas.append(float(args["timestep"][0]))
        return apply(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(wrapper)
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda _, args: times.append(float(args[1][0])))
    return patched, sigmas, times, handle


def test_built_in_plans_are_the_published(comfyui):
    assert [plan.as_dict() for plan in built_in(comfyui).values()] == [plan.as_dict() for plan in PUBLISHED.values()]
    assert set(built_in(comfyui)) <= set(comfyui.nodes["FewStepLoadPlan"].define_schema().inputs[0].options)


@pytest.mark.network
def test_dropdown_follows_the_published_levels(comfyui, caplog):
    """10 steps of an SD1.5 model: levels and scaled times of the paper, which the host rounds to whole time steps; the
    same image as the built-in plan."""
    model, sigmas, times, handle = watched(as_family(small_model("EPS"), "SD15"))
    with caplog.at_level("INFO"):
        image = ksample(comfyui, model, "fewstep_amed_dpm_2m", steps=10, cfg=7.5)
    handle.remove()
    assert "left out" not in caplog.text
    recipe = AMED_SD15.recipe
    told = [tuning.scale_time * sigma for tuning, sigma in zip(recipe.tunings, recipe.sigmas, strict=False)]
    assert sigmas == pytest.approx(told, rel=1e-6)
    assert times[::2] == [999, 799, 599, 400, 200]
    grid = model.get_model_object("model_sampling").sigmas.log()
    assert times[1::2] == [float((grid - math.log(sigma)).abs().argmin()) for sigma in told[1::2]]
    assert times[1::2] != [885, 705, 492, 329, 73]
    plan = load(comfyui, next(iter(built_in(comfyui))))
    torch.testing.assert_close(sample(comfyui, plan, model, cfg=7.5), image, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "steps", "reason"),
    [
        ("SD15", 8, "they are for 10 steps and this run has 8"),
        ("SDXL", 10, "family is SD15 there and SDXL in the model"),
    ],
)
def test_dropdown_without_published_levels(comfyui, caplog, family, steps, reason):
    """Says why, and inserts midpoints."""
    model, sigmas, _, handle = watched(as_family(small_model("EPS"), family))
    with caplog.at_level("INFO"):
        ksample(comfyui, model, "fewstep_amed_dpm_2m", steps=steps, cfg=7.5)
    handle.remove()
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert reason in line
    levels = comfyui.nodes["BasicScheduler"].execute(model, "karras", steps, 1.0).result[0]
    assert sigmas == pytest.approx(with_midpoints(read_levels(levels)).sigmas[:-1], rel=1e-5)


# The bottleneck


def bottleneck(comfyui, model):
    return module(comfyui, "host.bottleneck").Bottleneck(model.model.diffusion_model)


def read(comfyui, model, latent=None, cfg=CFG, positive=None):
    """What is seen of the samples that are evaluated in the host, at each of three levels: (sample, sigma, seen)."""
    import comfy.samplers

    seen = []

    def look(denoise, x, sigmas, extra_args=None, callback=None, disable=None):
        with bottleneck(comfyui, model) as middle:
            assert middle.sees and middle() is None
            for sigma in sigmas[:-1]:
                middle.watch(denoise)(x, sigma.expand(len(x)), **extra_args)
                seen.append((x, sigma, middle()))
        return x

    run(comfyui, comfy.samplers.KSAMPLER(look), torch.tensor([9.0, 2.0, 0.3, 0.0]), model, latent, cfg, positive)
    assert not hooks(model)
    return seen


def directly(model, x, sigma, prompt: int):
    """The pooled bottleneck for one prompt, from the network alone."""
    kept = []
    handle = model.model.diffusion_model.middle_block[-1].register_forward_hook(lambda *a: kept.append(a[-1]))
    model.model.apply_model(x, sigma.expand(len(x)), c_crossattn=conditioning(prompt)[0][0].expand(len(x), -1, -1))
    handle.remove()
    return pool(kept[0])[:, None]


@pytest.mark.network
@pytest.mark.parametrize("split", [False, True], ids=["one-batch", "split"])
@pytest.mark.parametrize(("batch", "side"), [(1, (8, 8)), (3, (8, 8)), (2, (12, 20)), (1, (4, 4))])
def test_bottleneck_is_that_of_the_positive_prompt(comfyui, eps_model, monkeypatch, split, batch, side):
    """Guided, in one batch (which the host orders [1, 0]) or in two because memory is short; of any size."""
    orders = []
    eps_model.set_model_unet_function_wrapper(
        lambda apply, args: orders.append(args["cond_or_uncond"]) or apply(args["input"], args["timestep"], **args["c"])
    )
    if split:
        monkeypatch.setattr(eps_model.model, "memory_required", lambda *_, **__: math.inf)
    for x, sigma, seen in read(comfyui, eps_model, {"samples": torch.zeros(batch, 4, *side)}):
        wanted = directly(eps_model, x, sigma, 1)
        assert seen.shape == (batch, 1, 8, 8)
        torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
        assert not torch.allclose(seen, directly(eps_model, x, sigma, 2), atol=1e-3)
    assert orders == (3 * [[1], [0]] if split else 3 * [[1, 0]])


@pytest.mark.network
def test_bottleneck_without_guidance(comfyui, eps_model):
    for x, sigma, seen in read(comfyui, eps_model, cfg=1.0):
        torch.testing.assert_close(seen, directly(eps_model, x, sigma, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.network
@pytest.mark.parametrize("kinds", [[0, 1], [1, 0], [0], [1, 0, 0], [0, 1, 0]])
def test_bottleneck_in_any_order(comfyui, eps_model, kinds):
    """A pack that wraps the model may order the batch as it likes: what counts is cond_or_uncond."""
    network = eps_model.model.diffusion_model
    generator = torch.Generator().manual_seed(4)
    parts = [(torch.randn(2, 4, 8, 8, generator=generator), conditioning(9 - k)[0][0]) for k in range(len(kinds))]

    def evaluate(parts, options):
        columns = zip(*((x, c.expand(2, -1, -1)) for x, c in parts), strict=True)
        x, context = (torch.cat(column).to(network.dtype) for column in columns)
        return network(x, torch.full((len(x),), 300.0), context=context, transformer_options=options)

    wanted = []
    for kind, part in zip(kinds, parts, strict=True):
        if kind == 0:
            with bottleneck(comfyui, eps_model) as alone:
                evaluate([part], {})
                wanted.append(alone())
    with bottleneck(comfyui, eps_model) as middle:
        middle.watch(lambda: evaluate(parts, {"cond_or_uncond": kinds}))()
        torch.testing.assert_close(middle(), torch.stack(wanted).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.network
def test_two_prompts_are_averaged(comfyui, eps_model):
    """One over the whole image, one over its right half."""
    (half,) = comfyui.nodes["ConditioningSetArea"]().append(conditioning(4), 64, 128, 64, 0, 1.0)
    (positive,) = comfyui.nodes["ConditioningCombine"]().combine(conditioning(1), half)
    for x, sigma, seen in read(comfyui, eps_model, {"samples": torch.zeros(2, 4, 16, 16)}, positive=positive):
        parts = directly(eps_model, x, sigma, 1), directly(eps_model, x[..., 8:], sigma, 4)
        wanted = torch.stack(parts).mean(dim=0)
        torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


class Transformer(torch.nn.Module):
    """A network without a middle block."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(4, 4, 1)

    def forward(self, x, timesteps, context=None, control=None, transformer_options=None, **_):
        return x + 0.1 * self.mix(x) + 0.1 * context.mean()


@pytest.mark.network
def test_a_network_without_a_middle_follows_the_fixed_numbers(comfyui):
    model = small_model("EPS")
    model.model.diffusion_model = Transformer()
    with bottleneck(comfyui, model) as middle:
        assert not middle.sees and middle() is None
    seen, fixed = (sample(comfyui, small_predictor(), model, see_bottleneck=see) for see in (True, False))
    assert torch.equal(seen, fixed) and seen.isfinite().all()


# Figures


def test_inspect_prints_what_the_sampler_does(comfyui):
    (plan, _) = comfyui.nodes["FewStepLoadPlan"].execute(next(iter(built_in(comfyui)))).result
    image, text = comfyui.nodes["FewStepInspectPlan"].execute(plan).result
    assert image.ndim == 4 and image.shape[0] == 1 and image.shape[-1] == 3
    assert 0 <= image.min() < 0.5 and image.max() == 1
    assert "arXiv 2312.00094" in text and "guidance: 7.5" in text
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("|")]
    rows = {tuple(cells[:2]): cells[2:] for cells in lines}
    assert rows["1", "7.71939"] == ["0.9974", "0.9872", "inserted"]
    assert text.count("inserted") == 5
    start = next(k for k, cells in enumerate(lines) if "model at" in cells)
    assert lines[start] == ["stage", "model at", "x", "D", "P[0]", "P[1]"]
    for cells, stage in zip(lines[start + 2 :], plan.recipe.plan(), strict=True):
        _, told, *numbers = (float(cell) for cell in cells if cell)
        terms = [stage.update.terms[key] for key in (-1, -3, 0, 1) if key in stage.update.terms]
        assert [told, *numbers] == pytest.approx([stage.sigma, *terms], rel=1e-5)


def test_inspect_shows_errors_and_only_what_changes(comfyui):
    plain = CalibratedPlan(Recipe("dpmpp_2m", SIGMAS), about=About(error_before=0.25, error_after=0.125))
    small, text = comfyui.nodes["FewStepInspectPlan"].execute(plain).result
    assert "error 0.25 -> 0.12 (50 % less)" in text and "inserted" not in text and "scale_dir" not in text
    large, text = comfyui.nodes["FewStepInspectPlan"].execute(small_plan()).result
    assert all(name in text for name in Tuning._fields)
    assert large.shape[1] > small.shape[1]
    plan = small_predictor()
    plan = replace(plan, recipe=replace(plan.recipe, base="ipndm", options={}))
    _, text = comfyui.nodes["FewStepInspectPlan"].execute(plan).result
    assert "that the predictor gives where it cannot read the network" in text
    assert text.count("inserted") == (len(plan.recipe.sigmas) - 1) // 2


def test_plots_draw_what_can_be_drawn(comfyui):
    plots = module(comfyui, "ui.plots")
    blue = torch.tensor([0x00, 0x72, 0xB2]) / 255

    def drawn(points, **options) -> torch.Tensor:
        (image,) = plots.line_plot([plots.Panel("loss", "step", "loss", {"_": points}, **options)])
        return ((image - blue).abs().amax(dim=-1) < 0.05).nonzero()

    line = drawn([(0, 1.0), (10, 0.1), (20, 0.01)], log_y=True)
    down, right = line.double().T
    slope = torch.linalg.lstsq(torch.stack([right, torch.ones_like(right)], 1), down[:, None])
    assert (slope.solution[0] > 0).all()  # down is down
    assert (torch.stack([right, torch.ones_like(right)], 1) @ slope.solution - down[:, None]).abs().max() < 3
    gap = drawn([(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, 2.0)])
    columns = gap[:, 1].unique()
    assert columns.diff().max() > 100
    for nothing in ([], [(0, 0.0)], [(0, math.inf)]):
        assert not len(drawn(nothing, log_y=True))
    assert len(drawn([(3, 5.0)])) > 20  # a lone point is a dot


def test_principal_components_of_known_curves():
    """A line has one, a plane curve two, both at any place in a large space; the coordinates are the curve's own."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(3000, 3, generator=generator, dtype=torch.float64)).Q.T * 3000**0.5
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    line = torch.outer(1 - t, frame[0]) + 5
    shares, places = principal(line.reshape(21, 3, 10, 100))
    assert shares.tolist() == pytest.approx([1, 0, 0], abs=1e-12)
    torch.testing.assert_close(places[:, 0], 0.5 - t)
    curve = torch.stack([torch.cos(6.3 * t), 0.3 * torch.sin(6.3 * t), 0.01 * torch.cos(12.6 * t)], dim=1)
    centred = curve - curve.mean(dim=0)
    shares, places = principal(curve[:, :2] @ frame[:2])
    assert float(shares[:2].sum()) == pytest.approx(1, abs=1e-12)
    assert float(places[0, 0]) > 0
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(centred[:, :2], centred[:, :2]))
    shares, _ = principal(curve @ frame)
    covariance = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    torch.testing.assert_close(shares, covariance / covariance.sum())
    with pytest.raises(ValueError, match="all the same"):
        principal(torch.ones(5, 4))
    with pytest.raises(ValueError, match="no 3 components"):
        principal(torch.ones(2, 4))


def test_trajectory_node(comfyui):
    """On the demo model the trajectories are nearly flat; the node runs as the host's samplers do."""
    model, positive, negative = comfyui.nodes["FewStepDemoModel"].execute("red apple", "").result
    (latent,) = comfyui.nodes["FewStepDemoLatent"].execute(1).result
    node = comfyui.nodes["FewStepTrajectory"]
    image, text = node.execute(model, positive, negative, latent, 3.0, 1, 2, 12).result
    assert image.shape[0] == 1 and image.shape[-1] == 3
    table = [line for line in text.splitlines() if line.startswith("|")]
    one, two, three = (float(cell) / 100 for cell in table[2][1:-1].split("|")[1:])
    assert 0.95 < one < two < three < 1 and two > 0.995
    assert len(table) == 2 + 1 + 2, "head and rule, the mean, and each"


@pytest.mark.network
def test_trajectories_are_what_the_sampler_passes_through(comfyui, eps_model):
    """From the noise to the host's own result, with a callback for each step; a cancelled run stops."""
    import comfy.model_management
    import comfy.utils

    trajectories = module(comfyui, "trajectory").trajectories
    arguments = (conditioning(1), conditioning(2), torch.ones(5, 4, 8, 8), CFG, 3, 2, 6)
    steps = []
    comfy.utils.set_progress_bar_global_hook(lambda done, total, preview, node_id=None: steps.append((done, total)))
    try:
        paths = trajectories(eps_model, *arguments)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert paths.shape == (7, 2, 4, 8, 8) and [*dict.fromkeys(steps)] == [(k, 6) for k in range(7)]
    solver = comfyui.nodes["FewStepSampler"].execute("dpmpp_2m").result[0]
    sampling = eps_model.get_model_object("model_sampling")
    bounds = float(sampling.sigma_min), float(sampling.sigma_max)
    sigmas = SCHEDULES["exponential"].function(6, *bounds).float()
    wanted = run(comfyui, solver, sigmas, eps_model, {"samples": torch.zeros(2, 4, 8, 8)})
    torch.testing.assert_close(paths[-1], wanted)

    def cancel(done, total, preview, node_id=None):
        steps.append(done)
        if done:
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()

    steps.clear()
    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            trajectories(eps_model, *arguments)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert {*steps} == {0, 1}


def test_every_input_and_output_has_a_tooltip(comfyui):
    for id in ("LoadPlan", "SavePlan", "PlanSampler", "InspectPlan", "Trajectory"):
        schema = comfyui.nodes[f"FewStep{id}"].define_schema()
        submenu = "comparing" if id == "Trajectory" else "plans"
        assert schema.category == f"{comfyui.nodes['KSampler'].CATEGORY}/Few-Step/{submenu}"
        assert all(part.tooltip for part in (*schema.inputs, *schema.outputs))
