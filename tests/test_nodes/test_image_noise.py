"""In the host, the added noise of an image is its own: alone, in a batch, in any row, in two parts."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from in_the_host import ksample
from mixture import with_noise
from small_models import conditioning, small_model

from samplers import SAMPLERS


@pytest.fixture(scope="module")
def model(comfy_process):
    return small_model("EPS")


def latent(batch: int, **more) -> dict:
    return {"samples": torch.zeros(batch, 4, 8, 8), **more}


def ksampler(comfyui, model, spec, options, image, seed=3):
    return ksample(comfyui, model, f"fewstep_{spec.id}", image, seed=seed)


def advanced(comfyui, model, spec, options, image, seed=3):
    name = f"fewstep_{spec.id}"
    node, prompts = comfyui.nodes["KSamplerAdvanced"](), (conditioning(1), conditioning(2))
    return node.sample(model, "enable", seed, 6, 2.5, name, "karras", *prompts, image, 0, 10000, "disable")[0][
        "samples"
    ]


def chosen(comfyui, model, spec, options):
    sigmas = comfyui.nodes["BasicScheduler"].execute(model, "karras", 6, 1.0).result[0]
    return comfyui.nodes["FewStepSampler"].execute(spec.id, **options).result[0], sigmas


def custom(comfyui, model, spec, options, image, seed=3):
    sampler, sigmas = chosen(comfyui, model, spec, options)
    prompts = conditioning(1), conditioning(2)
    out = comfyui.nodes["SamplerCustom"].execute(model, True, seed, 2.5, *prompts, sampler, sigmas, image)
    return out.result[0]["samples"]


def custom_advanced(comfyui, model, spec, options, image, seed=3, noise=None):
    sampler, sigmas = chosen(comfyui, model, spec, options)
    nodes = comfyui.nodes
    guider = nodes["CFGGuider"].execute(model, conditioning(1), conditioning(2), 2.5).result[0]
    noise = noise or nodes["RandomNoise"].execute(seed).result[0]
    return nodes["SamplerCustomAdvanced"].execute(noise, guider, sampler, sigmas, image).result[0]["samples"]


STOCHASTIC = [spec for spec in SAMPLERS.values() if spec.stochastic]
each_way = pytest.mark.parametrize(
    ("spec", "run"),
    [
        *((spec, ksampler if spec.curated else custom) for spec in STOCHASTIC),
        *((SAMPLERS["euler_ancestral"], run) for run in (advanced, custom, custom_advanced)),
    ],
    ids=lambda value: getattr(value, "id", None) or value.__name__,
)
"""Every sampler, and every node that samples: they meet in the seeds of the images and nowhere else."""


@each_way
def test_an_image_of_a_batch_is_the_same_made_alone(comfyui, model, spec, run):
    """By Latent From Batch and Rebatch Latents, up to the rounding of the network in another batch."""
    options = with_noise(spec)
    whole = run(comfyui, model, spec, options, latent(3))
    picked = comfyui.nodes["LatentFromBatch"]().frombatch(latent(3), 1, 2)[0]
    parts = [picked, *comfyui.nodes["RebatchLatents"].execute([latent(3)], [1]).result[0]]
    for image in parts:
        torch.testing.assert_close(
            run(comfyui, model, spec, options, image),
            whole[image["batch_index"]],
            rtol=0,
            atol=1e-4 * float(whole.abs().max()),
        )
    other = run(comfyui, model, spec, options, latent(3), seed=4)
    assert (other - whole).abs().max() > 0.05 * whole.abs().max()


@each_way
def test_images_that_start_alike_stay_alike(comfyui, model, spec, run):
    """Latent Batch Seed Behavior: fixed."""
    image = comfyui.nodes["LatentBatchSeedBehavior"].execute(latent(3), "fixed").result[0]
    first, *others = run(comfyui, model, spec, with_noise(spec), image)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-4 * float(first.abs().max()))


@pytest.mark.parametrize("sampler", ["euler_ancestral", "consistency", "dpmpp_sde"])
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_run_in_two_parts_follows_the_path_of_the_whole(comfyui, model, sampler, cut):
    """The second part adds no noise at its start, so that its images go by the row and the seed."""

    def run(image, start, end):
        first, last = start == 0, end == 6
        return comfyui.nodes["KSamplerAdvanced"]().sample(
            model, "enable" if first else "disable", 3, 6, 2.5, f"fewstep_{sampler}", "karras", conditioning(1),
            conditioning(2), image, start, end, "disable" if last else "enable",
        )[0]  # fmt: skip

    whole = run(latent(2), 0, 6)["samples"]
    parts = run(run(latent(2), 0, cut), cut, 6)["samples"]
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-3 * float(whole.abs().max()))


def test_a_noise_of_any_kind_tells_images_apart(comfyui, model):
    """As that of Few-Step Invert does, which has no seed: an image with its row of it is the same alone."""
    rows = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    arguments = comfyui, model, SAMPLERS["euler_ancestral"], {}

    def run(rows):
        noise = types.SimpleNamespace(seed=0, generate_noise=lambda latent: rows)
        return custom_advanced(*arguments, latent(len(rows)), noise=noise)

    whole, alone = run(rows), run(rows[2:])
    torch.testing.assert_close(alone[0], whole[2], rtol=0, atol=1e-4 * float(whole.abs().max()))
    moved = run(rows[[2, 0]] * (1 + 1e-6))
    torch.testing.assert_close(moved, whole[[2, 0]], rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_a_mask_does_not_change_whose_noise_it_is(comfyui):
    """Under Set Latent Noise Mask an image is the same alone, too."""
    model, spec = small_model("EPS"), SAMPLERS["euler_ancestral"]
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    whole = ksampler(comfyui, model, spec, {}, latent(2, noise_mask=mask))
    alone = comfyui.nodes["LatentFromBatch"]().frombatch(latent(2, noise_mask=mask), 1, 1)[0]
    alone = ksampler(comfyui, model, spec, {}, alone)
    torch.testing.assert_close(alone[0], whole[1], rtol=0, atol=1e-4 * float(whole.abs().max()))


def seeds_of(noise, seed=5, wrappers=0):
    """What the adapter makes of the noise on the host's wrapper of the model."""
    nodes = {name.rpartition(".")[2]: m for name, m in sys.modules.items() if ".nodes." in name and "few-step" in name}
    model = types.SimpleNamespace(noise=noise, inner_model=types.SimpleNamespace(model_patcher=1))
    for _ in range(wrappers):
        model = types.SimpleNamespace(inner_model=model)
    return nodes["seeds"].image_seeds(model, torch.zeros(3, 4, 2, 8, 8), seed)


def test_seeds_of_images(comfyui):
    """They do not depend on dtype, rounding, row, or a wrapper more; the generator of the host stays where it was."""
    import comfy.sample

    state = torch.get_rng_state()
    noise = torch.randn(3, 4, 2, 8, 8, generator=torch.Generator().manual_seed(5))
    seeds = seeds_of(noise)
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**64 for seed in seeds)
    assert seeds_of(noise.half()) == seeds_of(noise * 0.9999) == seeds_of(noise, wrappers=2) == seeds
    assert seeds_of(noise.flip(0)) == seeds[::-1]
    assert seeds_of(noise, seed=6) != seeds
    assert seeds_of(noise[:2]) is seeds_of(None) is seeds_of(noise, seed=None) is None
    absent = seeds_of(torch.zeros_like(noise))
    assert torch.equal(torch.get_rng_state(), state)
    assert absent == seeds_of(comfy.sample.prepare_noise(noise, 5))
    assert seeds_of(torch.cat([noise[:2], torch.zeros_like(noise[:1])])) == [*seeds[:2], absent[2]]
