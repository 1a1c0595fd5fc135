"""Guidance that changes along a run: its mathematics, then inside the real host."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from in_the_host import ksample
from mixture import FLOW_MIN, NOISE, SIGMA_MAX, SIGMA_MIN, X1, denoiser, flow_denoiser
from small_models import conditioning, controlled, small_model

from samplers import SAMPLERS, SCHEDULES
from samplers.calibrated.about import About
from samplers.calibrated.plan import CalibratedPlan
from samplers.calibrated.recipe import Recipe
from samplers.calibrated.tuning import Tuning
from samplers.guidance import (
    NONE,
    SHAPES,
    Guidance,
    agreement_of,
    passes,
    rescaled,
    thresholded,
)

LEVELS = (14.6, 8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.05, 0.0)


# The scale at a level


def test_constant():
    assert Guidance(cfg=4).scales(LEVELS) == [4] * 8
    assert not Guidance(cfg=4).varies


def test_interval():
    """Above the end, up to the start; the levels of the paper where none are given."""
    guidance = Guidance("interval", 7, sigma_start=4, sigma_end=0.5)
    assert guidance.scales(LEVELS) == [1, 1, 7, 7, 7, 1, 1, 1]
    assert Guidance("interval", 7).scales(LEVELS) == [1, 1, 7, 7, 7, 7, 1, 1]
    assert passes(guidance.scales(LEVELS)) == 8 + 3
    float32 = torch.tensor([14.6, 0.7, 0.5]).tolist()
    assert Guidance("interval", 7, sigma_start=0.7).scales(float32) == [1, 7]


def test_interval_of_flow_models_has_the_same_snr():
    """sigma / (1 - sigma) in rectified flow is sigma in EDM space."""
    scale = Guidance("interval", 7).over((0.99, 0.5, 0.01), flow=True)
    for sigma in (0.2, 0.27, 0.29, 1.0, 5.4, 5.5):
        same = Guidance("interval", 7).over(LEVELS)(sigma)
        assert scale(sigma / (1 + sigma)) == same


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 0.5), ("cosine", 0.5), ("power", 0.25)], ids=["linear", "cosine", "power"]
)
def test_ramps(shape, middle):
    """From cfg to cfg_end in the share of sampling that is over, and not beyond."""
    scale = Guidance(shape, 9, 1).over((1.0, 0.5, 0.0), flow=True, elapsed=lambda sigma: 1 - sigma)
    assert [scale(1.0), scale(0.5), scale(0.0)] == pytest.approx([9, 9 - 8 * middle, 1])
    quarter = {"linear": 0.25, "cosine": (1 - math.sqrt(0.5)) / 2, "power": 0.0625}[shape]
    assert scale(0.75) == pytest.approx(9 - 8 * quarter)
    part = Guidance(shape, 9, 1, sigma_start=0.75, sigma_end=0.25)
    scale = part.over((1.0, 0.5, 0.0), flow=True, elapsed=lambda sigma: 1 - sigma)
    assert [scale(s) for s in (1.0, 0.75, 0.5, 0.25, 0.1)] == pytest.approx([9, 9, 9 - 8 * middle, 1, 1])


def test_ramps_between_levels_that_no_run_has_are_a_jump():
    """Both at the same share of sampling, as levels above the model's highest are: before it or over."""
    for start, end, wanted in ((200.0, 50.0, 1), (0.02, 0.01, 9)):
        guidance = Guidance("linear", 9, 1, sigma_start=start, sigma_end=end)
        scale = guidance.over((14.6, 1.0, 0.03), elapsed=lambda sigma: min(1.0, max(0.0, 1 - sigma / 14.6)) // 1)
        assert [scale(14.6), scale(1.0), scale(0.03)] == [wanted] * 3


def test_ramps_run_along_the_levels_where_nothing_else_is_said():
    """In sigma / (1 + sigma), the level of the same SNR in rectified flow, from the first level to the last."""
    flow = [sigma / (1 + sigma) for sigma in LEVELS]
    scales = Guidance("linear", 9, 1).scales(LEVELS)
    assert scales == pytest.approx(Guidance("linear", 9, 1).scales(flow, flow=True))
    assert scales[0] == 9 and all(a > b for a, b in itertools.pairwise(scales))


def test_a_part_of_a_run_is_guided_as_the_whole():
    """As a function of the level, guidance does not see where a run was split."""
    for shape in ("interval", "linear", "cosine", "power"):
        guidance = Guidance(shape, 9)
        whole = guidance.scales(LEVELS, elapsed=lambda sigma: 1 - sigma / 14.6)
        part = guidance.scales(LEVELS[3:], elapsed=lambda sigma: 1 - sigma / 14.6)
        assert whole[3:] == part


def test_list():
    """A scale for each step; evaluations inside of a step have that of the step, and the last one stays."""
    scale = Guidance("list", values=(5.0, 4.0, 3.0)).over((8.0, 4.0, 2.0, 1.0, 0.5))
    assert [scale(s) for s in (9.0, 8.0, 5.0, 4.0, 3.99, 2.0, 1.0, 0.7, 0.5)] == [5, 5, 5, 4, 4, 3, 3, 3, 3]
    upward = Guidance("list", values=(5.0, 4.0, 3.0)).over((0.5, 1.0, 2.0, 4.0))
    assert [upward(s) for s in (0.5, 0.9, 1.0, 2.0, 3.0, 4.0)] == [5, 5, 4, 3, 3, 3]


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
def test_cfg_pp_is_guided_prediction_and_unconditional_noise(flow):
    """x_t = alpha_t D + sigma_t eps_u with D = D_u + lambda (D_c - D_u), which ddim and euler do with that scale."""
    model, high, low = (flow_denoiser, 1.0, FLOW_MIN) if flow else (denoiser, SIGMA_MAX, SIGMA_MIN)
    sigmas = SCHEDULES["time_uniform"].function(7, low, high, flow=flow).tolist()
    strength = 0.6

    def predictions(x, sigma):
        return model(x, sigma), model(x, sigma) + 0.3 * torch.sin(x)

    x = start = sigmas[0] * X1
    for s, t in itertools.pairwise(sigmas):
        unconditional, conditional = predictions(x, torch.full((3,), s, dtype=x.dtype))
        alpha_s, alpha_t = (1 - s, 1 - t) if flow else (1, 1)
        noise = (x - alpha_s * unconditional) / s
        x = alpha_t * (unconditional + strength * (conditional - unconditional)) + t * noise

    scale = Guidance(cfg=strength, cfg_pp=True).over(sigmas, flow=flow)

    def guided(x, sigma):
        unconditional, conditional = predictions(x, sigma)
        return unconditional + scale(float(sigma[0])) * (conditional - unconditional)

    for sampler in ("ddim", "euler"):
        found = SAMPLERS[sampler].function(guided, start, sigmas, flow=flow, disable=True)
        torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


def test_cfg_pp_leaves_evaluations_without_guidance():
    guidance = Guidance("interval", 0.6, sigma_start=4, sigma_end=0.5, cfg_pp=True)
    assert guidance.scales(LEVELS) == pytest.approx([1, 1, 0.6 / 0.5, 0.6 / 0.5, 0.6 / 0.5, 1, 1, 1])
    assert Guidance(cfg=0.6, cfg_pp=True).scales(LEVELS)[-1] == 0.6  # the step to the clean image
    assert Guidance(cfg=0.6, cfg_pp=True).scales((0.5, 1.0), flow=True) == [0]  # to pure noise: that of D_u


# What is done to a prediction


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
def test_rescaled_velocity_has_the_contrast_of_the_conditional_one(flow):
    sigma = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    s = sigma.view(3, 1, 1, 1)
    x, conditional, denoised = X1 + s * NOISE, torch.sin(X1), 3 * torch.cos(X1)

    def velocity(d):
        """Of rectified flow, noise - x_0; else of a variance-preserving process, alpha noise - sigma x_0."""
        if flow:
            return (x - d) / s
        alpha = 1 / (1 + s**2).sqrt()
        return alpha * (x - d) / s - s * alpha * d

    v, v_c = velocity(denoised), velocity(conditional)
    ratio = v_c.flatten(1).std(dim=1) / v.flatten(1).std(dim=1)
    for amount in (0.0, 0.7, 1.0):
        found = velocity(rescaled(denoised, conditional, x, sigma, amount, flow=flow))
        wanted = (1 - amount + amount * ratio).view(3, 1, 1, 1) * v
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_thresholded_values_are_clipped_at_their_percentile():
    """The largest of a hundred values is clipped to the 99th, and all are divided by it."""
    values = torch.arange(1.0, 101.0).view(1, 1, 10, 10)
    found = thresholded(-values, 0.99)
    torch.testing.assert_close(found.flatten(), -torch.arange(1.0, 101.0).clamp(max=99) / 99)
    small = torch.stack([values[0] / 200, values[0]])
    found = thresholded(small, 0.99, floor=2.0)
    assert torch.equal(found[0], small[0])  # within the range: as it was
    torch.testing.assert_close(found[1].max(), torch.tensor(2.0))


def test_agreement_is_a_cosine_for_each_image():
    a = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]], [[1.0, 2.0]]])
    b = torch.tensor([[[6.0, 8.0]], [[0.0, 1.0]], [[-1.0, -2.0]]])
    torch.testing.assert_close(agreement_of(a, b), torch.tensor([1.0, 0.0, -1.0]))


