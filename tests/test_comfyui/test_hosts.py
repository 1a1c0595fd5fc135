"""What differs from host to host, and what its contract allows: each test asks the host that it runs in."""

from __future__ import annotations

import ast
import asyncio
import copy
import functools
import importlib.util
import inspect
import json
import pickle
import re
import sys
import types

import pytest
import torch
from host import ROOT
from in_the_host import module
from small_models import conditioning, small_model

from samplers import SAMPLERS, SCHEDULES

STOCHASTIC = [id for id, spec in SAMPLERS.items() if spec.stochastic]


def custom(comfyui, model, sampler, sigmas, image=None, seed=3, cfg=2.5):
    """The latent that SamplerCustom gives."""
    empty = torch.zeros(1, 4, 8, 8) if image is None else image
    node = comfyui.nodes["SamplerCustom"]
    prompts = conditioning(1), conditioning(2)
    return node.execute(model, True, seed, cfg, *prompts, sampler, sigmas, {"samples": empty}).result[0]["samples"]


def curated(comfyui, registry) -> list[str]:
    """What the host's lists get of samplers or of schedules, in order."""
    registration = module(comfyui, "registration")
    first = registration.SAMPLERS_FIRST if registry is SAMPLERS else registration.SCHEDULES_FIRST
    return [f"fewstep_{spec.id}" for spec in registration.curated(registry, first)]


def ids(comfyui) -> set[str]:
    return {id for id in comfyui.nodes if id.startswith("FewStep")}


def ours(comfyui, id, **options):
    return comfyui.nodes["FewStepSampler"].execute(id, **options).result[0]


def sigmas_of(model, schedule="exponential", steps=5, high=None):
    sampling = model.get_model_object("model_sampling")
    high = high or float(sampling.sigma_max)
    flow = float(sampling.sigma_max) <= 1
    return SCHEDULES[schedule].function(steps, float(sampling.sigma_min), high, flow=flow).float()


# Models whose noise is not of unit variance


def with_noise_scale(kind: str, scale: float):
    """A small model as new hosts make HiDream-O1: x_t = (1 - sigma) x_0 + sigma s noise, with s = noise_scale.

    A model that is no rectified flow has the attribute, which the host's samplers read, and starts as ever.
    """
    model = small_model(kind)
    before = model.model.model_sampling

    class Scaled(type(before)):
        def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
            if kind != "FLOW":
                return super().noise_scaling(sigma, noise, latent_image, max_denoise)
            return sigma * (self.noise_scale * noise) + (1 - sigma) * latent_image

    sampling = copy.deepcopy(before)
    sampling.__class__ = Scaled
    sampling.noise_scale = scale
    model.add_object_patch("model_sampling", sampling)
    return model


