"""Inversion: on the analytic mixture, and in the real host with the demo model."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mixture import FLOW_MAX, FLOW_MIN, SIGMA_MAX, X1, denoiser, flow_denoiser, levels, solution
from PIL import Image
from small_models import conditioning, small_model

from samplers import SAMPLERS, NonFiniteError
from samplers.inversion import Anderson, Inversion, invert

SINGLE_STEP = ("ddim", "euler")
MULTISTEP = ("dpmpp_2m", "dpm_2m", "dpmpp_3m", "ipndm", "ipndm_v", "deis")
OTHERS = ("unipc", "dpmpp_2s", "heun", "rk4", "plms")


def problem(flow: bool, n: int, high: float | None = None):
    """A denoiser, and n + 1 levels that end in 0."""
    high, low = high or (FLOW_MAX if flow else SIGMA_MAX), 0.1 if flow else 0.3
    sigmas = levels(n - 1, high, low, flow) if high < 1 or not flow else torch.linspace(1, low, n).double()
    return (flow_denoiser if flow else denoiser), torch.cat([sigmas, sigmas.new_zeros(1)])


def round_trip(id: str, n: int = 20, flow: bool = False, **arguments) -> Inversion:
    """Inverts an image that the sampler has made."""
    model, sigmas = problem(flow, n, arguments.pop("high", None))
    image = SAMPLERS[id].function(model, X1 * sigmas[0], sigmas, disable=True, flow=flow)
    return invert(SAMPLERS[id], model, image, sigmas, disable=True, flow=flow, **{"measure": True} | arguments)


def errors(inversion: Inversion) -> list[float]:
    return [error.max().item() for error in inversion.errors]


# Mathematics


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.parametrize("id", SINGLE_STEP)
def test_refined_to_machine_precision(id, flow):
    found = [errors(round_trip(id, flow=flow, refinements=r))[-1] for r in (0, 4, 12)]
    assert found[2] < min(1e-9, found[1]) and found[1] < found[0]


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.parametrize("id", [*MULTISTEP, *OTHERS])
@pytest.mark.slow
def test_refined_over_the_way(id, flow):
    """The error falls by a factor each time, however the way up is found."""
    found = errors(round_trip(id, 30, flow, refinements=12))
    assert found[3] < found[0] / 3
    assert min(found) < found[0] / 1000
    assert errors(round_trip(id, 30, flow))[0] == found[0]  # measured or refined: the same beginning


def test_from_pure_noise_of_a_rectified_flow():
    for id in ("ddim", "dpmpp_2m", "ipndm_v"):
        assert min(errors(round_trip(id, flow=True, high=1.0, refinements=6))) < 1e-4


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.parametrize("id", [*SINGLE_STEP, "dpmpp_2m", "dpm_2m", "ipndm_v"])
def test_order_of_the_way_up(id, flow):
    """One evaluation a level solves the steps with order 2: the round trip loses h^2, where DDIM's steps alone lose h.

    Between two levels above 0, so that neither end is a step of infinite length.
    """
    model = flow_denoiser if flow else denoiser
    found = []
    for n in (40, 80, 160):
        sigmas = levels(n, FLOW_MAX if flow else SIGMA_MAX, FLOW_MIN if flow else 0.3, flow)
        image = solution(float(sigmas[-1]), flow) / ((1 - sigmas[-1]) if flow else 1)
        found.append(errors(invert(SAMPLERS[id], model, image, sigmas, disable=True, flow=flow, measure=True))[0])
    orders = [math.log2(a / b) for a, b in itertools.pairwise(found)]
    assert orders[-1] > 1.7, (found, orders)


def test_the_path_is_that_of_the_sampler():
    """Refined, the samples on the way up are those that the sampler visits on the way down."""
    model, sigmas = problem(False, 20)
    image = SAMPLERS["ddim"].function(model, X1 * sigmas[0], sigmas, disable=True)
    found = invert(SAMPLERS["ddim"], model, image, sigmas, disable=True, refinements=12)
    seen = []
    SAMPLERS["ddim"].function(model, found.sample, sigmas, None, lambda step: seen.append(step["x"]), True)
    assert found.path[0] is found.sample and torch.equal(found.path[-1], image)
    for up, down in zip(found.path, seen, strict=False):
        torch.testing.assert_close(up, down, rtol=1e-7, atol=1e-7)
    assert found.errors == () and found.error is None  # nothing was asked to measure them


@pytest.mark.parametrize(("id", "expected"), [("ddim", 10 * 3), ("dpmpp_2m", 3 * (10 + 10)), ("heun", 3 * (18 + 19))])
def test_evaluations(id, expected):
    """As many as the text says: at each level, or whole runs; and the callback counts them as it was told."""
    seen = []
    model, sigmas = problem(False, 10)
    image = SAMPLERS[id].function(model, X1 * sigmas[0], sigmas, disable=True)
    found = invert(
        SAMPLERS[id],
        model,
        image,
        sigmas,
        None,
        lambda step: seen.append((step["i"], step["steps"])),
        True,
        refinements=2,
    )
    assert found.nfe == expected
    assert [i for i, _ in seen] == list(range(len(seen))) and {steps for _, steps in seen} == {len(seen)}


def test_the_best_is_kept_for_each_image():
    """Where a refinement loses what another has gained, as with steps much too long, the error is the least seen."""
    found = round_trip("dpm_2m", 6, refinements=8)
    every = torch.stack(found.errors)
    assert (every[1:] > every[:-1]).any()
    model, sigmas = problem(False, 6)
    image = found.path[-1]
    again = SAMPLERS["dpm_2m"].function(model, found.sample, sigmas, disable=True)
    original = SAMPLERS["dpm_2m"].function(model, X1 * sigmas[0], sigmas, disable=True)
    error = ((again - original).flatten(1).norm(dim=1) / original.flatten(1).norm(dim=1)).double()
    torch.testing.assert_close(error, every.amin(dim=0))
    torch.testing.assert_close(found.error, error)
    assert image.shape == original.shape


def test_refinements_that_overflow_leave_the_best_so_far():
    """Also if it is the run down that fails."""
    model, sigmas = problem(False, 8)
    image = SAMPLERS["dpmpp_2m"].function(model, X1 * sigmas[0], sigmas, disable=True)
    evaluations = []

    def fails_late(x, sigma):
        evaluations.append(1)
        return model(x, sigma) * (math.nan if len(evaluations) > 8 + 8 + 8 + 4 else 1)

    found = invert(SAMPLERS["dpmpp_2m"], fails_late, image, sigmas, disable=True, refinements=3)
    assert len(found.errors) == 1 and found.sample.isfinite().all()


def test_anderson_solves_a_linear_system_in_as_many_steps_as_it_has_numbers():
    matrix = torch.tensor([[0.5, 0.3, 0.0], [-0.2, 0.9, 0.1], [0.0, 0.4, -0.3]], dtype=torch.float64)
    wanted = torch.tensor([[[1.0, 2.0, 3.0]], [[-4.0, 0.5, 0.1]]], dtype=torch.float64)
    x, step = torch.zeros_like(wanted), Anderson()
    for _ in range(5):
        x = step(x, (wanted - x) @ matrix.T)
    torch.testing.assert_close(x, wanted)


@pytest.mark.parametrize(
    ("id", "sigmas", "arguments", "message"),
    [
        ("ddim", [0.1, 1.0, 5.0], {}, "sigmas ascend: give them descending"),
        ("ddim", [5.0], {}, "at least two levels"),
        ("dpmpp_2m", [1.0, 0.0], {"flow": True}, "one step, from pure noise to the clean image"),
        ("ddim", [5.0, math.nan], {}, r"sigmas\[1\] = nan"),
        ("ddim", [5.0, 1.0, 0.0], {"eta": 0.5}, "ddim adds noise, .* set eta to 0"),
        ("ddpm", [5.0, 1.0, 0.0], {}, "ddpm adds noise, .* take ddim"),
        ("dpmpp_2m", [5.0, 1.0, 0.0], {"eta": 0.5}, "has no option 'eta'"),
        ("ddim", [5.0, 1.0, 0.0], {"refinements": -1}, "refinements = -1 must not be negative"),
        ("ddim", [2.0, 1.0, 0.0], {"flow": True}, "rectified-flow model has levels between 0 and 1"),
    ],
)
def test_errors_name_the_input(id, sigmas, arguments, message):
    with pytest.raises(ValueError, match=message):
        invert(SAMPLERS[id], denoiser, X1, sigmas, disable=True, **arguments)


def test_a_level_that_repeats_is_no_step():
    noise = invert(SAMPLERS["ddim"], denoiser, X1, [5.0, 1.0, 0.2, 0.0], disable=True)
    torch.testing.assert_close(
        invert(SAMPLERS["ddim"], denoiser, X1, [5.0, 1.0, 1.0, 0.2, 0.0], disable=True), noise, rtol=0, atol=0
    )


def test_broken_models_and_images():
    def broken(x, sigma):
        return x * math.nan if sigma[0] > 1 else x

    sigmas = [5.0, 2.0, 0.5, 0.0]
    with pytest.raises(NonFiniteError, match=r"step 2 of 3 \(sigma = 2\)"):
        invert(SAMPLERS["ddim"], broken, X1, sigmas, disable=True)
    with pytest.raises(NonFiniteError, match="x holds NaN or infinity"):
        invert(SAMPLERS["ddim"], denoiser, X1 * math.inf, sigmas, disable=True)
    with pytest.raises(ValueError, match="model must return the denoised sample"):
        invert(SAMPLERS["ddim"], lambda x, sigma: x[:1], X1, sigmas, disable=True)


# In the host

CFG = 3.0


def node(comfyui, name: str, *arguments, **named):
    return comfyui.nodes[name].execute(*arguments, **named).result


def demo(comfyui, prompt: str, seed: int, count: int = 1):
    """The demo model, its conditioning, and an image that it has made in many steps at guidance 3."""
    model, positive, negative = node(comfyui, "FewStepDemoModel", prompt, "")
    (latent,) = node(comfyui, "FewStepDemoLatent", count)
    (sigmas,) = node(comfyui, "FewStepScheduler", model, "karras", 30, 1.0)
    (sampler,) = node(comfyui, "FewStepSampler", "dpmpp_3m")
    image, _ = node(comfyui, "SamplerCustom", model, True, seed, CFG, positive, negative, sampler, sigmas, latent)
    return model, positive, negative, image


def difference(found: dict, image: dict, model) -> float:
    """Relative, in the model's own units."""
    a, b = (model.model.process_latent_in(latent["samples"]) for latent in (found, image))
    return ((a - b).norm() / b.norm()).item()