# Bad input


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"shape": "ramp"}, "shape = 'ramp' must be one of constant, interval"),
        ({"cfg": math.nan}, "cfg = nan must be a finite number"),
        ({"cfg_end": math.inf}, "cfg_end = inf"),
        ({"sigma_end": -1}, "sigma_end = -1"),
        ({"sigma_start": 1, "sigma_end": 2}, "sigma_start = 1 must be above sigma_end = 2"),
        ({"rescale": 1.5}, "rescale = 1.5 must be a finite number between 0 and 1"),
        ({"threshold": math.nan}, "threshold = nan"),
        ({"threshold_floor": 0}, "threshold_floor = 0 must be a finite number between 0.01 and inf"),
        ({"shape": "list"}, "values must hold at least one number"),
        ({"shape": "list", "values": (1.0, math.nan)}, r"values\[1\] = nan"),
        ({"shape": "list", "values": (1.0, 10**400)}, r"values\[1\] = a whole number of more than"),
        ({"cfg": 10**400}, "cfg = a whole number of more than"),
        ({"sigma_start": "5"}, "sigma_start = '5' must be a number"),
    ],
)
def test_errors_name_the_field(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        Guidance(**fields)


def test_intervals_that_hold_nothing():
    with pytest.raises(ValueError, match=r"sigma_start = 5\.42 must be above sigma_end = 6"):
        Guidance("interval", sigma_end=6).over(LEVELS)


@pytest.mark.parametrize("sigmas", [(1.0,), ()])
def test_a_run_without_a_step_asks_for_no_scale(sigmas):
    assert Guidance(cfg=4.0).over(sigmas)(1.0) == 4.0 and Guidance().scales(sigmas) == []


def test_cfg_pp_at_a_level_that_is_pure_noise_but_for_rounding():
    """The way up to it is infinite; on the far side of 1, alpha would be negative."""
    scales = [Guidance(cfg=0.5, cfg_pp=True).scales((0.5, noise), flow=True) for noise in (0.99999994, 1.0, 1.0000001)]
    assert scales[0] == scales[1] == scales[2]


# In the host


CFG = 2.5
STEPS = 6


def node(comfyui, name, *arguments, **options):
    return comfyui.nodes[name].execute(*arguments, **options).result[0]


def made(comfyui, schedule="constant", cfg=CFG, **options):
    fields = {
        "cfg_end": NONE, "sigma_start": 0.0, "sigma_end": 0.0, "power": 2.0, "values": "", "cfg_pp": False,
        "rescale": 0.0, "agreement": 1.0, "threshold": 1.0, "threshold_floor": 1.0,
    }  # fmt: skip
    return node(comfyui, "FewStepGuidance", schedule=schedule, cfg=cfg, **(fields | options))


def advanced(comfyui, guider, model, sampler="euler", scheduler="karras", sigmas=None, start=None):
    """SamplerCustomAdvanced of the host, from seed 3."""
    if sigmas is None:
        sigmas = node(comfyui, "BasicScheduler", model, scheduler, STEPS, 1.0)
    noise = node(comfyui, "RandomNoise", 3) if start is None else node(comfyui, "DisableNoise")
    latent = {"samples": torch.zeros(1, 4, 8, 8)} if start is None else start
    solver = node(comfyui, "KSamplerSelect", sampler)
    return node(comfyui, "SamplerCustomAdvanced", noise, guider, solver, sigmas, latent)["samples"]


def ksampler(comfyui, model, sampler="euler", **options):
    return ksample(comfyui, model, sampler, **{"steps": STEPS, "cfg": CFG, **options})


def watched_passes(model) -> tuple:
    """The model, and what the host has its network do in each evaluation: 0 for the prompt, 1 without it."""
    seen = []

    def see(apply, args):
        seen.append(sorted(args["cond_or_uncond"]))
        return apply(args["input"], args["timestep"], **args["c"])

    watched = model.clone()
    watched.set_model_unet_function_wrapper(see)
    return watched, seen


def watched_scales(model) -> tuple:
    """The model, and the scale of guidance of each evaluation."""
    seen = []
    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(lambda args: seen.append(args["cond_scale"]) or args["denoised"])
    return watched, seen


@pytest.mark.network
@pytest.mark.parametrize("model_type", ["EPS", "V_PREDICTION", "EDM", "FLOW"])
def test_constant_guidance_is_the_hosts_own_bit_for_bit(comfyui, model_type):
    model = small_model(model_type)
    guidance = made(comfyui)
    host = advanced(comfyui, node(comfyui, "CFGGuider", model, conditioning(1), conditioning(2), CFG), model)
    ours = advanced(comfyui, node(comfyui, "FewStepGuider", model, conditioning(1), conditioning(2), guidance), model)
    assert torch.equal(ours, host)
    patched = node(comfyui, "FewStepGuidancePatch", model, guidance)
    assert torch.equal(ksampler(comfyui, patched, cfg=9.0), ksampler(comfyui, model))
    assert not torch.equal(ksampler(comfyui, model, cfg=9.0), ksampler(comfyui, model))


def test_interval_saves_passes(comfyui, eps_model):
    """Outside of it the host runs the prompt alone, in KSampler and with a guider."""
    model, seen = watched_passes(eps_model)
    sigmas = node(comfyui, "BasicScheduler", eps_model, "karras", STEPS, 1.0).tolist()
    guidance = made(comfyui, "interval", sigma_start=sigmas[2], sigma_end=sigmas[4])
    ksampler(comfyui, node(comfyui, "FewStepGuidancePatch", model, guidance))
    wanted = [[0], [0], [0, 1], [0, 1], [0], [0]]
    assert seen == wanted
    seen.clear()
    guider = node(comfyui, "FewStepGuider", model, conditioning(1), conditioning(2), guidance)
    advanced(comfyui, guider, model)
    assert seen == wanted


@pytest.mark.network
def test_interval_is_three_runs_of_the_host(comfyui, eps_model):
    """A sampler without memory gives the same in pieces, without guidance before and after."""
    sigmas = node(comfyui, "BasicScheduler", eps_model, "karras", STEPS, 1.0)
    guidance = made(comfyui, "interval", sigma_start=float(sigmas[2]), sigma_end=float(sigmas[4]))
    guider = node(comfyui, "FewStepGuider", eps_model, conditioning(1), conditioning(2), guidance)
    whole = advanced(comfyui, guider, eps_model)
    latent = None
    for first, last, cfg in ((0, 2, 1.0), (2, 4, CFG), (4, STEPS, 1.0)):
        plain = node(comfyui, "CFGGuider", eps_model, conditioning(1), conditioning(2), cfg)
        part = sigmas[first : last + 1]
        latent = {"samples": advanced(comfyui, plain, eps_model, "euler", sigmas=part, start=latent)}
    torch.testing.assert_close(whole, latent["samples"], rtol=1e-5, atol=1e-5)


@pytest.mark.network
def test_list_has_a_scale_for_each_step(comfyui, eps_model):
    scales = [5.0, 1.0, 2.5, 4.0, 1.0, 3.0]
    model, seen = watched_scales(eps_model)
    patched = node(comfyui, "FewStepGuidancePatch", model, made(comfyui, "list", values="5; 1, 2.5 4,1,3"))
    ksampler(comfyui, patched)
    assert seen == scales
    seen.clear()
    ksampler(comfyui, patched, "fewstep_dpmpp_2s")  # two evaluations a step, the last step one
    assert seen == [scale for scale in scales[:-1] for _ in range(2)] + scales[-1:]


@pytest.mark.network
def test_ramps_run_in_the_hosts_percent(comfyui, eps_model):
    """Half-way in percent is half-way on the ramp, whatever the levels of the run."""
    for model in (eps_model, small_model("FLOW")):
        sampling = model.get_model_object("model_sampling")
        sigmas = torch.tensor([float(sampling.percent_to_sigma(p)) for p in (0.2, 0.5, 0.8)] + [0.0])
        watched, seen = watched_scales(model)
        guidance = made(comfyui, "linear", cfg=5.0, cfg_end=2.0)
        guider = node(comfyui, "FewStepGuider", watched, conditioning(1), conditioning(2), guidance)
        advanced(comfyui, guider, watched, sigmas=sigmas)
        assert seen == pytest.approx([4.4, 3.5, 2.6], abs=1e-3)


@pytest.mark.network
@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_cfg_pp_is_that_of_the_host(comfyui, eps_model, sampler):
    host = ksampler(comfyui, eps_model, "euler_cfg_pp", cfg=0.6)
    patched = node(comfyui, "FewStepGuidancePatch", eps_model, made(comfyui, cfg=0.6, cfg_pp=True))
    solver = node(comfyui, "FewStepSampler", sampler)
    sigmas = node(comfyui, "BasicScheduler", patched, "karras", STEPS, 1.0)
    empty, prompts = {"samples": torch.zeros(1, 4, 8, 8)}, (conditioning(1), conditioning(2))
    ours = node(comfyui, "SamplerCustom", patched, True, 3, CFG, *prompts, solver, sigmas, empty)["samples"]
    torch.testing.assert_close(ours, host, rtol=1e-4, atol=1e-4 * float(host.abs().max()))


@pytest.mark.network
@pytest.mark.parametrize("model_type", ["EPS", "V_PREDICTION"])
def test_rescale_is_that_of_the_host(comfyui, model_type):
    model = small_model(model_type)
    (host,) = comfyui.nodes["RescaleCFG"]().patch(model, 0.7)
    ours = node(comfyui, "FewStepGuidancePatch", model, made(comfyui, rescale=0.7))
    wanted = ksampler(comfyui, host)
    torch.testing.assert_close(ksampler(comfyui, ours), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.network
def test_threshold_keeps_predictions_in_their_range(comfyui, eps_model):
    """The last prediction is the image."""
    patched = node(comfyui, "FewStepGuidancePatch", eps_model, made(comfyui, threshold=0.99, threshold_floor=0.5))
    plain, bounded = ksampler(comfyui, eps_model), ksampler(comfyui, patched)
    assert float(plain.abs().max()) > 0.6 and float(bounded.abs().max()) == pytest.approx(0.5)


@pytest.mark.network
def test_guidance_ends_once_the_predictions_agree(comfyui, eps_model):
    """With euler the run is guided up to there and not guided after it."""
    model, seen = watched_passes(eps_model)
    cosines = []

    def see(args):
        cosines.append(float(agreement_of(args["cond_denoised"], args["uncond_denoised"])))
        return args["denoised"]

    watched = eps_model.clone()
    watched.set_model_sampler_post_cfg_function(see)
    ksampler(comfyui, watched)
    last = max(range(4), key=lambda k: cosines[k])  # nothing before agrees as much
    agreement = cosines[last] - 1e-6
    first = next(k for k, cosine in enumerate(cosines) if cosine >= agreement)
    ksampler(comfyui, node(comfyui, "FewStepGuidancePatch", model, made(comfyui, agreement=agreement)))
    assert seen == [[0, 1]] * (first + 1) + [[0]] * (STEPS - first - 1)


@pytest.mark.network
def test_inversion_goes_through_the_agreement_from_below(comfyui):
    """Where the predictions agree at low noise only, the way up is guided above that as the way down is."""
    model = small_model("EPS")
    model.model.diffusion_model.out[2].weight.data *= 0.1  # a milder model than one of random weights
    patched = node(comfyui, "FewStepGuidancePatch", model, made(comfyui, agreement=0.9))
    watched, seen = watched_scales(patched)
    sigmas = node(comfyui, "FewStepScheduler", model, "karras", STEPS, 1.0)
    image = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))}
    prompts = conditioning(1), conditioning(2)
    node(comfyui, "FewStepInvert", watched, *prompts, image, CFG, "ddim", sigmas, 0, False)
    assert seen == [CFG] * STEPS


