"""Few-Step Chain and Few-Step Split at Sigma in the real host, and detail in the plot."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from front_end import node as described
from front_end import scheduler
from mixture import relative_error
from small_models import conditioning, small_model

KINDS = ("EPS", "FLOW")
FLOAT32 = 1e-4
"""Rounding of a number, 1.2e-7, times that of the starting sample over the image, 15, for some fifty operations."""


def node(comfyui, name, *arguments, **options):
    return comfyui.nodes[name].execute(*arguments, **options).result[0]


def ours(comfyui, id, **options):
    return node(comfyui, "FewStepSampler", id, **options)


def theirs(comfyui, name):
    return node(comfyui, "KSamplerSelect", name)


def chain(comfyui, first, second, step=0, sigma=0.0):
    return node(comfyui, "FewStepChain", first, second, step, sigma)


def sigmas_of(comfyui, model, steps=8):
    return node(comfyui, "FewStepScheduler", model, "karras", steps, 1.0)


def custom(comfyui, model, sampler, sigmas, latent=None, add_noise=True, seed=3):
    latent = {"samples": torch.zeros(1, 4, 8, 8)} if latent is None else latent
    arguments = (model, add_noise, seed, 2.5, conditioning(1), conditioning(2), sampler, sigmas, latent)
    return node(comfyui, "SamplerCustom", *arguments)["samples"]


# Chain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("id", ["dpmpp_2m", "unipc", "dpmpp_2s", "dpmpp_2m_sde", "dpmpp_2m_cfg_pp"])
def test_a_sampler_after_itself_is_its_own_image_to_the_bit(comfyui, kind, id):
    model = small_model(kind)
    sigmas, sampler = sigmas_of(comfyui, model), ours(comfyui, id)
    whole = custom(comfyui, model, sampler, sigmas)
    for place in ({"step": 3}, {"step": 0}, {"step": 99}, {"sigma": float(sigmas[4])}):
        assert torch.equal(custom(comfyui, model, chain(comfyui, sampler, sampler, **place), sigmas), whole)
    part = sigmas[:6]  # where noise is left, no step is the last one
    made = chain(comfyui, sampler, sampler, 3)
    assert torch.equal(custom(comfyui, model, made, part), custom(comfyui, model, sampler, part))


def test_the_names_of_the_list_are_ours_too(comfyui):
    model = small_model("EPS")
    sigmas = sigmas_of(comfyui, model)
    named = chain(comfyui, theirs(comfyui, "fewstep_dpmpp_2m"), theirs(comfyui, "fewstep_dpmpp_3m"), 4)
    made = chain(comfyui, ours(comfyui, "dpmpp_2m"), ours(comfyui, "dpmpp_3m"), 4)
    assert torch.equal(custom(comfyui, model, named, sigmas), custom(comfyui, model, made, sigmas))
    both = [custom(comfyui, model, ours(comfyui, id), sigmas) for id in ("dpmpp_2m", "dpmpp_3m")]
    assert not any(torch.equal(custom(comfyui, model, made, sigmas), image) for image in both)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("first", "second"),
    [("euler", "heun"), ("fewstep_ddim", "euler"), ("euler", "fewstep_dpmpp_2s"), ("dpm_adaptive", "euler")],
)
def test_with_a_sampler_of_the_host_it_is_one_run_after_the_other(comfyui, kind, first, second):
    """As two nodes on the parts of the levels; those of the host get copies of all that they are given."""
    model = small_model(kind)
    sigmas = sigmas_of(comfyui, model)
    samplers = [
        ours(comfyui, name.removeprefix("fewstep_")) if name.startswith("fewstep_") else theirs(comfyui, name)
        for name in (first, second)
    ]
    if first == "dpm_adaptive":
        samplers[0] = ours(comfyui, first)
    found = custom(comfyui, model, chain(comfyui, *samplers, 3), sigmas)
    half = {"samples": custom(comfyui, model, samplers[0], sigmas[:4])}
    same = custom(comfyui, model, samplers[1], sigmas[3:], half, add_noise=False)
    assert relative_error(found, same) < FLOAT32


@pytest.mark.parametrize(("first", "second"), [("euler", "heun"), ("dpmpp_2m", "fewstep_dpmpp_2m"), ("ours", "euler")])
def test_levels_that_repeat_are_no_steps_of_the_host_either(comfyui, caplog, first, second):
    """From which its samplers make NaN. Steps keep the numbers of the given levels."""
    import comfy.samplers

    model, steps = small_model("EPS"), []
    samplers = [
        ours(comfyui, "dpmpp_2m") if name == "ours" else node(comfyui, "KSamplerSelect", name)
        for name in (first, second)
    ]
    repeated, plain = [14.0, 14.0, 6.0, 2.0, 2.0, 0.5, 0.0, 0.0], [14.0, 6.0, 2.0, 0.5, 0.0]

    def run(sigmas, step):
        made = chain(comfyui, *samplers, step)

        def function(model, x, sigmas, extra_args, callback, disable, **options):
            return made.sampler_function(
                model, x, sigmas, extra_args, lambda given: steps.append(given["i"]), disable, **made.extra_options
            )

        return custom(comfyui, model, comfy.samplers.KSAMPLER(function), torch.tensor(sigmas))

    found = run(repeated, 3)
    assert steps == [1, 2, 4, 5] and "chain: some of the sigmas repeat" in caplog.text
    torch.testing.assert_close(found, run(plain, 2), rtol=0, atol=0)
    for sigmas in ([14.0], [14.0, 14.0], [0.0, 0.0]):
        steps.clear()
        at_rest = {"samples": torch.ones(1, 4, 8, 8)}
        same = custom(comfyui, model, chain(comfyui, *samplers, 1), torch.tensor(sigmas), at_rest, add_noise=False)
        torch.testing.assert_close(same, at_rest["samples"])


def test_noise_of_the_host_is_not_drawn_twice(comfyui):
    """Its ancestral sampler draws by the seed from the first draw on, also in the second part."""
    model = small_model("EPS")
    sigmas = sigmas_of(comfyui, model)
    sampler = theirs(comfyui, "euler_ancestral")
    seen: list[int] = []

    def watched(inner):
        def function(model, x, sigmas, extra_args=None, **options):
            seen.append(extra_args["seed"])
            return inner(model, x, sigmas, extra_args=extra_args, **options)

        return function

    samplers = [copy.copy(sampler), copy.copy(sampler)]
    for each in samplers:
        each.sampler_function = watched(each.sampler_function)
    custom(comfyui, model, chain(comfyui, *samplers, 3), sigmas)
    assert seen == [3, 4]


def test_the_callback_counts_on(comfyui):
    """Of the run as a whole, whoever samples."""
    model, steps = small_model("EPS"), []
    sigmas = sigmas_of(comfyui, model)
    for samplers in (
        (theirs(comfyui, "euler"), theirs(comfyui, "heun")),
        (ours(comfyui, "dpmpp_2m"), ours(comfyui, "dpmpp_2s")),
    ):
        steps.clear()
        made = chain(comfyui, *samplers, 3)
        inner = made.sampler_function

        def function(model, x, sigmas, extra_args, callback, disable, inner=inner, **options):
            return inner(model, x, sigmas, extra_args, lambda step: steps.append(step["i"]), disable, **options)

        made.sampler_function = function
        custom(comfyui, model, made, sigmas)
        assert steps == list(range(8))


def test_it_is_found_by_name_and_options(comfyui):
    import comfy.samplers

    model = small_model("EPS")
    sigmas = sigmas_of(comfyui, model)
    sampler = chain(comfyui, ours(comfyui, "dpmpp_2m"), ours(comfyui, "dpmpp_2m_sde"), 4)
    expected = custom(comfyui, model, sampler, sigmas)
    name = sampler.sampler_function.__name__.removeprefix("sample_")
    options = pickle.loads(pickle.dumps(sampler.extra_options))
    for again in (comfy.samplers.ksampler(name, options, {}), copy.deepcopy(sampler)):
        assert torch.equal(custom(comfyui, model, again, sigmas), expected)
    with pytest.raises(ValueError, match="this sampler has lost its two samplers: connect Few-Step Chain"):
        custom(comfyui, model, comfy.samplers.ksampler(name, {}, {}), sigmas)


def test_chains_of_chains(comfyui):
    model = small_model("FLOW")
    sigmas, two_m = sigmas_of(comfyui, model), ours(comfyui, "dpmpp_2m")
    inner = chain(comfyui, two_m, two_m, 2)
    whole = custom(comfyui, model, two_m, sigmas)
    assert torch.equal(custom(comfyui, model, chain(comfyui, inner, two_m, 5), sigmas), whole)
    mixed = chain(comfyui, chain(comfyui, theirs(comfyui, "euler"), two_m, 2), two_m, 5)
    assert custom(comfyui, model, mixed, sigmas).isfinite().all()


def test_what_cannot_be_chained_is_said(comfyui):
    class Foreign:
        def sample(self, *arguments):
            raise AssertionError

    with pytest.raises(ValueError, match="second: this Foreign has no function of a sampler"):
        chain(comfyui, ours(comfyui, "euler"), Foreign(), 3)
    model = small_model("EPS")
    made = chain(
        comfyui,
        ours(comfyui, "ddim", eta=1.0, noise_device="gpu"),
        ours(comfyui, "dpmpp_2m_sde", noise_device="cpu"),
        3,
    )
    with pytest.raises(ValueError, match="noise_device: first and second have different values"):
        custom(comfyui, model, made, sigmas_of(comfyui, model))


# Split at a noise level

WAN = torch.tensor([1.0, 0.95, 0.9, 0.875, 0.8, 0.5, 0.2, 0.0])


@pytest.mark.parametrize(
    ("boundary", "sigma", "high"),
    [
        ("Wan 2.2 text to video: 0.875", 0.0, 5),  # evaluated with the expert for high noise: 1, 0.95, 0.9, 0.875
        ("Wan 2.2 image to video: 0.9", 0.0, 4),
        ("own number", 0.85, 5),
        ("own number", 0.8, 6),
        ("own number", 2.0, 1),
        ("own number", 0.0, 8),
    ],
)
def test_the_steps_at_the_boundary_or_above_are_of_the_first_expert(comfyui, boundary, sigma, high):
    """As in the makers' code, t >= boundary. Both parts meet in one level, to the bit."""
    found = comfyui.nodes["FewStepSplitAtSigma"].execute(WAN, boundary, sigma).result
    assert torch.equal(found[0], WAN[:high]) and torch.equal(found[1], WAN[high - 1 :])
    value = {"W": float(boundary.split()[-1]) if boundary[0] == "W" else sigma}.get("W")
    assert all(s >= value for s in found[0][:-1].double().round(decimals=6))
    assert all(s < value for s in found[1][:-1].double().round(decimals=6)) or value == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.5, 1e-9, 2.0])