def constant_noise(sigma, sigma_next):
    """Depends on the interval alone, so that both samplers must ask for the same."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    return noise * torch.cos(torch.as_tensor(3.0 * sigma + 2.0 * sigma_next))


SDE = [
    ("dpmpp_2m_sde", {"eta": 0.7, "s_noise": 1.2}, {}),
    ("dpmpp_3m_sde", {"eta": 0.7}, {}),
    ("dpmpp_sde", {"eta": 0.7}, {}),
]
ANCESTRAL = [  # whose noise the host multiplies in rectified flow alone
    ("euler_ancestral", {"eta": 0.7, "ancestral_step": "linear"}, {"eta": 0.7}),
    ("dpmpp_2s_ancestral", {"eta": 0.7, "ancestral_step": "linear"}, {"eta": 0.7}),
]


@pytest.mark.parametrize("scale", [8.0, 0.5])
@pytest.mark.parametrize(
    ("kind", "id", "options", "theirs"),
    [*(("FLOW", *case) for case in SDE + ANCESTRAL), *(("EPS", *case) for case in SDE)],
)
def test_fresh_noise_has_the_scale_of_the_model(comfyui, kind, scale, id, options, theirs):
    """As in the host, whose samplers multiply s_noise by it; on a host of before that is done here."""
    import comfy.samplers
    from comfy.k_diffusion import sampling

    model = with_noise_scale(kind, scale)
    sigmas = sigmas_of(model, high=0.97 if kind == "FLOW" else None)  # the host begins at 0.9999 for 1
    theirs = theirs or options
    known = "noise_scale" in inspect.getsource(sampling.sample_dpmpp_2m_sde)
    theirs = theirs | {"s_noise": theirs.get("s_noise", 1.0) * (1 if known else scale)}
    expected = custom(comfyui, model, comfy.samplers.ksampler(id, {**theirs, "noise_sampler": constant_noise}), sigmas)
    mine = ours(comfyui, id, **options)
    mine.extra_options["noise_sampler"] = constant_noise
    found = custom(comfyui, model, mine, sigmas)
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-4
    plain = with_noise_scale(kind, 1.0)
    assert ((custom(comfyui, plain, mine, sigmas) - expected).abs().max() / expected.abs().max()).item() > 1e-2


@pytest.mark.parametrize("id", STOCHASTIC)
def test_every_stochastic_sampler_scales_what_it_draws(comfyui, id):
    """Its own noise and that of a foreign noise sampler: as a larger s_noise does on a model without the scale."""
    options = {"s_churn": 3.0} if id == "edm" else {"eta": 1.0} if id == "ddim" else {}
    model, plain = with_noise_scale("EPS", 3.0), small_model("EPS")  # both start from the same sample
    sigmas = sigmas_of(model)
    for foreign in ({}, {"noise_sampler": constant_noise}):
        run = []
        for patcher, factor in ((model, 1.0), (plain, 3.0)):
            sampler = ours(comfyui, id, **options, s_noise=factor)
            sampler.extra_options.update(foreign)
            run.append(custom(comfyui, patcher, sampler, sigmas))
        torch.testing.assert_close(*run, rtol=1e-4, atol=1e-4)


def test_the_scale_is_beside_the_bounds_of_s_noise(comfyui):
    model = with_noise_scale("FLOW", 8.0)
    assert custom(comfyui, model, ours(comfyui, "dpmpp_2m_sde", s_noise=10.0), sigmas_of(model)).isfinite().all()


@pytest.mark.parametrize("high", [1.0, 0.9], ids=["from noise", "from a level"])
def test_inverted_noise_comes_back_where_noise_is_scaled(comfyui, high):
    """The NOISE is what the host has to be given so that its noise_scaling makes the sample that was found."""
    from comfy.samplers import KSAMPLER

    model = with_noise_scale("FLOW", 8.0)
    sigmas = sigmas_of(model, steps=8, high=high)
    image = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    prompts = conditioning(1), conditioning(2)
    nodes = comfyui.nodes
    noise = nodes["FewStepInvert"].execute(model, *prompts, image, 1.0, "ddim", sigmas, 12, True).result[1]
    guider = nodes["CFGGuider"].execute(model, *prompts, 1.0).result[0]
    run = nodes["SamplerCustomAdvanced"].execute
    back = run(noise, guider, ours(comfyui, "ddim"), sigmas, image).result[0]["samples"]
    assert (back - image["samples"]).square().mean().sqrt() < 0.02 * image["samples"].square().mean().sqrt()
    seen = []

    def look(model, x, sigmas, extra_args=None, callback=None, disable=None):
        seen.append(x)
        return x

    run(noise, guider, KSAMPLER(look), sigmas, image)
    sampling = model.get_model_object("model_sampling")
    torch.testing.assert_close(seen[0], sampling.noise_scaling(sigmas[0], noise.noise, image["samples"]))


def test_runs_from_inside_a_node_start_from_scaled_noise(comfyui):
    """Calibration and training: from that of the host."""
    session = module(comfyui, "host.session")
    model = with_noise_scale("FLOW", 8.0)
    work = session.Session(model, conditioning(1), conditioning(2), 2.0, {"samples": torch.zeros(1, 4, 8, 8)})
    seen = []
    work.run(lambda model, x, sigmas, **_: seen.append(x) or x, [0.9, 0.0], [session.Sample(0, 3)])
    torch.testing.assert_close(seen[0], 0.9 * 8 * work.noise([session.Sample(0, 3)]))


def test_routes_are_registered_once(comfyui, monkeypatch):
    """Hosts that call on_load register twice."""
    from aiohttp import web
    from server import PromptServer

    table = web.RouteTableDef()
    monkeypatch.setattr(PromptServer, "instance", types.SimpleNamespace(routes=table), raising=False)
    for _ in range(2):
        module(comfyui, "routes").register_routes()
    paths = [route.path for route in table]
    assert paths and len(set(paths)) == len(paths)


def test_kinds_of_models_are_told_apart_by_it(comfyui):
    host = module(comfyui, "host.model")
    assert host.fingerprint(with_noise_scale("FLOW", 8.0))["noise_scale"] == 8
    assert host.fingerprint(small_model("FLOW"))["noise_scale"] == 1


# Latents that the model sizes


@pytest.fixture
def sized(comfyui, monkeypatch):
    """A model at a 16th of the image, and an empty LATENT at an 8th as new hosts make it, with a word on its size.

    Hosts of before do not size latents: there a function of the new signature does it in their place.
    """
    import comfy.sample

    model = small_model("EPS")
    model.model.latent_format.spacial_downscale_ratio = 16
    old = comfy.sample.fix_empty_latent_channels
    if "downscale_ratio_spacial" not in inspect.signature(old).parameters:

        def fix(model, latent_image, downscale_ratio_spacial=None, downscale_ratio_temporal=None):
            fixed = old(model, latent_image)
            if downscale_ratio_spacial is None or fixed.any():
                return fixed
            ratio = downscale_ratio_spacial / model.get_model_object("latent_format").spacial_downscale_ratio
            return fixed.new_zeros(*fixed.shape[:-2], *(round(side * ratio) for side in fixed.shape[-2:]))

        monkeypatch.setattr(comfy.sample, "fix_empty_latent_channels", fix)
    samples = torch.zeros(1, 4, 16, 32)
    return model, {"samples": samples, "downscale_ratio_spacial": 8, "type": "image"}


def test_latents_are_sized_by_the_model(comfyui, sized, monkeypatch):
    """In every node that samples by itself, to what the host's SamplerCustom would make of them."""
    model, latent = sized
    prompts, nodes = (conditioning(1), conditioning(2)), comfyui.nodes
    sampler, sigmas = ours(comfyui, "dpmpp_2m"), sigmas_of(model, steps=2)
    film = nodes["FewStepFilmStrip"].execute(model, *prompts, sampler, sigmas, latent, 2.0, 3, 5, 64).result[2]
    assert film["samples"].shape == (1, 4, 8, 16)
    assert film.keys() == {"samples", "type"}  # what it was divided by holds no more: a second node would size it again
    known = "downscale_ratio" in inspect.getsource(nodes["SamplerCustom"].execute)
    like = latent if known else {"samples": torch.zeros(1, 4, 8, 16), "type": "image"}
    expected = nodes["SamplerCustom"].execute(model, True, 3, 2.0, *prompts, sampler, sigmas, like).result[0]
    assert expected.keys() == film.keys()
    torch.testing.assert_close(film["samples"], expected["samples"], rtol=0, atol=0)
    lines = "fewstep_ddim", "karras", "2"
    compared = nodes["FewStepCompare"].execute(model, *prompts, latent, *lines, 2.0, 0, 1.0, 3, 64).result[3]
    assert compared["samples"].shape == (1, 4, 8, 16)
    trajectory, seen = module(comfyui, "trajectory"), []
    original = trajectory.trajectories
    monkeypatch.setattr(trajectory, "trajectories", lambda *a: seen.append(original(*a)) or seen[0])
    nodes["FewStepTrajectory"].execute(model, *prompts, latent, 2.0, 0, 3, 4)
    assert seen[0].shape == (5, 3, 4, 8, 16)
    assert module(comfyui, "host.session").Session(model, *prompts, 2.0, latent).shape == (4, 8, 16)
    mask = nodes["FewStepDiffEditMask"].execute(model, *prompts, latent, 0.5, 2, 5, 0.5, 3.0, 0).result[0]
    assert mask.shape == (1, 8, 16)


