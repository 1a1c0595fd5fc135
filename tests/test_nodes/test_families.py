"""What Few-Step Auto knows of model families: told by the host's class, with the recommendation of makers and users."""

from __future__ import annotations

import json
import re
import struct
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from in_the_host import module
from machine import moment
from small_models import small_model

from samplers import SAMPLERS, SCHEDULES
from samplers.schedules.trained import of_flow, steps_of, trained_models

SD = {"sampling": "ModelSamplingDiscrete", "prediction": "EPS", "sigma_max": 14.614641189575195, "shift": 1.0}
FLOW = {"sampling": "ModelSamplingDiscreteFlow", "prediction": "CONST", "sigma_max": 1.0, "shift": 3.0}


@pytest.fixture
def families(comfyui):
    return module(comfyui, "host.families")


@pytest.fixture
def choose(comfyui, folder):
    """What Auto does with a model of which the facts are these."""
    auto, model = module(comfyui, "auto"), module(comfyui, "host.model")

    def chosen(facts: dict[str, Any], evaluations: int = 8, variety: str = "exact seed", denoise: float = 1.0, **more):
        flow = facts["prediction"] == "CONST"
        low = 0.001 if flow else 0.03
        levels = model.LevelRange(low, facts["sigma_max"], flow, facts["shift"])
        return auto.choose(levels, facts, evaluations=evaluations, variety=variety, denoise=denoise, **more)

    return chosen


# The data


def test_every_class_is_one_of_the_host_and_every_name_one_of_ours(comfyui, families):
    import comfy.supported_models

    seen = []
    for family in families.families():
        for name in family.classes:
            assert hasattr(comfy.supported_models, name), name
            seen.append((name, family.prediction))
        for id in (family.sampler, family.varied):
            assert id is None or id in SAMPLERS
        assert family.schedule in SCHEDULES and family.sources
        for settings in family.settings:
            assert settings.steps == sorted(settings.steps) and settings.cfg == sorted(settings.cfg)
        assert family.distilled is None or family.distilled in trained_models()
    assert len(set(seen)) == len(seen), "one class, one family"
    for model in families.distilled_models():
        assert model.id in trained_models() and model.sampler in SAMPLERS and model.sources
        re.compile(model.names)
        assert {*(model.steps or ()), *model.predicts_x0} <= set(steps_of(trained_models()[model.id]))
    assert {model.id for model in families.distilled_models()} == set(trained_models())


def test_every_source_is_an_address_or_a_template(families):
    for entry in (*families.families(), *families.distilled_models()):
        for source in entry.sources:
            assert re.fullmatch(r"https://\S+|template:[\w.]+", source)


@pytest.mark.parametrize(
    ("name", "facts", "id"),
    [
        ("SD15", SD, "sd15"), ("SDXL", SD, "sdxl"), ("SDXL", SD | {"prediction": "V_PREDICTION"}, "sdxl"),
        ("SDXL", SD | {"prediction": "V_PREDICTION", "sigma_max": 4518.7}, "sdxl_v_zsnr"), ("SD3", FLOW, "sd35"),
        ("Flux", FLOW, "flux"), ("FluxSchnell", FLOW, "flux_schnell"), ("Flux2", FLOW, "flux2"),
        ("QwenImage", FLOW, "qwen_image"), ("WAN21_I2V", FLOW, "wan21"), ("WAN22_T2V", FLOW, "wan22_5b"),
        ("HunyuanVideo", FLOW, "hunyuan_video"), ("HunyuanVideo15", FLOW, "hunyuan_video_15"),
        ("Chroma", FLOW, "chroma"), ("ZImage", FLOW, "z_image"), ("ACEStep", FLOW, None),
    ],
)  # fmt: skip
def test_the_class_of_the_host_tells_the_family(families, name, facts, id):
    found = families.family_of({**facts, "family": name})
    assert (found and found.id) == id


def test_a_real_v_prediction_model_with_zero_snr_is_known(comfyui, families):
    """By the levels that the host gives it."""
    patched = comfyui.nodes["ModelSamplingDiscrete"]().patch(small_model("EPS"), "v_prediction", True)[0]
    facts = module(comfyui, "host.model").fingerprint(patched) | {"family": "SDXL"}
    assert families.family_of(facts).id == "sdxl_v_zsnr"


# The choice