@pytest.mark.network
def test_composes_with_what_the_host_wraps_around_a_model(comfyui, eps_model):
    """A list of one scale goes the long way, evaluation by evaluation, and gives the host's own image bit for bit:
    with regional prompts, prompts for a part of the steps, a ControlNet, a mask, and another patch of guidance."""
    patched = node(comfyui, "FewStepGuidancePatch", eps_model, made(comfyui, "list", values=str(CFG)))
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :4] = 1
    (left,) = comfyui.nodes["ConditioningSetMask"]().append(conditioning(3), mask, "default", 1.0)
    (regional,) = comfyui.nodes["ConditioningCombine"]().combine(left, conditioning(4))
    (late,) = comfyui.nodes["ConditioningSetTimestepRange"]().set_range(conditioning(5), 0.4, 1.0)
    (timed,) = comfyui.nodes["ConditioningCombine"]().combine(conditioning(1), late)
    image = {"samples": torch.ones(1, 4, 8, 8), "noise_mask": mask[:, None]}
    control = dict(zip(("positive", "negative"), controlled(comfyui, conditioning(1), conditioning(2)), strict=True))
    for arguments in ({"positive": regional}, {"positive": timed}, control, {"image": image}):
        assert torch.equal(ksampler(comfyui, patched, **arguments), ksampler(comfyui, eps_model, **arguments))
        assert not torch.equal(ksampler(comfyui, patched, **arguments), ksampler(comfyui, patched))
    (host,) = comfyui.nodes["RescaleCFG"]().patch(eps_model, 0.7)
    both = node(comfyui, "FewStepGuidancePatch", host, made(comfyui, "list", values=str(CFG)))
    assert torch.equal(ksampler(comfyui, both), ksampler(comfyui, host))