def there_and_back(comfyui, model, positive, negative, image, cfg, id, sigmas, *, by_noise, **arguments):
    """Inverts an image and samples it again, with nodes of the host."""
    inputs = {"refinements": 0, "check": True} | arguments
    latent, noise, text = node(
        comfyui,
        "FewStepInvert",
        model,
        positive,
        negative,
        image,
        cfg,
        id,
        sigmas,
        inputs["refinements"],
        inputs["check"],
    )
    (sampler,) = node(comfyui, "FewStepSampler", id)
    if by_noise:
        (guider,) = node(comfyui, "CFGGuider", model, positive, negative, cfg)
        out, _ = node(comfyui, "SamplerCustomAdvanced", noise, guider, sampler, sigmas, image)
    else:
        out, _ = node(comfyui, "SamplerCustom", model, False, 0, cfg, positive, negative, sampler, sigmas, latent)
    return out, text


@pytest.mark.parametrize("cfg", [pytest.param(1.0, marks=pytest.mark.network), CFG])
@pytest.mark.slow
def test_goal_of_a_fifth_of_the_error_of_ddim_inversion(comfyui, cfg):
    """At 20 steps of the demo model, in as many evaluations: plain DDIM inversion climbs the levels above 0."""
    model, positive, negative, image = demo(comfyui, "cat face", 5)
    (sigmas,) = node(comfyui, "BasicScheduler", model, "karras", 20, 1.0)
    ddim = SAMPLERS["ddim"].function
    plain = []

    def baseline(model, x, sigmas, extra_args=None, callback=None, disable=None):
        noise = ddim(model, x, sigmas[:-1].flip(0), extra_args, None, True)
        plain.append((ddim(model, noise, sigmas, extra_args, None, True) - x).norm() / x.norm())
        return x

    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    samples = image["samples"]
    guider.sample(torch.zeros_like(samples), samples, comfy.samplers.KSAMPLER(baseline), sigmas, disable_pbar=True)
    out, text = there_and_back(comfyui, model, positive, negative, image, cfg, "ddim", sigmas, by_noise=True)
    assert difference(out, image, model) < plain[0] / 5
    assert "ddim, 20 steps: 40 evaluations" in text  # 20 up, and 20 to report the error
    out, _ = there_and_back(
        comfyui, model, positive, negative, image, cfg, "ddim", sigmas, by_noise=True, refinements=1, check=False
    )
    assert difference(out, image, model) < plain[0] / 10