def test_measured_where_the_kinds_agree_and_the_recommendation_is_told(choose, comfyui):
    auto = module(comfyui, "auto")
    for name, facts in (("SDXL", SD), ("QwenImage", FLOW), ("WAN21_T2V", FLOW)):
        found = choose({**facts, "family": name})
        assert found.spec.id == auto.pick(name != "SDXL", "exact seed", 8).sampler
        assert "Recommended for " in found.text and "cfg" in found.text
    assert "dpmpp_2m on karras, 25 to 28 steps, cfg 5 to 7" in choose({**SD, "family": "SDXL"}).text


def test_recommended_where_they_do_not(choose):
    zero_snr = SD | {"family": "SDXL", "prediction": "V_PREDICTION", "sigma_max": 4518.7}
    found = choose(zero_snr)
    assert found.spec.id == "euler" and "euler on sgm_uniform: 8 steps" in found.text
    assert "of another kind" in found.text and "rescale" in found.text
    varied = choose(zero_snr, variety="more variety")
    assert varied.spec.id == "dpmpp_2m_sde" and "dpmpp_2m_sde on sgm_uniform, 28 to 30 steps" in varied.text
    assert "euler on" not in varied.text
    flux2 = choose(FLOW | {"family": "Flux2"})
    assert "euler on flux2: 8 steps" in flux2.text and "1024 by 1024" in flux2.text


def test_shift_and_cfg_that_differ_are_told(choose):
    qwen = FLOW | {"family": "QwenImage", "shift": 1.15}
    text = choose(qwen, cfg=9.0).text
    assert "shift of the connected model is 1.15: set it to 3.1 or 1 with ModelSamplingAuraFlow." in text
    assert "cfg is 9, outside" in text
    fits = choose(qwen | {"shift": 3.1}, cfg=4.0).text
    assert "connected model is" not in fits and "outside" not in fits


REMARKS = re.compile(
    r"outside of what is recommended|shift of the connected model|was trained for cfg|was trained at shift"
)
"""What is said where a run differs from a recommendation."""


def test_no_recommendation_is_objected_to(choose, families):
    """Each of the table, at both ends of its guidance, as a user who follows it sets it."""
    for family in families.families():
        for settings in family.settings:
            for cfg in settings.cfg:
                facts = (SD if family.shift is None and family.schedule in ("karras", "sgm_uniform") else FLOW) | {
                    "family": family.classes[0],
                    "prediction": family.prediction or ("EPS" if family.id.startswith("sd1") else "CONST"),
                }
                flow = facts["prediction"] == "CONST"
                facts |= {"sigma_max": 1.0 if flow else 4518.7 if family.zero_snr else SD["sigma_max"]}
                facts |= {"shift": settings.shift or 1.0}
                text = choose(facts, max(settings.steps), cfg=cfg).text
                assert not REMARKS.search(text), (settings, text)
                assert settings.model in text or family.distilled


def test_no_training_is_objected_to(choose, families):
    for model in families.distilled_models():
        entry = trained_models()[model.id]
        facts = (FLOW if of_flow(entry) else SD) | {"family": "Some", "distilled": model.id}
        for cfg in model.cfg:
            text = choose(facts | {"shift": entry.get("shift", 1.0)}, max(steps_of(entry)), cfg=cfg).text
            assert f"distilled = {model.id}" in text and not REMARKS.search(text), text


def test_of_several_models_of_one_class_each_may_be_the_one(choose):
    """Wan 2.2 14B has guidance and shift of its own; what fits none of them is said."""
    wan = FLOW | {"family": "WAN21_T2V"}
    for cfg, shift in ((6.0, 8.0), (3.5, 12.0), (3.5, 5.0), (4.0, 8.0)):
        assert not REMARKS.search(choose(wan | {"shift": shift}, 20, cfg=cfg).text)
    assert "set it to 8 with ModelSamplingSD3." in choose(wan | {"shift": 12.0}, 20, cfg=6.0).text
    assert "cfg is 9, outside" in choose(wan | {"shift": 8.0}, 20, cfg=9.0).text
    flux2 = FLOW | {"family": "Flux2"}
    assert "cfg is 3, outside" in choose(flux2, 20, cfg=3.0).text
    assert "Recommended for FLUX.2 klein base: euler on flux2, 20 steps, cfg 5." in choose(flux2, 20, cfg=5.0).text