def test_an_image_keeps_its_size(comfyui, sized):
    model, latent = sized
    latent = latent | {"samples": torch.ones(1, 4, 16, 32)}
    fitted = module(comfyui, "host.session").fitting(model, latent)
    assert torch.equal(fitted["samples"], latent["samples"]) and fitted.keys() == {"samples", "type"}


def test_hosts_of_before_are_told_nothing_new(comfyui, monkeypatch):
    """There the host leaves such keys in a latent, and so do we."""
    import comfy.sample

    monkeypatch.setattr(comfy.sample, "fix_empty_latent_channels", lambda model, latent_image: latent_image)
    latent = {"samples": torch.zeros(1, 4, 16, 16), "downscale_ratio_spacial": 8}
    assert module(comfyui, "host.session").fitting(small_model("EPS"), latent) == latent


def nodes_that_sample(comfyui, model, latent):
    """Each with the LATENT, by name."""
    prompts, nodes = (conditioning(1), conditioning(2)), comfyui.nodes
    sampler, sigmas = ours(comfyui, "dpmpp_2m"), sigmas_of(model, steps=2)
    calls = {
        "FewStepInvert": (model, *prompts, latent, 1.0, "ddim", sigmas, 1, True),
        "FewStepFilmStrip": (model, *prompts, sampler, sigmas, latent, 2.0, 3, 5, 64),
        "FewStepCompare": (model, *prompts, latent, "fewstep_ddim", "karras", "2", 2.0, 0, 1.0, 3, 64),
        "FewStepTrajectory": (model, *prompts, latent, 2.0, 0, 2, 4),
        "FewStepDiffEditMask": (model, *prompts, latent, 0.5, 2, 5, 0.5, 3.0, 0),
        "FewStepCalibrate": (model, *prompts, latent, 2.0, 3, "auto", 0, 2, 4, 1, 0),
    }
    runs = {name: functools.partial(nodes[name].execute, *arguments) for name, arguments in calls.items()}
    both = model, *prompts, latent, 2.0
    runs["FewStepTrainAMED"] = functools.partial(nodes["FewStepTrainAMED"].execute, *both)
    runs["FewStepDistill"] = functools.partial(nodes["FewStepDistill"].execute, *both, "mine")
    return runs


def test_several_latents_in_one_are_refused_alike(comfyui):
    import comfy.nested_tensor

    model = small_model("EPS")
    several = comfy.nested_tensor.NestedTensor([torch.zeros(1, 4, 3, 6, 6), torch.zeros(1, 4, 11)])
    for run in nodes_that_sample(comfyui, model, {"samples": several}).values():
        with pytest.raises(ValueError, match="latent_image holds several latents in one"):
            run()


