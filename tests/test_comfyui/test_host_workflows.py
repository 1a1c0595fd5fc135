"""The ways in which people use a sampler beside one plain run: each against the host's own sampler of the same
mathematics, or against the run in one piece."""

from __future__ import annotations

import pytest
import torch
from in_the_host import ksample
from small_models import conditioning, small_model

pytestmark = pytest.mark.network

PAIRS = {"fewstep_ddim": "euler", "fewstep_dpmpp_2m": "dpmpp_2m"}
"""Ours, and the host's own of the same mathematics."""

each_pair = pytest.mark.parametrize(("ours", "host"), PAIRS.items(), ids=["first order", "multistep"])
KINDS = ("EPS", "V_PREDICTION", "FLOW")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_kind_and_pair = pytest.mark.parametrize(
    ("kind", "ours", "host"),
    [(kind, *pair) for kind in KINDS for pair in PAIRS.items() if (kind, pair[1]) != ("FLOW", "dpmpp_2m")],
)
"""Without the host's plain 2M on flow levels: it reads them as if alpha were 1, which is another method."""

SAME = {"rtol": 1e-4, "atol": 2e-4}


@pytest.fixture(scope="module")
def models(comfy_process) -> dict:
    return {kind: small_model(kind) for kind in KINDS}


def picture(size: int = 8, seed: int = 5) -> dict:
    return {"samples": torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(seed))}


def half_mask(size: int = 8) -> torch.Tensor:
    mask = torch.zeros(1, size, size)
    mask[..., : size // 2] = 1
    return mask


def custom(comfyui, model, sampler: str, sigmas, image: dict, noise: bool = True) -> dict:
    """SamplerCustomAdvanced."""
    source = comfyui.nodes["RandomNoise"].execute(3) if noise else comfyui.nodes["DisableNoise"].execute()
    guider = comfyui.nodes["CFGGuider"].execute(model, conditioning(1), conditioning(2), 2.5)
    solver = comfyui.nodes["KSamplerSelect"].execute(sampler)
    run = comfyui.nodes["SamplerCustomAdvanced"].execute
    return run(*source.result, *guider.result, *solver.result, sigmas, image).result[0]


def close(ours: torch.Tensor, host: torch.Tensor) -> None:
    torch.testing.assert_close(ours, host, rtol=SAME["rtol"], atol=SAME["atol"] * float(host.abs().max()))


# img2img


@each_kind_and_pair
@pytest.mark.parametrize("denoise", [0.05, 0.5, 0.93])
def test_img2img_as_the_host(comfyui, models, kind, ours, host, denoise):
    image = picture()
    close(*(ksample(comfyui, models[kind], name, image, denoise=denoise, scheduler="simple") for name in (ours, host)))


@each_kind
def test_denoise_means_the_same_in_every_scheduler(comfyui, models, kind):
    """KSampler, BasicScheduler and FewStepScheduler cut the same levels from a schedule, and 0 keeps the image."""
    image = picture()
    for denoise in (0.25, 0.6, 1.0):
        (basic,) = comfyui.nodes["BasicScheduler"].execute(models[kind], "fewstep_karras", 6, denoise).result
        (own,) = comfyui.nodes["FewStepScheduler"].execute(models[kind], "karras", 6, denoise).result
        if denoise in (0.25, 1.0):  # n / denoise steps, a whole number: both are the same schedule
            torch.testing.assert_close(own, basic)
        assert own.shape == basic.shape
        plain = ksample(comfyui, models[kind], "fewstep_ddim", image, denoise=denoise, scheduler="fewstep_karras")
        close(custom(comfyui, models[kind], "fewstep_ddim", basic, image)["samples"], plain)
    (none,) = comfyui.nodes["FewStepScheduler"].execute(models[kind], "karras", 6, 0.0).result
    assert torch.equal(custom(comfyui, models[kind], "fewstep_ddim", none, image)["samples"], image["samples"])


# Masks


@each_kind_and_pair
@pytest.mark.parametrize("denoise", [0.5, 1.0])
@pytest.mark.parametrize("differential", [False, True], ids=["mask", "DifferentialDiffusion"])
def test_inpainting_as_the_host(comfyui, models, kind, ours, host, denoise, differential):
    model, mask = models[kind], half_mask()
    if differential:
        (model,) = comfyui.nodes["DifferentialDiffusion"].execute(model).result
        mask = torch.linspace(0, 1, 8).expand(1, 8, 8)  # how early each column may begin to change
    (image,) = comfyui.nodes["SetLatentNoiseMask"]().set_mask(picture(), mask)
    found, wanted = (ksample(comfyui, model, name, image, denoise=denoise) for name in (ours, host))
    close(found, wanted)
    if differential:  # every column changes in the last step
        return
    kept = mask[0, 0] == 0
    torch.testing.assert_close(found[..., kept], image["samples"][..., kept], rtol=1e-5, atol=1e-5)
    assert (found - image["samples"])[..., ~kept].abs().max() > 0.1


@pytest.mark.parametrize("sampler", ["fewstep_dpmpp_2s", "fewstep_unipc", "fewstep_dpmpp_2m_sde", "fewstep_ipndm_v"])
def test_other_samplers_keep_what_is_masked(comfyui, models, sampler):
    (image,) = comfyui.nodes["SetLatentNoiseMask"]().set_mask(picture(), half_mask())
    found = ksample(comfyui, models["EPS"], sampler, image)
    torch.testing.assert_close(found[..., 4:], image["samples"][..., 4:], rtol=1e-5, atol=1e-5)
    assert (found - image["samples"])[..., :4].abs().max() > 0.1


@each_pair
def test_inpaint_model_conditioning_as_the_host(comfyui, models, ours, host):
    """The node gives a noise mask and what inpainting models look at; it needs a VAE, here one of single pixels."""

    class Vae:
        def encode(self, pixels):
            return torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8).repeat(1, 2, 1, 1)[:, :4]

    pixels, mask = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1)), half_mask(64)
    make = comfyui.nodes["InpaintModelConditioning"]().encode
    positive, negative, image = make(conditioning(1), conditioning(2), pixels, Vae(), mask)
    run = comfyui.nodes["KSampler"]().sample
    found, wanted = (
        run(models["EPS"], 3, 6, 2.5, name, "karras", positive, negative, image, 0.8)[0]["samples"]
        for name in (ours, host)
    )
    close(found, wanted)
    torch.testing.assert_close(found[..., 4:], image["samples"][..., 4:], rtol=1e-5, atol=1e-5)