@pytest.mark.network
def test_composes_with_pooled_conditioning(comfyui):
    """The second conditioning of SDXL, which the demo model has, too."""
    model, positive, negative = comfyui.nodes["FewStepDemoModel"].execute("cat face", "dog").result
    image = {"samples": torch.zeros(1, 12, 16, 16)}
    arguments = {"positive": positive, "negative": negative, "image": image}
    patched = node(comfyui, "FewStepGuidancePatch", model, made(comfyui, "list", values=str(CFG)))
    assert torch.equal(ksampler(comfyui, patched, **arguments), ksampler(comfyui, model, **arguments))


@pytest.mark.network
def test_every_sampler_of_the_host_takes_it(comfyui, eps_model):
    """Two runs of the pack's own kind of guidance as the host's numbers: outside of the range there is none."""
    whole = made(comfyui, "interval", sigma_start=100.0, sigma_end=1e-6)
    none = made(comfyui, "interval", sigma_start=100.0, sigma_end=50.0)
    for sampler in (
        "dpmpp_2m",
        "uni_pc",
        "dpmpp_2m_sde",
        "lms",
        "dpm_adaptive",
        "fewstep_amed_dpm_2m",
        "fewstep_dpmpp_sde",
    ):
        for guidance, cfg in ((whole, CFG), (none, 1.0)):
            patched = node(comfyui, "FewStepGuidancePatch", eps_model, guidance)
            assert torch.equal(ksampler(comfyui, patched, sampler), ksampler(comfyui, eps_model, sampler, cfg=cfg))