MODELS = ("EPS", "V_PREDICTION", "EDM", "FLOW")


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("by_noise", [pytest.param(True, marks=pytest.mark.network), False], ids=["noise", "latent"])
@pytest.mark.parametrize("start", [1.0, 0.6], ids=["whole", "part"])
@pytest.mark.slow
def test_round_trip_through_the_nodes_of_the_host(comfyui, model_type, by_noise, start):
    """What comes back is what the report says, for every kind of model, from full noise and from less."""
    model = small_model(model_type)
    positive, negative = conditioning(1), conditioning(2)
    (sigmas,) = node(comfyui, "FewStepScheduler", model, "exponential", 8, start)
    image = {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))}
    (sampler,) = node(comfyui, "FewStepSampler", "ddim")
    image, _ = node(comfyui, "SamplerCustom", model, True, 3, 1.0, positive, negative, sampler, sigmas, image)
    inputs = (comfyui, model, positive, negative, image, 1.0, "ddim", sigmas)
    out, text = there_and_back(*inputs, by_noise=by_noise, refinements=5)
    if model_type == "FLOW" and start == 1 and not by_noise:
        assert out["samples"].isfinite().all()
        return  # the host starts such a run from noise alone
    told = max(float(error) for error in text.splitlines()[1].split(": ")[1].split(",")) / 100
    got = (out["samples"] - image["samples"]).flatten(1).norm(dim=1) / image["samples"].flatten(1).norm(dim=1)
    assert math.isclose(got.max(), told, rel_tol=0.05, abs_tol=2e-5)
    assert told < 0.02