def test_a_mask_of_sound_is_refused(comfyui):
    model = small_model("EPS")
    with pytest.raises(ValueError, match=r"latent_image has the shape \[2, 4, 21\], without height and width"):
        nodes_that_sample(comfyui, model, {"samples": torch.ones(2, 4, 21)})["FewStepDiffEditMask"]()


# What other packs do with a sampler


def wrapped(sampler, wrap):
    """A SAMPLER of another pack, which gives ours another model."""
    import comfy.samplers

    def function(model, x, sigmas, **arguments):
        return sampler.sampler_function(wrap(model), x, sigmas, **arguments, **sampler.extra_options)

    return comfy.samplers.KSAMPLER(function)


class Deeper:
    """A model in whose inner_model is the model that the host gave."""

    def __init__(self, model):
        self.inner_model = model

    def __call__(self, *arguments, **named):
        return self.inner_model(*arguments, **named)


WRAPS = {
    "deeper": Deeper,
    "twice": lambda model: Deeper(Deeper(model)),
    "partial": lambda model: functools.partial(model),
    "wraps": lambda model: functools.wraps(model)(lambda *a, **k: model(*a, **k)),
    "method": lambda model: Deeper(model).__call__,
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_wrapped_model_samples(comfyui, wrap):
    model = small_model("FLOW")
    sigmas = sigmas_of(model)
    for id in ("dpmpp_2m", "dpmpp_2m_sde", "dpm_adaptive", "amed_dpm_2m"):
        sampler = ours(comfyui, id)
        expected = custom(comfyui, model, sampler, sigmas)
        found = custom(comfyui, model, wrapped(sampler, WRAPS[wrap]), sigmas)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_plain_function_in_place_of_the_model_is_a_clear_error(comfyui):
    """It says nothing of what its levels are."""
    model, plan = small_model("EPS"), next(iter(module(comfyui, "plans").BUILT_IN.values()))
    samplers = [*(ours(comfyui, id) for id in SAMPLERS), module(comfyui, "host.sampling").plan_sampler(plan)]
    for sampler in samplers:
        with pytest.raises(ValueError, match=r"model: this function does not lead to a MODEL of ComfyUI .*inner_model"):
            custom(comfyui, model, wrapped(sampler, lambda model: lambda x, s, **e: model(x, s, **e)), sigmas_of(model))


def test_a_model_that_holds_itself_is_an_error_too(comfyui):
    loop = Deeper(None)
    loop.inner_model = loop
    with pytest.raises(ValueError, match="this Deeper does not lead to a MODEL"):
        module(comfyui, "host.guider").patcher_of(loop)


@pytest.mark.parametrize("id", SAMPLERS)
@pytest.mark.slow
def test_every_sampler_takes_what_k_diffusion_hands_it(comfyui, id):
    """A noise sampler as an argument or as an option of the SAMPLER; a seed."""
    model = small_model("EPS")
    sigmas = sigmas_of(model)
    sampler = ours(comfyui, id)
    given = custom(comfyui, model, wrapped(sampler, lambda model: model), sigmas)
    sampler.extra_options["noise_sampler"] = constant_noise
    noisy = custom(comfyui, model, sampler, sigmas)
    assert noisy.isfinite().all()
    sampler.extra_options |= {"noise_sampler": None, "seed": 3}  # that of the run
    torch.testing.assert_close(custom(comfyui, model, sampler, sigmas), given, rtol=0, atol=0)


# Names


@pytest.mark.parametrize("id", SAMPLERS)
@pytest.mark.slow
def test_every_sampler_is_found_by_its_name(comfyui, id):
    """New hosts make a SAMPLER again from the name of its function and its options."""
    import comfy.samplers

    sampler = ours(comfyui, id)
    assert comfy.samplers.sampler_object(f"fewstep_{id}").sampler_function.__name__ == f"sample_fewstep_{id}"
    model = small_model("EPS")
    sigmas = sigmas_of(model)
    expected = custom(comfyui, model, sampler, sigmas)
    for again in (
        comfy.samplers.ksampler(
            sampler.sampler_function.__name__.removeprefix("sample_"),
            pickle.loads(pickle.dumps(sampler.extra_options)),
            sampler.inpaint_options,
        ),
        copy.deepcopy(sampler),
    ):
        torch.testing.assert_close(custom(comfyui, model, again, sigmas), expected, rtol=0, atol=0)
    shown = f"fewstep_{id}" in comfy.samplers.KSampler.SAMPLERS
    assert shown == SAMPLERS[id].curated


def test_a_plan_is_found_by_name_and_options(comfyui):
    import comfy.samplers

    plan = module(comfyui, "plans").parse(
        '{"base": "dpmpp_2m", "sigmas": [10.0, 5.0, 2.0, 0.5, 0.0], "scale_dir": [1.0, 1.02, 0.98, 1.0]}'
    )
    sampler, sigmas = comfyui.nodes["FewStepPlanSampler"].execute(plan).result
    model = small_model("EPS")
    expected = custom(comfyui, model, sampler, sigmas)
    again = comfy.samplers.ksampler(
        sampler.sampler_function.__name__.removeprefix("sample_"), pickle.loads(pickle.dumps(sampler.extra_options))
    )
    for other in (again, copy.deepcopy(sampler), comfy.samplers.KSAMPLER(sampler.sampler_function)):
        torch.testing.assert_close(custom(comfyui, model, other, sigmas), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="plan: this sampler has lost its plan"):
        custom(comfyui, model, comfy.samplers.sampler_object("fewstep_plan"), sigmas)


# Dropdowns that another pack has replaced


class Odd(list):
    """Says that it holds everything."""

    def __contains__(self, name):
        return True


@pytest.mark.parametrize(
    "kind",
    [tuple, dict.fromkeys, Odd, frozenset, lambda names: dict.fromkeys(names).keys(), iter],
    ids=["tuple", "dict", "odd list", "frozenset", "keys", "iterator"],
)
def test_dropdowns_of_another_type_get_our_names(comfyui, monkeypatch, kind):
    import comfy.samplers as host

    registration = module(comfyui, "registration")
    for name, ending in (("SAMPLERS", "SAMPLER_NAMES"), ("SCHEDULERS", "SCHEDULER_NAMES")):
        theirs = [entry for entry in getattr(host, ending) if not entry.startswith("fewstep_")]
        replaced = kind(theirs)
        monkeypatch.setattr(host.KSampler, name, replaced)
        monkeypatch.setattr(host, ending, replaced)
    before = dict(host.SCHEDULER_HANDLERS)
    ours = {name for name in before if name.startswith("fewstep_")}
    plain = {name: handler for name, handler in before.items() if name not in ours}
    monkeypatch.setattr(host, "SCHEDULER_HANDLERS", types.MappingProxyType(plain))
    for _ in range(2):  # the second time changes nothing
        registration.register_samplers()
        registration.register_schedules()
    for name, ending, specs in (
        ("SAMPLERS", "SAMPLER_NAMES", SAMPLERS), ("SCHEDULERS", "SCHEDULER_NAMES", SCHEDULES),
    ):  # fmt: skip
        dropdown = getattr(host.KSampler, name)
        assert isinstance(dropdown, list) and dropdown is getattr(host, ending)
        added = [entry for entry in dropdown if entry.startswith("fewstep_")]
        assert added == curated(comfyui, specs)
    assert host.SCHEDULER_HANDLERS.keys() == before.keys()


def test_one_list_of_two_replaced(comfyui, monkeypatch):
    """The other stays the object that it was."""
    import comfy.samplers as host

    monkeypatch.setattr(host.KSampler, "SAMPLERS", ("euler", "mine"))
    kept = host.SAMPLER_NAMES
    module(comfyui, "registration").register_samplers()
    assert host.SAMPLER_NAMES is kept
    assert host.KSampler.SAMPLERS[:2] == ["euler", "mine"] and "fewstep_dpmpp_2m" in host.KSampler.SAMPLERS


@pytest.mark.parametrize("kind", ["cannot be assigned", "is made anew", "of instances"])
@pytest.mark.parametrize("name", ["SAMPLERS", "SCHEDULERS"])
def test_a_list_that_takes_no_names_is_told_and_the_others_get_them(comfyui, monkeypatch, caplog, name, kind):
    import comfy.samplers as host

    lists = {"SAMPLERS": (host.SAMPLER_NAMES, SAMPLERS), "SCHEDULERS": (host.SCHEDULER_NAMES, SCHEDULES)}
    theirs = {n: [entry for entry in names if "fewstep_" not in entry] for n, (names, _) in lists.items()}
    for n, ending in (("SAMPLERS", "SAMPLER_NAMES"), ("SCHEDULERS", "SCHEDULER_NAMES")):
        monkeypatch.setattr(host.KSampler, n, list(theirs[n]))
        monkeypatch.setattr(host, ending, list(theirs[n]))
    made = {"cannot be assigned": tuple, "is made anew": list}.get(kind)
    if made:
        odd = type("Odd", (type,), {name: property(lambda cls: made(theirs[name]))})
        monkeypatch.setattr(host, "KSampler", odd("KSampler", (host.KSampler,), {}))
    else:
        monkeypatch.setattr(host.KSampler, name, property(lambda sampler: theirs[name]))
    assert another_copy("beside_another_pack") == ids(comfyui)
    for n, names in (("SAMPLERS", host.SAMPLER_NAMES), ("SCHEDULERS", host.SCHEDULER_NAMES)):
        expected = theirs[n] + curated(comfyui, lists[n][1])
        assert names == expected and (n == name or getattr(host.KSampler, n) == expected)
    (said,) = {record.getMessage() for record in caplog.records if record.levelname == "WARNING"}
    kinds = {"SAMPLERS": "samplers", "SCHEDULERS": "schedules"}
    assert f"left out: the names of {kinds[name]} in" in said and f"KSampler.{name} does not take them" in said


# Scales of guidance that other nodes change


def overridden(comfyui, model, cfg: float, start: float, end: float):
    """The MODEL of CFG Override of new hosts; hosts of before have no such node, and a wrapper as it adds one."""
    if "CFGOverride" in comfyui.nodes:
        return comfyui.nodes["CFGOverride"].execute(model, cfg, start, end).result[0]
    from comfy.patcher_extension import WrappersMP

    sampling = model.get_model_object("model_sampling")
    high, low = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)

    def predict(guided, x, sigma, *arguments):
        guider = guided.class_obj
        before, guider.cfg = guider.cfg, cfg if low <= sigma[0] <= high else guider.cfg
        try:
            return guided(x, sigma, *arguments)
        finally:
            guider.cfg = before

    patched = model.clone()
    patched.add_wrapper(WrappersMP.PREDICT_NOISE, predict)
    return patched