@pytest.mark.network
def test_factors_of_a_plan_come_on_top(comfyui, eps_model):
    factors = (1.0, 0.5, 2.0)
    recipe = Recipe("euler", (14.6, 4.0, 1.0, 0.0), tunings=tuple(Tuning(guidance=f) for f in factors))
    plan = CalibratedPlan(recipe, about=About(guidance=5.0))
    solver, sigmas = comfyui.nodes["FewStepPlanSampler"].execute(plan).result[:2]
    model, seen = watched_scales(eps_model)
    guidance = made(comfyui, "list", cfg=5.0, values="4 6 2")
    guider = node(comfyui, "FewStepGuider", model, conditioning(1), conditioning(2), guidance)
    node(
        comfyui, "SamplerCustomAdvanced", node(comfyui, "RandomNoise", 3), guider, solver, sigmas,
        {"samples": torch.zeros(1, 4, 8, 8)},
    )  # fmt: skip
    assert seen == pytest.approx([4.0, 3.0, 4.0])
    assert guider.cfg == 5.0
    seen.clear()
    patched = node(comfyui, "FewStepGuidancePatch", model, made(comfyui, "list", cfg=5.0, values="4 1 1"))
    image = {"samples": torch.zeros(1, 4, 8, 8)}
    node(comfyui, "SamplerCustom", patched, True, 3, 5.0, conditioning(1), conditioning(2), solver, sigmas, image)
    assert seen == [4.0, 1.0, 1.0]  # without guidance there is nothing to multiply, and one pass is enough