@pytest.mark.network
def test_masked_edit_leaves_the_rest_as_it_was(comfyui):
    """DiffEdit with nodes of the host: the mask, the inverted noise, Set Latent Noise Mask."""
    model, source, negative, image = demo(comfyui, "red apple", 5)
    _, target, _ = node(comfyui, "FewStepDemoModel", "pizza", "")
    mask, shares = node(comfyui, "FewStepDiffEditMask", model, source, target, image, 0.5, 4, 3, 0.5, 3.0, 0)
    again, _ = node(comfyui, "FewStepDiffEditMask", model, source, target, image, 0.5, 4, 4, 0.5, 3.0, 0)
    assert mask.shape == (1, 16, 16) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(mask, (shares >= 0.5).float()) and shares.min() >= 0 and shares.max() == 1
    assert (mask - again).abs().mean() < 0.05  # the same noises, in other batches
    (sigmas,) = node(comfyui, "FewStepScheduler", model, "karras", 10, 1.0)
    _, noise, text = node(comfyui, "FewStepInvert", model, source, negative, image, 1.0, "ddim", sigmas, 0, False)
    assert "not measured" in text
    (guider,) = node(comfyui, "CFGGuider", model, target, negative, CFG)
    (sampler,) = node(comfyui, "FewStepSampler", "ddim")
    (masked,) = comfyui.nodes["SetLatentNoiseMask"]().set_mask(image, mask)
    out, _ = node(comfyui, "SamplerCustomAdvanced", noise, guider, sampler, sigmas, masked)
    change = (out["samples"] - image["samples"]).abs().amax(dim=1)
    assert change[mask == 0].max() < 1e-5 and change[mask == 1].mean() > 0.05