def test_both_parts_give_the_run_of_the_whole(comfyui, kind, share):
    """Of a sampler that keeps nothing from step to step; also where one of them is without a step."""
    model = small_model(kind)
    sigmas = sigmas_of(comfyui, model)
    if kind == "FLOW" and share > 1:
        sigmas = sigmas[2:]  # an image: the expert for high noise has nothing to do
    boundary = float(sigmas[0]) * share
    high, low = comfyui.nodes["FewStepSplitAtSigma"].execute(sigmas, "own number", boundary).result
    assert len(high) + len(low) == len(sigmas) + 1
    for sampler in (ours(comfyui, "dpmpp_2s"), theirs(comfyui, "euler")):
        whole = custom(comfyui, model, sampler, sigmas)
        half = {"samples": custom(comfyui, model, sampler, high)}
        assert relative_error(custom(comfyui, model, sampler, low, half, add_noise=False), whole) < FLOAT32


def test_levels_that_ascend_are_refused(comfyui):
    with pytest.raises(ValueError, match="sigmas: the levels ascend"):
        comfyui.nodes["FewStepSplitAtSigma"].execute(WAN.flip(0), "own number", 0.5)


# Detail


def test_detail_is_drawn(routes):
    inputs = {"sampler": "dpmpp_2m", "detail": 0.1}
    drawn = routes.plan({"node": described("FewStepSampler", **inputs), "sigmas": scheduler(steps=8)})
    plain = routes.plan({"node": described("FewStepSampler", sampler="dpmpp_2m"), "sigmas": scheduler(steps=8)})
    levels = [evaluation["level"] for evaluation in drawn["evaluations"]]
    assert levels == [e["level"] for e in plain["evaluations"]] == [e["sigma"] for e in plain["evaluations"]]
    shares = [1 - e["sigma"] / e["level"] for e in drawn["evaluations"]]
    assert shares[0] == shares[1] == shares[-1] == 0 and 0.08 < max(shares) < 0.1 and min(shares) > -1e-6