def test_the_node_that_sets_the_shift_keeps_the_time_of_the_model(families):
    """ModelSamplingSD3 has time from 0 to 1000, ModelSamplingAuraFlow from 0 to 1; the wrong one breaks the image."""
    import comfy.supported_models

    for family in families.families():
        for name in family.classes:
            time = getattr(comfy.supported_models, name).sampling_settings.get("multiplier", 1000)
            expected = {1.0: "ModelSamplingAuraFlow", 1000: "ModelSamplingSD3"}[time]
            assert families.shift_node(name) == expected
    assert families.shift_node("ZImage") == "ModelSamplingAuraFlow"


def test_a_model_that_is_not_in_the_list_is_chosen_for_as_before(choose):
    assert "Recommended" not in choose(FLOW | {"family": "Config"}).text


# Distilled models


@pytest.mark.parametrize(
    ("file", "id", "steps"),
    [
        ("sdxl_lightning_4step_lora", "sdxl_lightning", 4), ("SDXL-Lightning-8steps", "sdxl_lightning", 8),
        ("lcm-lora-sdv1-5", "lcm", None), ("sd_xl_turbo_1.0_fp16", "sdxl_turbo", None),
        ("Hyper-SDXL-8steps-lora", "hyper_sd", 8), ("Hyper-SDXL-8steps-CFG-lora", "hyper_sd_cfg", 8),
        ("Hyper-SD15-12steps-CFG-lora", "hyper_sd_cfg", 12), ("sdxl_lightning_1step_x0", "sdxl_lightning", 1),
        ("Hyper-FLUX.1-dev-8steps-lora", "hyper_flux", 8),
        ("dmd2_sdxl_4step_lora_fp16", "dmd2_sdxl", 4), ("flux1-schnell-fp8", "flux_schnell", None),
        ("Flux_2-Turbo-LoRA_comfyui", "flux2_dev_turbo", None), ("z_image_turbo_bf16", "z_image_turbo", None),
        ("zImageTurbo_v10", "z_image_turbo", None),
        ("hunyuan_video_FastVideo_720_fp8_e4m3fn", "fast_hunyuan", None),
        ("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise", "wan22_lightning", 4),
        ("Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32", "wan21_lightx2v", None),
        ("lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16", "wan21_lightx2v", None),
        ("Qwen-Image-Lightning-8steps-V1.0", "qwen_image_lightning", 8), ("sd_xl_base_1.0", None, None),
        ("lightning storm style", None, None), ("calcmodel", None, None), ("turbo_diesel", None, None),
    ],
)  # fmt: skip
def test_files_tell_a_distillation(families, file, id, steps):
    found = families.distilled_in([file])
    assert (found.get("distilled"), found.get("distilled_steps")) == (id, steps)


@pytest.mark.parametrize("piece", ["1", "wan22", "0", "_", "1step", "\u0661", "lightx2v"])
def test_names_of_any_length_are_looked_at_in_no_time(families, piece):
    """A file may have any text in the fields that name it: of a number of millions of digits, too."""
    start = time.process_time()
    found = families.distilled_in([f"wan22_{piece * (10**6 // len(piece))}_lightning", f"lcm_{piece * 5000}steps"])
    assert time.process_time() - start < moment()
    assert found.get("distilled_steps", 1) < 1000


@pytest.mark.parametrize("id", trained_models())
@pytest.mark.parametrize("budget", [1, 4, 8])
def test_its_own_levels_within_the_budget(choose, families, id, budget):
    entry = trained_models()[id]
    facts = (FLOW if of_flow(entry) else SD) | {"family": "Some", "distilled": id}
    found = choose(facts, budget)
    known = [n for n in families.distilled_model(id).steps or steps_of(entry) if n <= budget]
    made = found.spec.nfe(found.sigmas, flow=of_flow(entry), **found.options)
    assert made <= budget
    if known:
        assert made == max(known) and f"trained (distilled = {id})" in found.text
        levels = (
            SCHEDULES["trained"].function(max(known), 0.0291, 14.6147, distilled=id) if not of_flow(entry) else None
        )
        if levels is not None:
            torch.testing.assert_close(found.sigmas, levels.float())
    else:
        assert "was trained for" in found.text and "set evaluations to match" in found.text