# A second pass


@each_kind_and_pair
def test_hires_fix_as_the_host(comfyui, models, kind, ours, host):
    """An image, made larger as a latent, and half of the noise again."""
    results = []
    for name in (ours, host):
        small = {"samples": ksample(comfyui, models[kind], name)}
        (large,) = comfyui.nodes["LatentUpscaleBy"]().upscale(small, "bilinear", 2.0)
        results.append(ksample(comfyui, models[kind], name, large, denoise=0.5))
    assert results[0].shape == (1, 4, 16, 16)
    close(*results)


# Split runs


def split(comfyui, model, sampler: str, scheduler: str = "karras", at: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """The run in one piece, and over two KSampler (Advanced) nodes with the noise left between them."""

    def run(start: int, end: int, image: dict, add_noise: str, leftover: str) -> dict:
        node = comfyui.nodes["KSamplerAdvanced"]()
        prompts = (conditioning(1), conditioning(2))
        return node.sample(model, add_noise, 3, 6, 2.5, sampler, scheduler, *prompts, image, start, end, leftover)[0]

    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    first = run(0, at, empty, "enable", "enable")
    return run(0, 10000, empty, "enable", "disable")["samples"], run(at, 10000, first, "disable", "disable")["samples"]


@each_kind
@pytest.mark.parametrize("sampler", ["fewstep_ddim", "fewstep_dpmpp_2s"])
def test_split_runs_of_samplers_without_memory_are_the_whole_run(comfyui, models, kind, sampler):
    close(*split(comfyui, models[kind], sampler))


@each_kind_and_pair
def test_split_runs_as_the_host(comfyui, models, kind, ours, host):
    """A multistep sampler begins the second part without a past: in the host, too, and to the same effect."""
    whole, halves = split(comfyui, models[kind], ours)
    host_whole, host_halves = split(comfyui, models[kind], host)
    close(whole, host_whole)
    close(halves, host_halves)


@each_kind_and_pair
def test_split_sigmas_as_the_host(comfyui, models, kind, ours, host):
    """SplitSigmas and SamplerCustomAdvanced, the second with DisableNoise."""
    (sigmas,) = comfyui.nodes["FewStepScheduler"].execute(models[kind], "karras", 6, 1.0).result
    high, low = comfyui.nodes["SplitSigmas"].execute(sigmas, 2).result
    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    found, wanted = (
        custom(comfyui, models[kind], name, low, custom(comfyui, models[kind], name, high, empty), noise=False)
        for name in (ours, host)
    )
    close(found["samples"], wanted["samples"])
    if host == "euler":
        close(found["samples"], custom(comfyui, models[kind], ours, sigmas, empty)["samples"])