def scales_of_a_run(comfyui, model, sampler, sigmas, cfg=3.0) -> list[float]:
    """The scale that the host mixes the prompts by, evaluation for evaluation."""
    seen = []
    model = model.clone()
    model.set_model_sampler_cfg_function(lambda given: seen.append(given["cond_scale"]) or given["cond"])
    custom(comfyui, model, sampler, sigmas, cfg=cfg)
    return [float(scale) for scale in seen]


@pytest.fixture
def half(comfyui):
    """Levels of four evaluations, of which the first two lie in the first 45 percent."""
    model = small_model("FLOW")
    return model, torch.tensor([0.9, 0.7, 0.5, 0.3, 0.0])


def test_a_plan_multiplies_the_scale_that_an_evaluation_has(comfyui, half):
    model, sigmas = half
    factors = [1.5, 0.5, 2.0, 1.0]
    text = {"base": "ddim", "flow": True, "sigmas": sigmas.tolist(), "guidance": factors}
    plan = module(comfyui, "plans").parse(json.dumps(text))
    sampler, levels = comfyui.nodes["FewStepPlanSampler"].execute(plan).result
    assert scales_of_a_run(comfyui, model, sampler, levels) == pytest.approx([4.5, 1.5, 6.0, 3.0])
    five = overridden(comfyui, model, 5.0, 0.0, 0.45)
    assert scales_of_a_run(comfyui, five, sampler, levels) == pytest.approx([7.5, 2.5, 6.0, 3.0])
    none = overridden(comfyui, model, 1.0, 0.0, 0.45)  # the factor is one of guidance: where there is none, none
    assert scales_of_a_run(comfyui, none, sampler, levels) == pytest.approx([1.0, 1.0, 6.0, 3.0])
    assert scales_of_a_run(comfyui, model, ours(comfyui, "ddim"), sigmas) == [3.0] * 4  # nothing is left behind