@pytest.mark.network
def test_the_mask_is_shown_on_its_node(comfyui):
    model = small_model("EPS")
    image = {"samples": torch.ones(1, 4, 8, 8)}
    prompts = (conditioning(1), conditioning(2))
    found = comfyui.nodes["FewStepDiffEditMask"].execute(model, *prompts, image, 0.5, 1, 1, 0.5, 3.0, 7)
    (shown,) = found.ui.as_dict()["images"]
    assert shown["type"] == "temp"
    import folder_paths

    folder = Path(folder_paths.get_temp_directory(), shown["subfolder"])
    picture = np.asarray(Image.open(folder / shown["filename"]))
    assert picture.shape[:2] == (256, 256)  # each value of the mask is a square
    mask = found.result[0][0].numpy()
    assert np.array_equal(picture[..., 0] > 127, np.kron(mask, np.ones((32, 32))) > 0.5)


@pytest.mark.network
def test_mask_finds_what_the_prompts_disagree_about(comfyui):
    """The difference is the model's own, computed here by hand for one noise; none between equal prompts."""
    model = small_model("EPS")
    image = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))}
    same, _ = node(
        comfyui, "FewStepDiffEditMask", model, conditioning(1), conditioning(1), image, 0.5, 1, 1, 0.5, 3.0, 7
    )
    assert same.sum() == 0
    _, shares = node(
        comfyui, "FewStepDiffEditMask", model, conditioning(1), conditioning(2), image, 0.5, 1, 1, 0.5, 100.0, 7
    )
    sigma = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    noise = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))}
    noisy = {"samples": image["samples"] + sigma * noise["samples"]}
    (euler,) = node(comfyui, "KSamplerSelect", "euler")
    predictions = []
    for seed in (1, 2):
        sigmas = torch.tensor([sigma, 0.0])
        out, _ = node(
            comfyui, "SamplerCustom", model, False, 0, 1.0, conditioning(seed), conditioning(3), euler, sigmas, noisy
        )
        predictions.append(out["samples"])
    wanted = (predictions[0] - predictions[1]).abs().mean(dim=1)
    torch.testing.assert_close(shares, wanted / (100 * wanted.mean()), rtol=1e-4, atol=1e-6)