def test_the_makers_options_are_set_and_variety_is_left_out_aloud(choose):
    tcd = choose(SD | {"distilled": "tcd"}, 4, variety="more variety")
    assert tcd.spec.id == "consistency" and tcd.options == {"gamma": 0.3}
    assert "consistency (gamma = 0.3) on trained" in tcd.text and "more variety is left out" in tcd.text
    assert "left out" not in choose(SD | {"distilled": "tcd"}, 4).text
    assert choose(SD | {"distilled": "lcm"}, 4).options == {}


def test_image_to_image_takes_the_last_of_its_steps(choose):
    found = choose(SD | {"family": "SDXL", "distilled": "sdxl_lightning"}, 4, denoise=0.5)
    assert len(found.sigmas) == 5 and "the last 4 of 8" in found.text
    whole = SCHEDULES["trained"].function(8, 0.03, SD["sigma_max"]).float()
    assert torch.equal(found.sigmas, whole[-5:])


def test_the_number_in_the_name_of_a_file_counts(choose):
    found = choose(SD | {"family": "SDXL", "distilled": "sdxl_lightning", "distilled_steps": 4}, 8)
    assert len(found.sigmas) == 5


@pytest.mark.parametrize(("wanted", "budget", "taken"), [(6, 8, 8), (3, 8, 4), (16, 8, 8), (6, 5, 4)])
def test_a_number_in_the_name_that_is_not_known_is_said(choose, wanted, budget, taken):
    """And the nearest of the known ones that the budget allows is taken."""
    found = choose(SD | {"family": "SDXL", "distilled": "sdxl_lightning", "distilled_steps": wanted}, budget)
    assert len(found.sigmas) == taken + 1
    assert f"The name of the file says {wanted} steps" in found.text
    assert f"known for 1, 2, 4 or 8 steps: those for {taken} are taken." in found.text


def test_a_name_without_a_number_is_said_where_each_file_has_one(choose):
    nameless = SD | {"family": "SDXL", "distilled": "sdxl_lightning"}
    assert "the name of this one does not say: 8 are taken" in choose(nameless, 8).text
    assert "does not say" not in choose(nameless | {"distilled_steps": 4}, 8).text
    assert "does not say" not in choose(nameless | {"distilled": "lcm"}, 8).text, "which is trained for all numbers"
    assert "does not say" not in choose(nameless | {"distilled": "dmd2_sdxl"}, 8).text, "there is one to choose from"


def test_a_file_of_one_step_is_taken_by_its_name_only(choose):
    """Those of SDXL-Lightning and DMD2 are other files, and that of the first predicts the image."""
    for id in ("sdxl_lightning", "dmd2_sdxl"):
        facts = SD | {"family": "SDXL", "distilled": id}
        assert "set evaluations to match" in choose(facts, 1).text
        named = choose(facts | {"distilled_steps": 1}, 1)
        assert len(named.sigmas) == 2 and ("set the model to x0" in named.text) == (id == "sdxl_lightning")


def test_loras_that_keep_guidance_are_not_told_to_do_without(choose):
    facts = SD | {"family": "SDXL", "distilled": "hyper_sd_cfg", "distilled_steps": 8}
    assert "sampled at cfg 5 to 8" in choose(facts, 8).text
    assert "was trained for cfg 5 to 8 and this run has 1" in choose(facts, 8, cfg=1.0).text
    assert len(choose(facts | {"distilled_steps": 12}, 12).sigmas) == 13


def test_a_name_of_another_kind_of_model_is_passed_over(choose):
    found = choose(FLOW | {"family": "Flux", "distilled": "sdxl_lightning"})
    assert "trained" not in found.text


def test_a_model_of_a_distilled_family_needs_no_name(choose):
    found = choose(FLOW | {"family": "FluxSchnell"}, 4)
    assert "distilled = flux_schnell" in found.text and len(found.sigmas) == 5
    assert "trained for cfg 1 and this run has 3.5" in choose(FLOW | {"family": "FluxSchnell"}, 4, cfg=3.5).text


# Through the workflow


def write(path, title: str) -> None:
    """A safetensors file without tensors."""
    header = json.dumps({"__metadata__": {"modelspec.title": title}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def prompt(**lora) -> dict[str, Any]:
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "mine.safetensors"}},
        "2": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["1", 0], "strength_model": 1.0, **lora}},
        "3": {"class_type": "Reroute", "inputs": {"": ["2", 0]}},
        "4": {"class_type": "FewStepAuto", "inputs": {"model": ["3", 0]}},
    }


