"""Few-Step KSampler in the real host: the same image, to the last bit, as the nodes that it stands for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from front_end import node
from in_the_host import ksample, module
from small_models import conditioning, small_model

from samplers import SAMPLERS, SCHEDULES
from samplers.calibrated.about import About
from samplers.calibrated.plan import CalibratedPlan
from samplers.calibrated.recipe import Recipe
from samplers.calibrated.tuning import PLAIN
from samplers.guidance import Guidance

SEED, CFG = 3, 2.5
PLAN = CalibratedPlan(
    Recipe("dpmpp_2m", (14.6, 5.0, 2.0, 0.7, 0.2, 0.0), tunings=(PLAIN, PLAIN._replace(slope=0.1), *[PLAIN] * 3)),
    about=About(guidance=CFG),
)


def image(**more: Any) -> dict[str, Any]:
    return {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5)), **more}


def inputs(model, latent: dict | None = None, **more: Any) -> dict[str, Any]:
    """Of both nodes, as far as they have the same."""
    return {
        "model": model, "steps": 6, "cfg": CFG, "sampler_name": "dpmpp_2m", "scheduler": "karras",
        "positive": conditioning(1), "negative": conditioning(2), "latent_image": latent or image(), **more,
    }  # fmt: skip


def sample(comfyui, model, latent: dict | None = None, **more: Any) -> tuple[dict, dict]:
    given = {"seed": SEED, "denoise": 1.0, **inputs(model, latent, **more)}
    return comfyui.nodes["FewStepKSampler"].execute(**given).result


def advanced(comfyui, model, latent: dict | None = None, **more: Any) -> tuple[dict, dict]:
    given = {
        "add_noise": "enable", "noise_seed": SEED, "start_at_step": 0, "end_at_step": 10000,
        "return_with_leftover_noise": "disable", **inputs(model, latent, **more),
    }  # fmt: skip
    return comfyui.nodes["FewStepKSamplerAdvanced"].execute(**given).result


def wired(comfyui, model, sampler, sigmas, latent: dict | None = None, guidance: Guidance | None = None, noise=None):
    """The nodes that a KSampler stands for, each by itself."""
    nodes, prompts = comfyui.nodes, (conditioning(1), conditioning(2))
    if guidance is None:
        guider = nodes["CFGGuider"].execute(model, *prompts, CFG).result[0]
    else:
        guider = nodes["FewStepGuider"].execute(model, *prompts, guidance).result[0]
    noise = noise or nodes["RandomNoise"].execute(SEED).result[0]
    return nodes["SamplerCustomAdvanced"].execute(noise, guider, sampler, sigmas, latent or image()).result


def chosen(comfyui, model, sampler="dpmpp_2m", schedule="karras", steps=6, denoise=1.0, **options: Any):
    """SAMPLER and SIGMAS of the single nodes, with the same values of their widgets."""
    solver = comfyui.nodes["FewStepSampler"].execute(sampler, **options).result[0]
    sigmas = comfyui.nodes["FewStepScheduler"].execute(model, schedule, steps, denoise, **options).result[0]
    return solver, sigmas


def assert_same(found: tuple[dict, dict], wanted: tuple[dict, dict]) -> None:
    """Both latents, bit for bit, with all that they hold."""
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        assert torch.equal(one["samples"], other["samples"])


# The same image


@pytest.mark.parametrize("id", SAMPLERS)
def test_every_sampler(comfyui, eps_model, id):
    options = {"eta": 0.7, "s_noise": 1.01, "order": 2, "solver_type": "default"}
    found = sample(comfyui, eps_model, sampler_name=id, **options)
    assert_same(found, wired(comfyui, eps_model, *chosen(comfyui, eps_model, id, **options)))


ONE_KIND = {"ays": "EPS", "gits": "EPS", "flux": "FLOW", "flux2": "FLOW"}


@pytest.mark.parametrize(
    ("id", "kind"),
    [
        (id, kind)
        for id, spec in SCHEDULES.items()
        for kind in ("EPS", "FLOW")
        if spec.any_steps and id != "manual" and ONE_KIND.get(id, kind) == kind
    ],
)
def test_every_schedule(comfyui, id, kind):
    model, options = small_model(kind), {"discard_penultimate": True, "rho": 5.0}
    found = sample(comfyui, model, scheduler=id, **options)
    assert_same(found, wired(comfyui, model, *chosen(comfyui, model, schedule=id, **options)))


def test_typed_levels_and_those_of_a_distilled_model(comfyui, eps_model):
    for options in ({"scheduler": "manual", "sigmas": "9, 3, 1, 0"}, {"scheduler": "trained", "distilled": "tcd"}):
        steps, schedule = 3, options["scheduler"]
        found = sample(comfyui, eps_model, steps=steps, **options)
        given = {name: value for name, value in options.items() if name != "scheduler"}
        assert_same(found, wired(comfyui, eps_model, *chosen(comfyui, eps_model, "dpmpp_2m", schedule, steps, **given)))


@pytest.mark.parametrize("denoise", [0.0, 0.35, 0.7])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "restart"])
def test_image_to_image(comfyui, eps_model, sampler, denoise):
    found = sample(comfyui, eps_model, sampler_name=sampler, denoise=denoise)
    assert_same(found, wired(comfyui, eps_model, *chosen(comfyui, eps_model, sampler, denoise=denoise)))
    if not denoise:
        assert torch.equal(found[0]["samples"], image()["samples"])


def test_masks_and_images_picked_from_a_batch(comfyui, eps_model):
    mask = torch.zeros(1, 64, 64)
    mask[..., 32:] = 1
    latent = image(noise_mask=mask, batch_index=[2])
    found = sample(comfyui, eps_model, latent, sampler_name="euler_ancestral")
    assert_same(found, wired(comfyui, eps_model, *chosen(comfyui, eps_model, "euler_ancestral"), latent))
    assert not torch.equal(
        found[0]["samples"], sample(comfyui, eps_model, sampler_name="euler_ancestral")[0]["samples"]
    )


def test_guidance_that_changes(comfyui, eps_model):
    guidance = Guidance("interval", cfg=6.0, rescale=0.5)
    found = sample(comfyui, eps_model, cfg=1.0, guidance=guidance)
    assert_same(found, wired(comfyui, eps_model, *chosen(comfyui, eps_model), guidance=guidance))


@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_a_plan(comfyui, eps_model, denoise):
    """With denoise the last steps of the plan, as SplitSigmasDenoise gives them."""
    solver, sigmas = comfyui.nodes["FewStepPlanSampler"].execute(PLAN).result
    part = comfyui.nodes["SplitSigmasDenoise"].execute(sigmas, denoise).result[1]
    found = sample(comfyui, eps_model, plan=PLAN, denoise=denoise, sampler_name="euler", steps=40)
    assert_same(found, wired(comfyui, eps_model, solver, part))
    assert len(part) == 1 + round(5 * denoise)


def test_the_hosts_ksampler_with_our_names(comfyui, eps_model):
    for sampler, schedule, denoise in (("dpmpp_2m", "karras", 1.0), ("dpmpp_2m_sde", "beta", 0.5)):
        host = ksample(
            comfyui, eps_model, f"fewstep_{sampler}", image(), scheduler=f"fewstep_{schedule}", denoise=denoise
        )
        found = sample(comfyui, eps_model, sampler_name=sampler, scheduler=schedule, denoise=denoise)
        assert torch.equal(found[0]["samples"], host)


def test_the_second_output_is_the_clean_image_expected_after_the_last_step(comfyui, eps_model):
    ended = sample(comfyui, eps_model)
    torch.testing.assert_close(ended[0]["samples"], ended[1]["samples"])  # at sigma 0 both are the last prediction
    left = advanced(comfyui, eps_model, end_at_step=3, return_with_leftover_noise="enable")
    assert float((left[0]["samples"] - left[1]["samples"]).std()) > 0.1


# Advanced


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "ddim", "unipc"])
@pytest.mark.parametrize(
    ("start", "end", "leftover"),
    [(0, 10000, "disable"), (0, 3, "enable"), (0, 3, "disable"), (2, 5, "enable"), (4, 2, "enable")],
)
@pytest.mark.parametrize("noise", ["enable", "disable"])
def test_parts_of_a_run_are_those_of_the_hosts_node(comfyui, eps_model, sampler, start, end, leftover, noise):
    host = comfyui.nodes["KSamplerAdvanced"]().sample(
        eps_model, noise, SEED, 6, CFG, f"fewstep_{sampler}", "fewstep_karras", conditioning(1), conditioning(2),
        image(), start, end, leftover,
    )  # fmt: skip
    found = advanced(
        comfyui, eps_model, sampler_name=sampler, add_noise=noise, start_at_step=start, end_at_step=end,
        return_with_leftover_noise=leftover,
    )  # fmt: skip
    assert torch.equal(found[0]["samples"], host[0]["samples"])


def test_parts_are_those_of_single_nodes(comfyui, eps_model):
    solver, sigmas = chosen(comfyui, eps_model, "res_2s", "time_quadratic", eta=0.3)
    high, low = comfyui.nodes["SplitSigmas"].execute(sigmas, 2).result
    given = {"sampler_name": "res_2s", "scheduler": "time_quadratic"}
    first = advanced(comfyui, eps_model, end_at_step=2, return_with_leftover_noise="enable", **given)
    assert_same(first, wired(comfyui, eps_model, solver, high))
    second = advanced(comfyui, eps_model, first[0], start_at_step=2, add_noise="disable", **given)
    nothing = comfyui.nodes["DisableNoise"].execute().result[0]
    assert_same(second, wired(comfyui, eps_model, solver, low, first[0], noise=nothing))


def test_parts_of_a_plan(comfyui, eps_model):
    solver, sigmas = comfyui.nodes["FewStepPlanSampler"].execute(PLAN).result
    found = advanced(comfyui, eps_model, plan=PLAN, end_at_step=3, return_with_leftover_noise="enable")
    assert_same(found, wired(comfyui, eps_model, solver, sigmas[:4]))
    with pytest.raises(ValueError, match="enable return_with_leftover_noise, or set end_at_step to 5"):
        advanced(comfyui, eps_model, plan=PLAN, end_at_step=3)


# In the place of a KSampler


@pytest.mark.parametrize(
    ("ours", "theirs"), [("FewStepKSampler", "KSampler"), ("FewStepKSamplerAdvanced", "KSamplerAdvanced")]
)
def test_it_has_the_inputs_of_the_hosts_node_in_their_order(comfyui, ours, theirs):
    """Values of widgets are saved by position, prompts for the API by name: both can be handed on as they are."""
    host = list(comfyui.nodes[theirs].INPUT_TYPES()["required"])
    assert [part.id for part in comfyui.nodes[ours].define_schema().inputs][: len(host)] == host


def test_progress_and_preview_are_those_of_the_host(comfyui, eps_model, monkeypatch):
    import latent_preview

    steps = []

    def prepare(model, total, x0_output=None):
        def callback(step, x0, x, total):
            x0_output["x0"] = x0
            steps.append((step, total))

        return callback

    monkeypatch.setattr(latent_preview, "prepare_callback", prepare)
    sample(comfyui, eps_model, steps=5)
    assert steps == [(i, 5) for i in range(5)]


def test_bad_choices_are_named(comfyui, eps_model):
    with pytest.raises(KeyError, match="unknown sampler"):
        sample(comfyui, eps_model, sampler_name="dpmpp_2n")
    with pytest.raises(ValueError, match="solver_type"):
        sample(comfyui, eps_model, sampler_name="dpmpp_2m", solver_type="bh1")


# The plot


def test_the_plot_is_that_of_the_single_nodes(routes):
    levels = routes.LevelRange(0.03, 14.0)._asdict()
    ours = node("FewStepKSampler", steps=7, sampler_name="dpmpp_2s", scheduler="beta", alpha=0.5, cfg=4.0)
    found = routes.plan({"node": ours, "levels": levels, "guidance": 4.0})
    single = {
        "node": node("FewStepSampler", sampler="dpmpp_2s"),
        "sigmas": node("FewStepScheduler", steps=7, schedule="beta", alpha=0.5),
    }
    schedule = found.pop("schedule")
    wanted = routes.plan({**single, "levels": levels, "guidance": 4.0})
    assert wanted.pop("schedule") is None and found == wanted
    assert schedule == routes.sigmas({"node": single["sigmas"], "levels": levels})


def test_the_plot_of_a_part(routes):
    ours = node("FewStepKSamplerAdvanced", scheduler="beta", steps=8, start_at_step=2, end_at_step=5)
    found = routes.plan({"node": ours})
    assert [e["step"] for e in found["evaluations"]] == [0, 1, 2]
    part = node("FewStepScheduler", steps=8, schedule="beta", start_step=2, end_step=5)
    wanted = routes.sigmas({"node": part})
    assert found["schedule"] == wanted | {"sigmas": [*wanted["sigmas"][:-1], 0.0]}  # the last step here ends at 0
    with pytest.raises(ValueError, match="no steps"):
        routes.plan({"node": {**ours, "inputs": {"start_at_step": 5, "end_at_step": 5}}})


def test_the_plot_of_a_plan(routes):
    plan = {"type": "FewStepLoadPlan", "inputs": {"file": "", "text": PLAN.text()}}
    found = routes.plan({"node": node("FewStepKSampler", steps=30, plan=plan)})
    assert [e["sigma"] for e in found["evaluations"]] == pytest.approx(PLAN.recipe.sigmas[:-1])
    assert (found["schedule"]["sigmas"], found["schedule"]["karras"]) == (list(PLAN.recipe.sigmas), [])


# What is said on the node


def test_two_remarks_of_one_run_are_both_shown(comfyui, eps_model, monkeypatch):
    """The node says where it differs from the training of a model, and its sampler warns of the scale."""
    from comfy_execution.utils import CurrentNodeContext

    sent: list[str] = []
    server = SimpleNamespace(send_progress_text=lambda text, *_: sent.append(text))
    monkeypatch.setattr(module(comfyui, "host.display"), "server", lambda: server)
    trained = {"scheduler": "trained", "distilled": "sdxl_lightning", "steps": 4}
    with CurrentNodeContext("prompt", "7", 0):
        sample(comfyui, eps_model, sampler_name="euler_cfg_pp", cfg=7.0, **trained)
    said = sent[-1].split("\n")
    assert len(said) == 2 and "was trained for cfg 1" in said[0] and "Warning: CFG++ at cfg 7 burns" in said[1]


# Step caches


@pytest.mark.parametrize("cache", ["EasyCache", "LazyCache"])
def test_a_step_cache_is_told_on_the_node_that_samples(comfyui, eps_model, monkeypatch, cache):
    shown: list[str] = []
    monkeypatch.setattr(module(comfyui, "host.display"), "say", shown.append)
    sample(comfyui, eps_model)
    assert not shown
    cached = comfyui.nodes[cache].execute(eps_model, 0.2, 0.15, 0.95, False).result[0]
    sample(comfyui, cached)
    sample(comfyui, cached, plan=PLAN)
    assert len(shown) == 2 and all(text.startswith(f"Warning: {cache} answers for the network") for text in shown)


def test_steps_that_are_too_long_are_told_on_the_node_that_samples(comfyui, eps_model, monkeypatch):
    shown: list[str] = []
    monkeypatch.setattr(module(comfyui, "host.display"), "say", shown.append)
    sample(comfyui, eps_model, sampler_name="heun", steps=3)
    assert len(shown) == 1 and shown[0].startswith("Warning: a step is too long for this sampler")


@pytest.mark.parametrize("planned", [False, True])
def test_a_run_that_ends_in_pure_noise_is_told_of(comfyui, monkeypatch, planned):
    """SplitSigmas at 0: the host then divides the latent by 1 - sigma = 0, whatever the sampler."""
    shown: list[str] = []
    monkeypatch.setattr(module(comfyui, "host.display"), "say", shown.append)
    model, whole = small_model("FLOW"), (1.0, 0.7, 0.3, 0.0)
    sampling = module(comfyui, "host.sampling")
    plan = CalibratedPlan(Recipe("dpmpp_2m", whole, flow=True))
    solver = sampling.plan_sampler(plan) if planned else comfyui.nodes["FewStepSampler"].execute("dpmpp_2m").result[0]
    high, low = comfyui.nodes["SplitSigmas"].execute(torch.tensor(whole), 0).result
    for sigmas in (high, low):
        wired(comfyui, model, solver, sigmas)
    assert len(shown) == 1 and shown[0].startswith("Warning: the sigmas end at 1, which is pure noise for this model")


class Pack:
    """A node that puts options on a model, and wraps the network in a function that is defined in it."""

    OPTIONS: ClassVar[dict[str, Any]] = {}
    WRAPS = True

    def apply(self, model):
        model = model.clone()
        model.model_options["transformer_options"] |= self.OPTIONS

        def wrapper(model_function, kwargs):
            return model_function(kwargs["input"], kwargs["timestep"], **kwargs["c"])

        wrapper.__qualname__ = wrapper.__qualname__.replace("Pack", type(self).__name__)
        if self.WRAPS:
            model.set_model_unet_function_wrapper(wrapper)
        return model


class TeaCache(Pack):
    """The node of welltop-cn/ComfyUI-TeaCache; WanVideoTeaCacheKJ of kijai/ComfyUI-KJNodes does the same."""

    OPTIONS: ClassVar = {"rel_l1_thresh": 0.4, "coefficients": [498.65], "model_type": "flux", "cache_device": "cpu"}


class ApplyTeaCachePatch(Pack):
    """The node of lldacing/ComfyUI_Patches_ll."""

    OPTIONS: ClassVar = {"tea_cache_attr": {"rel_l1_thresh": 0.25, "cache_device": "cpu"}}
    WRAPS = False


class MagCache(Pack):
    """The node of Zehong-Ma/ComfyUI-MagCache."""

    OPTIONS: ClassVar = {"magcache_thresh": 0.24, "retention_ratio": 0.1, "mag_ratios": torch.ones(4), "magcache_K": 5}


class OtherMagCache(Pack):
    """The node of wildminder/ComfyUI-MagCache."""

    OPTIONS: ClassVar = {"magcache_options": {"magcache_thresh": 0.24, "K": 5}}


class ApplyFBCacheOnModel(Pack):
    """The node of chengzeyi/Comfy-WaveSpeed, which leaves nothing among the options."""


@pytest.mark.parametrize(
    ("pack", "name"),
    [
        (TeaCache, "TeaCache"),
        (ApplyTeaCachePatch, "TeaCache"),
        (MagCache, "MagCache"),
        (OtherMagCache, "MagCache"),
        (ApplyFBCacheOnModel, "First Block Cache"),
    ],
)
def test_step_caches_of_other_packs_are_told(comfyui, eps_model, monkeypatch, pack, name):
    """Each installs what the pack of that name installs; the network runs as ever."""
    shown: list[str] = []
    monkeypatch.setattr(module(comfyui, "host.display"), "say", shown.append)
    sample(comfyui, pack().apply(eps_model))
    assert len(shown) == 1 and shown[0].startswith(f"Warning: {name} answers for the network")


def test_what_is_no_step_cache_is_not_told(comfyui, eps_model, monkeypatch):
    """Options and wrappers of other nodes, some of which keep keys and values of attention, or compile the network."""
    shown: list[str] = []
    monkeypatch.setattr(module(comfyui, "host.display"), "say", shown.append)
    model = eps_model.clone()
    model.model_options["transformer_options"] |= {"kv_cache": True, "enhance_weight": 2.0, ("block", 1): 0}
    model.set_model_unet_function_wrapper(lambda apply, given: apply(given["input"], given["timestep"], **given["c"]))
    sample(comfyui, model)
    assert not shown