@pytest.mark.parametrize("schedule", ["list", "constant"])
def test_of_a_schedule_and_an_override_the_one_nearest_the_sampler_counts(comfyui, half, schedule):
    model, sigmas = half
    node = comfyui.nodes["FewStepGuidance"]
    fields = {field.id: field.default for field in node.define_schema().inputs}
    guidance = node.execute(**fields | {"schedule": schedule, "values": "8, 7, 6, 4", "cfg": 7.0}).result[0]
    own = [8.0, 7.0, 6.0, 4.0] if schedule == "list" else [7.0] * 4

    def patched(model):
        return comfyui.nodes["FewStepGuidancePatch"].execute(model, guidance).result[0]

    sampler = ours(comfyui, "ddim")
    scales = functools.partial(scales_of_a_run, comfyui, sampler=sampler, sigmas=sigmas)
    assert scales(patched(model)) == pytest.approx(own)
    assert scales(overridden(comfyui, patched(model), 5.0, 0.0, 0.45)) == pytest.approx([5.0, 5.0, *own[2:]])
    assert scales(patched(overridden(comfyui, model, 5.0, 0.0, 0.45))) == pytest.approx(own)


@pytest.mark.parametrize("cfg", [3.0, 0.0])
@pytest.mark.parametrize("values", ["8, 0, 6, 1", "0, 0, 0, 0"])
def test_a_plan_multiplies_what_a_schedule_and_an_override_leave(comfyui, half, values, cfg):
    """In both orders of the patches, whatever the strongest scale is. Where there is no guidance it stays so."""
    model, sigmas = half
    node = comfyui.nodes["FewStepGuidance"]
    fields = {field.id: field.default for field in node.define_schema().inputs}
    guidance = node.execute(**fields | {"schedule": "list", "values": values, "cfg": cfg}).result[0]
    own, factors = [float(value) for value in values.split(",")], [1.5, 0.5, 2.0, 3.0]
    plan = module(comfyui, "plans").parse(
        json.dumps({"base": "ddim", "flow": True, "sigmas": sigmas.tolist(), "guidance": factors})
    )
    sampler, levels = comfyui.nodes["FewStepPlanSampler"].execute(plan).result

    def patched(model):
        return comfyui.nodes["FewStepGuidancePatch"].execute(model, guidance).result[0]

    def wanted(scales):
        return pytest.approx([w if w == 1 else w * f for w, f in zip(scales, factors, strict=True)])

    scales = functools.partial(scales_of_a_run, comfyui, sampler=sampler, sigmas=levels, cfg=cfg)
    assert scales(patched(model)) == wanted(own)
    assert scales(overridden(comfyui, patched(model), 5.0, 0.0, 0.45)) == wanted([5.0, 5.0, *own[2:]])
    assert scales(patched(overridden(comfyui, model, 5.0, 0.0, 0.45))) == wanted(own)
    assert scales(model) == wanted([cfg] * 4)  # nothing is left behind


