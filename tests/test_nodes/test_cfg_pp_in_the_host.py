"""Samplers with CFG++ in KSampler's list: where the host's two predictions come from."""

from __future__ import annotations

import pytest
import torch
from in_the_host import ksample
from mixture import relative_error
from small_models import conditioning, small_model

IDS = ("euler_cfg_pp", "dpmpp_2m_cfg_pp")
SCALE = 0.6
FLOAT32 = 1e-4
"""Rounding of a number, 1.2e-7, times that of the starting sample over the image, 15, for some fifty operations."""


def node(comfyui, name, *arguments, **options):
    return comfyui.nodes[name].execute(*arguments, **options).result[0]


def guidance(comfyui, schedule="constant", **options):
    fields = {
        "cfg": SCALE, "cfg_end": 1.0, "sigma_start": 0.0, "sigma_end": 0.0, "power": 2.0, "values": "", "cfg_pp": False,
        "rescale": 0.0, "agreement": 1.0, "threshold": 1.0, "threshold_floor": 1.0,
    }  # fmt: skip
    return node(comfyui, "FewStepGuidance", schedule=schedule, **(fields | options))


def watched(model):
    """The model, and the passes of each evaluation."""
    passes, model = [], model.clone()

    def see(apply, arguments):
        passes.append(len(arguments["cond_or_uncond"]))
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    model.set_model_unet_function_wrapper(see)
    return model, passes


@pytest.mark.parametrize(
    ("id", "kind"), [*((id, kind) for id in IDS for kind in ("EPS", "V_PREDICTION", "EDM")), ("euler_cfg_pp", "FLOW")]
)
def test_ksampler_gives_the_hosts_image(comfyui, id, kind):
    """All but the host's 2M for flow models (tests/test_comfyui/test_host_parity.py)."""
    model = small_model(kind)
    found, theirs = (ksample(comfyui, model, name, cfg=SCALE) for name in (f"fewstep_{id}", id))
    assert relative_error(found, theirs) < FLOAT32


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("cfg", [0.0, 0.6, 1.0])
def test_an_evaluation_is_two_passes_at_every_scale(comfyui, id, cfg):
    model, passes = watched(small_model("EPS"))
    assert ksample(comfyui, model, f"fewstep_{id}", cfg=cfg).isfinite().all()
    assert passes == [2] * 6
    assert "disable_cfg1_optimization" not in model.model_options
    passes.clear()
    ksample(comfyui, model, "fewstep_dpmpp_2m", cfg=1.0)
    assert passes == [1] * 6, "nothing is left behind"


@pytest.mark.parametrize("id", IDS)
def test_a_guider_without_a_negative_prompt_is_refused(comfyui, id):
    """The host would take 0 for the prediction without the prompt."""
    model = small_model("FLOW")
    guider = node(comfyui, "BasicGuider", model, conditioning(1))
    sampler, sigmas = node(comfyui, "FewStepSampler", id), node(comfyui, "FewStepScheduler", model, "karras", 4, 1.0)
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    with pytest.raises(ValueError, match="needs the prediction without the prompt, and this run has none"):
        node(comfyui, "SamplerCustomAdvanced", node(comfyui, "RandomNoise", 3), guider, sampler, sigmas, latent)


def test_a_cache_that_skips_the_guidance_is_refused(comfyui):
    """LazyCache answers in the place of the guider: nothing is told of two predictions."""
    if "LazyCache" not in comfyui.nodes:
        pytest.skip("this host has no LazyCache")
    model = node(comfyui, "LazyCache", small_model("EPS"), 1e9, 0.0, 1.0, False)
    with pytest.raises(ValueError, match="without a cache that skips"):
        ksample(comfyui, model, "fewstep_euler_cfg_pp", steps=12, cfg=SCALE)


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_a_schedule_of_guidance_serves_them(comfyui, kind):
    """Outside of the interval the image is that of the prompt alone, and its noise still the unconditional one."""
    model, passes = watched(small_model(kind))
    patched = node(comfyui, "FewStepGuidancePatch", model, guidance(comfyui, "list", values="0.6"))
    same = ksample(comfyui, model, "fewstep_dpmpp_2m_cfg_pp", cfg=SCALE)
    assert torch.equal(ksample(comfyui, patched, "fewstep_dpmpp_2m_cfg_pp"), same)
    passes.clear()
    interval = node(comfyui, "FewStepGuidancePatch", model, guidance(comfyui, "interval"))
    assert ksample(comfyui, interval, "fewstep_euler_cfg_pp").isfinite().all() and passes == [2] * 6


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
def test_as_a_guidance_and_as_a_sampler_it_is_the_same_image(comfyui, kind):
    model = small_model(kind)
    patched = node(comfyui, "FewStepGuidancePatch", model, guidance(comfyui, cfg_pp=True))
    found, same = (
        ksample(comfyui, model, "fewstep_euler_cfg_pp", cfg=SCALE),
        ksample(comfyui, patched, "euler"),
    )
    assert relative_error(found, same) < FLOAT32
    with pytest.raises(ValueError, match="cfg_pp: the guidance is that of CFG"):
        ksample(comfyui, patched, "fewstep_euler_cfg_pp")


def test_compare_takes_them(comfyui):
    from in_the_host import module

    (named,) = module(comfyui, "ui.names").read_samplers("fewstep_dpmpp_2m_cfg_pp")
    assert named.spec.id == "dpmpp_2m_cfg_pp"


@pytest.mark.parametrize("id", IDS)
def test_a_scale_of_other_guidance_is_warned_of(comfyui, caplog, id):
    """A user keeps the cfg of 7 that every other sampler is given. The authors use 0 to 1, users up to 2."""
    for cfg in (0.6, 1.0, 2.0):
        ksample(comfyui, small_model("EPS"), f"fewstep_{id}", cfg=cfg)
        assert "CFG++" not in caplog.text
    ksample(comfyui, small_model("EPS"), f"fewstep_{id}", cfg=7.0)
    assert "CFG++ at cfg 7 burns the image" in caplog.text


def test_the_scale_of_a_schedule_counts(comfyui, caplog):
    """Not that of KSampler, which it replaces."""
    low, high = (
        node(comfyui, "FewStepGuidancePatch", small_model("EPS"), guidance(comfyui, cfg=cfg)) for cfg in (1.0, 5.0)
    )
    ksample(comfyui, low, "fewstep_euler_cfg_pp", cfg=7.0)
    assert "CFG++" not in caplog.text
    ksample(comfyui, high, "fewstep_euler_cfg_pp", cfg=1.0)
    assert "CFG++ at cfg 5 burns the image" in caplog.text