def test_a_plan_is_compared_with_the_strongest_scale_of_a_list(comfyui, eps_model, caplog):
    """`cfg` is not used by a list, and its being 0 does not take the plan's factors away."""
    recipe = Recipe("euler", (14.6, 4.0, 0.0), tunings=(Tuning(guidance=0.5), Tuning()))
    solver, sigmas = (
        comfyui.nodes["FewStepPlanSampler"].execute(CalibratedPlan(recipe, about=About(guidance=6.0))).result[:2]
    )
    model, seen = watched_scales(eps_model)
    guider = node(
        comfyui, "FewStepGuider", model, conditioning(1), conditioning(2),
        made(comfyui, "list", cfg=0.0, values="4 6"),
    )  # fmt: skip
    image = {"samples": torch.zeros(1, 4, 8, 8)}
    node(comfyui, "SamplerCustomAdvanced", node(comfyui, "RandomNoise", 3), guider, solver, sigmas, image)
    assert seen == pytest.approx([2.0, 6.0])
    assert "this plan was made at guidance" not in caplog.text


def test_strong_cfg_pp_is_told(comfyui, caplog):
    made(comfyui, cfg=0.6, cfg_pp=True)
    assert not caplog.text
    made(comfyui, cfg=7.5, cfg_pp=True)
    assert "CFG++ at cfg 7.5 burns the image" in caplog.text