@pytest.mark.network
def test_the_mask_of_an_image_does_not_depend_on_the_others(comfyui):
    """In any row of a batch it is that of the image alone, for the same noises."""
    model, both = small_model("EPS"), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))

    def shares(images, batch):
        given = model, conditioning(1), conditioning(2), {"samples": images}
        return node(comfyui, "FewStepDiffEditMask", *given, 0.5, 3, batch, 0.5, 100.0, 7)[1]

    together = shares(both, 2)
    torch.testing.assert_close(torch.cat([shares(image[None], 3) for image in both]), together, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shares(both.flip(0), 1), together.flip(0), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_samplers_offered_are_those_that_can_be_inverted(comfyui):
    """Each of them, with the options that FewStepSampler gives it, comes back from its own inversion."""
    model = small_model("EPS")
    model.model.diffusion_model.out[2].weight.data *= 0.1  # a milder model than one of random weights
    combo = next(i for i in comfyui.nodes["FewStepInvert"].define_schema().inputs if i.id == "sampler")
    assert {"ddim", "dpmpp_2m", "heun"} <= set(combo.options)
    assert not {"ddpm", "dpmpp_2m_sde", "dpm_adaptive", "amed_dpm_2m", "consistency"} & set(combo.options)
    (sigmas,) = node(comfyui, "FewStepScheduler", model, "karras", 6, 1.0)
    positive, negative = conditioning(1), conditioning(2)
    for id in combo.options:
        (sampler,) = node(comfyui, "FewStepSampler", id)
        empty = {"samples": torch.zeros(1, 4, 8, 8)}
        image, _ = node(comfyui, "SamplerCustom", model, True, 3, 1.0, positive, negative, sampler, sigmas, empty)
        out, _ = there_and_back(
            comfyui, model, positive, negative, image, 1.0, id, sigmas, by_noise=True, refinements=1
        )
        assert difference(out, image, model) < 0.05, id


def test_node_errors_name_the_input(comfyui):
    model = small_model("EPS")
    image = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))}

    def run(sigmas, image=image):
        return node(
            comfyui, "FewStepInvert", model, conditioning(1), conditioning(2), image, 1.0, "ddim", sigmas, 0, False
        )

    with pytest.raises(ValueError, match="sigmas hold no step"):
        run(torch.FloatTensor([]))
    with pytest.raises(ValueError, match="sigmas ascend"):
        run(torch.tensor([0.1, 1.0, 5.0]))
    with pytest.raises(ValueError, match="latent_image has 3 channels"):
        run(torch.tensor([5.0, 1.0, 0.0]), {"samples": torch.ones(1, 3, 8, 8)})
    with pytest.raises(ValueError, match="latent_image is empty: connect the image to invert"):
        run(torch.tensor([5.0, 1.0, 0.0]), {"samples": torch.zeros(1, 4, 8, 8)})
    _, noise, _ = run(torch.tensor([5.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="connect the latent that was inverted"):
        noise.generate_noise({"samples": torch.zeros(1, 4, 16, 16)})


@pytest.mark.parametrize("name", ["FewStepInvert", "FewStepDiffEditMask"])
def test_interruption(comfyui, monkeypatch, name):
    """Cancel stops a node between two evaluations, and the next run is not affected."""
    import comfy.model_management

    model = small_model("EPS")
    image = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))}
    (sigmas,) = node(comfyui, "FewStepScheduler", model, "exponential", 6, 1.0)
    arguments = {
        "FewStepInvert": (conditioning(1), conditioning(2), image, 2.0, "ddim", sigmas, 1, False),
        "FewStepDiffEditMask": (conditioning(1), conditioning(2), image, 0.5, 6, 1, 0.5, 3.0, 0),
    }[name]
    before = node(comfyui, name, model, *arguments)
    evaluations = []

    def cancel_at_third(apply, arguments):
        evaluations.append(1)
        if len(evaluations) == 3:
            comfy.model_management.interrupt_current_processing()
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    watched = model.clone()
    watched.set_model_unet_function_wrapper(cancel_at_third)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        node(comfyui, name, watched, *arguments)
    assert len(evaluations) == 3
    after = node(comfyui, name, model, *arguments)
    for a, b in zip(before, after, strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b)
        elif isinstance(a, dict):
            assert torch.equal(a["samples"], b["samples"])


@pytest.mark.network
def test_the_lora_of_the_model_is_in_effect(comfyui):
    model = small_model("EPS")
    image = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))}
    (sigmas,) = node(comfyui, "FewStepScheduler", model, "exponential", 4, 1.0)
    patched = model.clone()
    weight = model.model.state_dict()["diffusion_model.out.2.weight"]
    assert patched.add_patches({"diffusion_model.out.2.weight": (0.3 * torch.ones_like(weight),)}, 1.0)
    plain, other, again = (
        node(comfyui, "FewStepInvert", m, conditioning(1), conditioning(2), image, 1.0, "ddim", sigmas, 0, False)[0]
        for m in (model, patched, model)
    )
    assert not torch.allclose(plain["samples"], other["samples"], atol=1e-2)
    assert torch.equal(plain["samples"], again["samples"])