# How nodes describe themselves


def test_inputs_that_few_need_are_advanced_where_the_host_knows_such(comfyui):
    from comfy_api.latest import io

    options = module(comfyui, "ui.options")
    known = "advanced" in inspect.signature(io.Float.Input).parameters
    names = set()
    for id in ("FewStepSampler", "FewStepScheduler"):
        for input in comfyui.nodes[id].define_schema().inputs:
            names.add(input.id)
            rare = input.id in options.RARE
            assert input.as_dict().get("advanced") == (True if rare and known else None), input.id
    assert names >= options.RARE

    def new(id, default=None, advanced=None): ...

    def old(id, default=None): ...

    assert options.advanced(new) == {"advanced": True} and options.advanced(old) == {}


def test_words_for_the_search_box_where_the_host_knows_such(comfyui):
    from comfy_api.latest import io

    known = "search_aliases" in inspect.signature(io.Schema).parameters
    for id in ids(comfyui):
        if "Demo" not in id:
            assert bool(getattr(comfyui.nodes[id].define_schema(), "search_aliases", None)) == known, id


class ManualSigmas:
    """As in new hosts: reads numbers as they are typed in."""

    @staticmethod
    def execute(sigmas):
        return types.SimpleNamespace(result=(torch.tensor([float(number) for number in sigmas.split(",")]),))


def test_levels_that_are_typed_in_are_drawn(comfyui, monkeypatch):
    """By the host's own node, so that the plot is what it reads. Where it has none they are known in a run."""
    routes = module(comfyui, "routes")
    if "ManualSigmas" not in comfyui.nodes:
        monkeypatch.setitem(comfyui.nodes, "ManualSigmas", ManualSigmas)
    text = "14.6, 5.5, 1.2, 0"
    node = {"type": "ManualSigmas", "inputs": {"sigmas": text}}
    expected = torch.tensor([14.6, 5.5, 1.2, 0]).tolist()
    assert routes.sigmas({"node": node})["sigmas"] == expected
    drawn = routes.plan({"node": {"type": "FewStepSampler", "inputs": {"sampler": "dpmpp_2m"}}, "sigmas": node})
    assert [evaluation["sigma"] for evaluation in drawn["evaluations"]] == pytest.approx(expected[:-1])
    with pytest.raises(ValueError, match="more than 1000 steps are not drawn"):
        routes.sigmas({"node": {"type": "ManualSigmas", "inputs": {"sigmas": ", ".join(["1"] * 1100)}}})
    with pytest.raises(ValueError, match="sigmas: 1,000,000 characters, and at most 10,000 are read"):
        routes.sigmas({"node": {"type": "ManualSigmas", "inputs": {"sigmas": "." * 10**6}}})
    monkeypatch.delitem(comfyui.nodes, "ManualSigmas")
    with pytest.raises(ValueError, match="known when it runs"):
        routes.sigmas({"node": node})


def test_nodes_lie_beside_those_of_the_host(comfyui):
    category = f"{comfyui.nodes['KSampler'].CATEGORY}/Few-Step"
    submenus = ("guidance", "plans", "editing", "comparing", "demo")
    found = {comfyui.nodes[id].define_schema().category for id in ids(comfyui)}
    assert found == {category, *(f"{category}/{submenu}" for submenu in submenus)}


# What the pack uses of the host

HOST_MODULES = (
    "comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "server", "nodes",
)  # fmt: skip
CODE = [*sorted((ROOT / "nodes").rglob("*.py")), ROOT / "demo" / "nodes.py", ROOT / "demo" / "model.py"]