def test_names_are_found_along_the_model(families, monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(tmp_path)], {".safetensors"}))
    write(tmp_path / "mine.safetensors", "SDXL Lightning, 4 steps")
    found = families.names_of(prompt(lora_name="styles/lcm-lora.safetensors"), "4")
    assert found == ["lcm-lora", "mine", "SDXL Lightning, 4 steps"]
    assert families.distilled_in(found) == {"distilled": "lcm"}
    off = families.names_of(prompt(lora_name="lcm-lora.safetensors", strength_model=0), "4")
    assert families.distilled_in(off) == {"distilled": "sdxl_lightning", "distilled_steps": 4}


def test_the_loras_of_a_list_are_found(families):
    """As rgthree's Power Lora Loader has them."""
    graph = prompt()
    graph["2"]["inputs"] |= {
        "lora_1": {"on": False, "lora": "tcd.safetensors", "strength": 1},
        "lora_2": {"on": True, "lora": "styles/lcm-lora.safetensors", "strength": 0.8},
        "lora_3": {"on": True, "lora": "Hyper-SD15-8steps-lora.safetensors", "strength": 0},
        "lora_4": {"on": True, "lora": None, "strength": 1},
    }
    assert families.names_of(graph, "4")[0] == "lcm-lora"
    assert families.distilled_in(families.names_of(graph, "4")) == {"distilled": "lcm"}


@pytest.mark.parametrize(
    "graph", [None, {}, {"4": {}}, {"4": {"inputs": {"model": ["4", 0]}}}, {"4": {"inputs": {"model": 3}}}]
)
def test_odd_workflows_name_nothing(families, graph):
    assert families.names_of(graph, "4") == []


def test_damaged_files_are_passed_over(families, monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(tmp_path)], {".safetensors"}))
    for content in (b"", b"\x05", struct.pack("<Q", 8) + b"not json", struct.pack("<Q", 2) + b"[]"):
        (tmp_path / "mine.safetensors").write_bytes(content)
        assert families.names_of(prompt(), "4") == ["mine"]


def test_the_node_looks_at_the_workflow_and_tells_the_plot(comfyui, folder, routes, monkeypatch):
    auto = comfyui.nodes["FewStepAuto"]
    graph = prompt(lora_name="lcm-lora.safetensors")
    monkeypatch.setattr(auto, "hidden", SimpleNamespace(prompt=graph, unique_id="4"), raising=False)
    out = auto.execute(small_model("EPS"), 4, "exact seed", 1.0)
    assert "consistency on trained (distilled = lcm): 4 steps" in out.result[2]
    request = {
        "node": {"type": "FewStepAuto", "inputs": {"evaluations": 4}},
        "levels": out.ui["fewstep_levels"][0],
        "model": out.ui["fewstep_model"][0],
    }
    drawn = [evaluation["sigma"] for evaluation in routes.plan(request)["evaluations"]]
    assert drawn == pytest.approx(out.result[1][:-1].tolist())


# The schedule by itself


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_shift_that_differs_from_the_trained_is_told(comfyui, monkeypatch, shift):
    shown: list[str] = []
    monkeypatch.setattr(module(comfyui, "sampling"), "say", shown.append)
    model = comfyui.nodes["ModelSamplingSD3"]().patch(small_model("FLOW"), shift=shift)[0]
    comfyui.nodes["FewStepScheduler"].execute(model, "trained", 8, 1.0, distilled="z_image_turbo")
    assert ("was trained at shift 3 and the model is set to 1." in shown[0]) == (shift == 1)
    assert "sampled at cfg 1" in shown[0]
    shown.clear()
    comfyui.nodes["FewStepScheduler"].execute(model, "simple", 8, 1.0)
    assert not shown


@pytest.mark.parametrize(
    ("steps", "denoise", "one"), [(1, 1.0, True), (1, 0.6, True), (1, 0.5, False), (2, 1.0, False)]
)
def test_one_step_of_lightning_predicts_the_image(comfyui, monkeypatch, steps, denoise, one):
    """Of the whole schedule: 1 step at denoise 0.5 is the last of 2."""
    shown: list[str] = []
    monkeypatch.setattr(module(comfyui, "sampling"), "say", shown.append)
    model, distilled = small_model("EPS"), "sdxl_lightning"
    comfyui.nodes["FewStepScheduler"].execute(model, "trained", steps, denoise, distilled=distilled)
    assert ("set the model to x0" in shown[0]) == one