def test_guiders_without_one_scale_are_left_alone(comfyui, eps_model, caplog):
    patched = node(comfyui, "FewStepGuidancePatch", eps_model, made(comfyui, "interval"))
    dual = comfyui.nodes["DualCFGGuider"]
    for make in (
        lambda model: node(comfyui, "BasicGuider", model, conditioning(1)),
        lambda model: dual.execute(model, conditioning(1), conditioning(3), conditioning(2), 3, 2, "regular").result[0],
    ):
        caplog.clear()
        ours = advanced(comfyui, make(patched), patched)
        assert "the guidance schedule is left out" in caplog.text
        assert torch.equal(ours, advanced(comfyui, make(eps_model), eps_model))


@pytest.mark.network
def test_the_last_patch_counts_and_the_model_stays(comfyui, eps_model):
    plain = ksampler(comfyui, eps_model)
    first = node(comfyui, "FewStepGuidancePatch", eps_model, made(comfyui, cfg=7.0))
    both = node(comfyui, "FewStepGuidancePatch", first, made(comfyui, cfg=CFG))
    assert torch.equal(ksampler(comfyui, both), plain)
    assert torch.equal(ksampler(comfyui, first), ksampler(comfyui, eps_model, cfg=7.0))
    assert torch.equal(ksampler(comfyui, eps_model), plain)


def test_nothing_is_left_behind_after_an_error(comfyui, eps_model):
    model = eps_model.clone()

    def broken(apply, args):
        raise RuntimeError("out of memory")

    model.set_model_unet_function_wrapper(broken)
    guidance = made(comfyui, "linear", cfg=4.0)
    guider = node(comfyui, "FewStepGuider", model, conditioning(1), conditioning(2), guidance)
    with pytest.raises(RuntimeError, match="out of memory"):
        advanced(comfyui, guider, model)
    assert guider.cfg == 4.0
    assert "fewstep_guidance" not in guider.model_options


def test_node_errors_name_the_input(comfyui):
    with pytest.raises(ValueError, match="values: 'seven' is not a number"):
        made(comfyui, "list", values="5, seven")
    with pytest.raises(ValueError, match="values must hold at least one number"):
        made(comfyui, "list")
    assert {"constant", "interval", "list"} < set(SHAPES)