def used_symbols(source: str) -> dict[str, set[str]]:
    """The host's symbols in a file by their full names, each with the parameters that calls of it give by name."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                if first in HOST_MODULES:
                    names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in HOST_MODULES:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def full_name(node: ast.AST) -> str | None:
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in names or "__name__" in parts:
            return None
        return ".".join([names[node.id], *reversed(parts)]).removesuffix(".name")  # of a member of an enumeration

    within = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in within and (name := full_name(node)):
            used.setdefault(name, set())
        if isinstance(node, ast.Call) and (name := full_name(node.func)):
            used.setdefault(name, set()).update(keyword.arg for keyword in node.keywords if keyword.arg)
    return used


def test_the_list_of_what_is_used_is_that_of_the_code(comfyui):
    needs = module(comfyui, "needs")
    listed = dict(needs.split(symbol) for symbols in needs.NEEDS.values() for symbol in symbols)
    used: dict[str, set[str]] = {}
    for path in CODE:
        for name, parameters in used_symbols(path.read_text()).items():
            used.setdefault(name, set()).update(parameters)
    wanted = {name for name in used if not isinstance(sys.modules.get(name), types.ModuleType) or name in listed}
    assert sorted(wanted - listed.keys()) == [], "add these to nodes/needs.py"
    more = [
        f"{name}({parameter})" for name in listed.keys() & used.keys() for parameter in used[name] - {*listed[name]}
    ]
    assert sorted(more) == [], "add these parameters to nodes/needs.py"
    # What is reached through objects of the host, or by a name that the code puts together, is in the code as a word.
    code = "\n".join(path.read_text() for path in CODE)
    stale = [name for name in listed.keys() - used.keys() if not re.search(rf"\b{name.rsplit('.', 1)[1]}\b", code)]
    for name, parameters in listed.items():
        stale += [f"{name}({parameter})" for parameter in parameters if not re.search(rf"\b{parameter}\b", code)]
    assert sorted(stale) == [], "take these out of nodes/needs.py"


def test_this_host_has_all_of_it(comfyui):
    assert module(comfyui, "needs").missing() == {}


def another_copy(name: str):
    """The pack imported anew, as a host does it, and the ids of the nodes that it gives."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules[name] = package = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(package)

        async def loaded():
            extension = await package.comfy_entrypoint()
            await extension.on_load()
            return {node.GET_SCHEMA().node_id for node in await extension.get_node_list()}

        return asyncio.run(loaded())
    finally:
        for module in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
            del sys.modules[module]


GONE = {  # what a host lacks: which nodes are left out, and what the log says of it
    "comfy.patcher_extension.WrapperExecutor": (
        {"FewStepGuidance", "FewStepGuider", "FewStepGuidancePatch", "FewStepKSampler", "FewStepKSamplerAdvanced"},
        "affected: Few-Step Guider",
    ),
    "comfy.model_management.OOM_EXCEPTION": ({"FewStepCompare"}, "affected: the nodes that sample by themselves"),
    "comfy.sample.prepare_noise": (set(), "affected: the nodes that sample by themselves"),
    "comfy.samplers.SAMPLER_NAMES": (set(), "affected: the names of our samplers"),
    "comfy.samplers.SchedulerHandler": (set(), "left out: the names of schedules in ComfyUI's lists"),
    "folder_paths.get_filename_list": ({"FewStepLoadPlan", "FewStepDistill"}, "affected: the folders models/fewstep"),
    "comfy_extras.nodes_train.find_all_highest_child_module_with_forward": ({"FewStepDistill"}, "Few-Step Distill"),
    "comfy.supported_models_base.BASE": (set(), "affected: the demo nodes"),
    "server.PromptServer": (set(), "left out: the plots in the nodes"),
    "latent_preview.Latent2RGBPreviewer": (set(), "Few-Step Invert"),
}  # fmt: skip


@pytest.mark.parametrize("symbol", GONE)
def test_a_host_that_lacks_something_has_the_rest(comfyui, monkeypatch, caplog, symbol):
    left_out, told = GONE[symbol]
    owner, name = symbol.rsplit(".", 1)
    monkeypatch.delattr(sys.modules.get(owner) or importlib.import_module(owner), name)
    assert another_copy("without") == ids(comfyui) - left_out
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(set(warnings)) == len(warnings)
    assert any(symbol in text and "The rest works" in text for text in warnings), warnings
    assert any(told in text for text in warnings), warnings
    for node in left_out:
        assert any(node in text for text in warnings), (node, warnings)


def test_a_parameter_that_a_host_lacks(comfyui, monkeypatch, caplog):
    """Only nodes with such an input are left out, and the log names it."""
    from comfy_api.latest import io

    class Input(io.Vae.Input):
        def __init__(self, id, optional=False):
            super().__init__(id, optional=optional)

    monkeypatch.setattr(io.Vae, "Input", Input)
    assert another_copy("without") == ids(comfyui) - {"FewStepCompare", "FewStepFilmStrip"}
    assert "no comfy_api.latest.io.Vae.Input(tooltip)" in caplog.text and "FewStepCompare" in caplog.text


def test_a_second_registration_changes_nothing(comfyui):
    """Hosts that call on_load register twice."""
    import comfy.samplers
    from comfy.k_diffusion import sampling

    def registered():
        lists = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
        functions = {name: function for name, function in vars(sampling).items() if "fewstep" in name}
        return *map(list, lists), dict(comfy.samplers.SCHEDULER_HANDLERS), functions

    before = registered()
    assert another_copy("again") == ids(comfyui)
    assert registered() == before
