"""Rectified flow in the real host: small networks of the families that artists use, and the demo's flow model.

The mathematics of flow levels is tested elsewhere (parity with the host in test_host_parity.py, order in test_order.py,
moments in test_stochastic.py, schedules in test_schedules.py). Here they meet the host's own models: their latents,
their time, their shift.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from mixture import each_sampler, flow_denoiser, given, levels, relative_error, solution, with_noise, without_noise
from standins import for_this_host
from test_host_parity import FLOW_CASES

from samplers import SAMPLERS, SCHEDULES

FAMILIES = {  # the host's model class, a network of one or two blocks, channels and frames of its latent, its shift
    "SD3": (
        "SD3",
        {
            "in_channels": 16, "depth": 2, "pos_embed_scaling_factor": None, "pos_embed_max_size": 16,
            "num_patches": 256, "adm_in_channels": 8, "context_size": 8,
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 8, "out_features": 128},
            },
        },
        (16,),
        3.0,
    ),
    "Flux": (
        "Flux",
        {
            "in_channels": 16, "out_channels": 16, "vec_in_dim": 8, "context_in_dim": 8, "hidden_size": 32,
            "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6],
            "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True,
        },
        (16,),
        math.exp(1.15),
    ),
    "Wan": (
        "WAN21_T2V",
        {
            "model_type": "t2v", "dim": 32, "ffn_dim": 32, "freq_dim": 32, "text_dim": 8, "num_heads": 2,
            "num_layers": 1,
        },
        (16, 3),
        8.0,
    ),
    "Qwen-Image": (
        "QwenImage",
        {
            "in_channels": 64, "num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
            "joint_attention_dim": 8, "axes_dims_rope": (4, 6, 6),
        },
        (16, 1),
        math.exp(1.15),
    ),
}  # fmt: skip


def small_family(name: str) -> SimpleNamespace:
    """A MODEL of the host's own class for the family, with small random weights, its latent and conditioning.

    In float64, as the small models are.
    """
    import comfy.model_patcher
    import comfy.supported_models

    kind, network, shape, shift = FAMILIES[name]
    if name == "Flux":
        network = for_this_host(network)
    config = getattr(comfy.supported_models, kind)(network)
    config.set_inference_dtype(torch.float64, None)
    model = config.get_model({}).eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in (*model.diffusion_model.parameters(), *model.diffusion_model.buffers()):
        tensor.data = 0.1 * torch.randn(tensor.shape, generator=generator).double()
    if name == "Wan":
        model.diffusion_model.patch_embedding.float()  # the host gives it float32 whatever the dtype
    cpu = torch.device("cpu")
    text = torch.randn(2, 1, 3, 8, generator=generator)
    return SimpleNamespace(
        model=comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu),
        latent={"samples": torch.zeros(2, *shape, 8, 8)},
        positive=[[text[0], {"pooled_output": torch.ones(1, 8)}]],
        negative=[[text[1], {"pooled_output": torch.zeros(1, 8)}]],
        shift=shift,
    )


@pytest.fixture(scope="module", params=FAMILIES)
def family(comfy_process, request) -> Iterator[SimpleNamespace]:
    from comfy.ldm.flux import math as plain

    with pytest.MonkeyPatch.context() as patch:
        kernels = getattr(sys.modules.get("comfy.quant_ops"), "ck", None)
        for name in ("apply_rope", "apply_rope1"):
            if hasattr(kernels, name):  # those of newer hosts, which refuse float64
                patch.setattr(kernels, name, getattr(plain, f"_{name}"))
        yield small_family(request.param)


def sample(comfyui, family, sampler, sigmas, *, seed: int = 3, cfg: float = 2.0, latent: dict | None = None):
    run = comfyui.nodes["SamplerCustom"].execute
    given_latent = latent or family.latent
    out = run(family.model, True, seed, cfg, family.positive, family.negative, sampler, sigmas, given_latent)
    return out.result[0]["samples"]


def schedule(comfyui, model, name: str, steps: int, **options) -> torch.Tensor:
    return comfyui.nodes["FewStepScheduler"].execute(model, name, steps, 1.0, **options).result[0]


# The families


@pytest.mark.parametrize("spec", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.slow
def test_every_sampler_on_every_family(comfyui, family, spec):
    """Images and video, from pure noise to the end, with added noise (the same from the same seed) and without."""
    sigmas = schedule(comfyui, family.model, "time_uniform", 4)
    assert sigmas[0] == 1
    adaptive = given(spec, rtol=1.0, atol=1.0)
    for options in (with_noise(spec) | adaptive, without_noise(spec) | adaptive):
        sampler = comfyui.nodes["FewStepSampler"].execute(spec.id, **options).result[0]
        first = sample(comfyui, family, sampler, sigmas, cfg=1.0)
        assert first.shape == family.latent["samples"].shape and first.isfinite().all()
        if not spec.stochastic:
            break
        if options.get("eta") or options.get("gamma") or options.get("s_churn"):
            assert torch.equal(first, sample(comfyui, family, sampler, sigmas, cfg=1.0))


def test_every_schedule_on_every_family(comfyui, family):
    """From 1 to 0 over levels that the model has; where a schedule runs in time, the time is the model's."""
    sampling = family.model.get_model_object("model_sampling")
    for spec in SCHEDULES.values():
        if not spec.any_steps:
            continue
        for options in ({}, {"shift": 2.0}, {"discard_penultimate": True}):
            sigmas = schedule(comfyui, family.model, spec.id, 9, **options)
            assert sigmas.shape == (10,) and sigmas[-1] == 0
            assert sigmas[0] == 1 if spec.starts_at_sigma_max else sigmas[0] < 1
            assert (sigmas.diff() < 0).all() and sigmas[-2] >= sampling.sigma_min * (1 - 1e-6)
    time = torch.linspace(1, 0, 5001, dtype=torch.float64)[:-1]
    of_time = family.shift * time / (1 + (family.shift - 1) * time)
    theirs = torch.tensor([sampling.percent_to_sigma(1 - t) for t in time.tolist()], dtype=torch.float64)
    torch.testing.assert_close(of_time, theirs, rtol=1e-5, atol=0)
    sigmas = schedule(comfyui, family.model, "time_uniform", 9)[:-1].double()
    undone = sigmas / (family.shift + (1 - family.shift) * sigmas)  # back to time
    torch.testing.assert_close(undone.diff(), undone.diff().mean().expand(8), rtol=1e-4, atol=0)


@pytest.mark.parametrize("case", FLOW_CASES.values(), ids=FLOW_CASES)
@pytest.mark.slow
def test_the_hosts_own_flow_branches(comfyui, family, case):
    """Ours and the host's sampler in the host, on the same added noise: the images agree to the rounding of float32."""
    import comfy.samplers
    from comfy.k_diffusion import sampling

    ours, options, theirs, host_options = case
    noise = torch.randn(family.latent["samples"].shape, generator=torch.Generator().manual_seed(1))

    def fresh(sigma, sigma_next):
        return noise * math.cos(3 * float(sigma) + 2 * float(sigma_next))

    function = getattr(sampling, f"sample_{theirs}")
    if "noise_sampler" in inspect.signature(function).parameters:
        options, host_options = ({**given_options, "noise_sampler": fresh} for given_options in (options, host_options))
    sampler = comfyui.nodes["FewStepSampler"].execute(ours).result[0]
    sampler.extra_options = options
    sigmas = torch.tensor([0.98, 0.9, 0.75, 0.5, 0.2, 0.0])
    host = sample(comfyui, family, comfy.samplers.KSAMPLER(function, host_options), sigmas)
    assert relative_error(sample(comfyui, family, sampler, sigmas), host) < 2e-4


def test_images_and_masks_on_every_family(comfyui, family):
    """img2img and inpainting: what the host makes of a latent image in a flow, (1 - sigma) x + sigma noise, stays."""
    latent = torch.randn(family.latent["samples"].shape, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    sigmas = schedule(comfyui, family.model, "time_uniform", 8)[3:]
    for image in ({"samples": latent}, {"samples": latent, "noise_mask": mask}):
        host, ours = (
            sample(comfyui, family, sampler, sigmas, latent=image)
            for sampler in (
                comfyui.nodes["KSamplerSelect"].execute("heun").result[0],
                comfyui.nodes["FewStepSampler"].execute("heun").result[0],
            )
        )
        assert relative_error(ours, host) < 2e-4
    torch.testing.assert_close(ours[..., :4], latent[..., :4], rtol=0, atol=1e-4)


def test_levels_of_another_model_are_an_error(comfyui, family):
    sampler = comfyui.nodes["FewStepSampler"].execute("dpmpp_2m").result[0]
    with pytest.raises(ValueError, match=r"sigmas\[0\] = 14.6.*between 0 and 1; was this schedule made for another"):
        sample(comfyui, family, sampler, torch.tensor([14.6, 3.0, 0.5, 0.0]))


@each_sampler
def test_inversion_to_pure_noise(spec):
    """The way up may end at sigma = 1, where alpha is 0; what must add noise says that it cannot go there."""
    sigmas = [*levels(24, 0.03, 0.9, flow=True).tolist(), 0.97, 1.0]
    options = without_noise(spec)

    def invert():
        return spec.function(flow_denoiser, solution(0.03, True), sigmas, disable=True, flow=True, **options)

    if spec.id == "ddpm":
        with pytest.raises(ValueError, match=r"to invert an image set .* \(eta, gamma, s_churn, restarts\) to 0"):
            invert()
    else:
        error = relative_error(invert(), solution(0.97, True) / 0.97)
        assert error < 0.25, error


# Time shift


SHIFTS = {
    "ModelSamplingSD3": lambda node, model, shift: node.patch(model, shift=shift),
    "ModelSamplingAuraFlow": lambda node, model, shift: node.patch_aura(model, shift=shift),
    "ModelSamplingFlux": lambda node, model, shift: node.patch(model, math.log(shift), 0.5, 1024, 1024),
}


@pytest.mark.parametrize("node", SHIFTS)
def test_schedules_follow_the_shift_nodes(comfyui, family, node):
    """The shift that a node puts on a model replaces the model's own, for our schedules as for the host's."""
    (shifted,) = SHIFTS[node](comfyui.nodes[node](), family.model, 5.0)
    sampling = shifted.get_model_object("model_sampling")
    for name, options in (("time_uniform", {}), ("karras", {"shift": 5.0})):
        ours = schedule(comfyui, shifted, name, 9, **options)[:-1].double()
        undone = ours / (5.0 - 4.0 * ours)
        plain = SCHEDULES[name].function(9, float(undone[-1]), 1.0, flow=True, shift=1.0)[:-1]
        torch.testing.assert_close(undone, plain, rtol=1e-4, atol=0)
        assert math.isclose(ours[-1], sampling.sigma_min, rel_tol=1e-5)
    assert math.isclose(sampling.percent_to_sigma(0.5), 5 / 6, rel_tol=1e-6)
    images = {id: sampler_image(comfyui, family, shifted, id) for id in ("fewstep_euler_ancestral", "fewstep_dpmpp_2m")}
    assert all(image.isfinite().all() for image in images.values())


@pytest.mark.parametrize("node", SHIFTS)
@pytest.mark.parametrize("family", ["SD3"], indirect=True)
def test_sa_solver_adds_noise_where_the_host_does(comfyui, family, node):
    """In the model's time, also with a shift that a node put on it; and the plot shows it there. At shift 8 the levels
    are 0.97 and 0.67."""
    (model,) = SHIFTS[node](comfyui.nodes[node](), family.model, 8.0)
    sigmas = torch.tensor([0.99, 0.96, 0.9, 0.8, 0.7, 0.6, 0.4, 0.2, 0.0])
    (mine,) = comfyui.nodes["FewStepSampler"].execute("sa_solver").result
    (theirs,) = comfyui.nodes["KSamplerSelect"].execute("sa_solver").result
    generator = torch.Generator().manual_seed(1)
    noise = {sigma: torch.randn(2, 16, 8, 8, generator=generator) for sigma in sigmas.tolist()}
    drawn: list[float] = []

    def noise_sampler(_sigma, sigma_next):
        drawn.append(min(sigmas.tolist(), key=lambda level: abs(level - float(sigma_next))))
        return noise[drawn[-1]]

    images = []
    for sampler in (mine, theirs):
        sampler.extra_options = {**sampler.extra_options, "noise_sampler": noise_sampler}
        images.append(sample(comfyui, SimpleNamespace(**vars(family) | {"model": model}), sampler, sigmas))
    within = pytest.approx([0.96, 0.9, 0.8, 0.7])
    assert drawn[: len(drawn) // 2] == within == drawn[len(drawn) // 2 :]
    assert relative_error(*images) < 1e-4


def sampler_image(comfyui, family, model, sampler: str) -> torch.Tensor:
    """By the plain KSampler with the schedule of the dropdown."""
    run = comfyui.nodes["KSampler"]().sample
    (out,) = run(
        model, 1, 4, 2.0, sampler, "fewstep_time_uniform", family.positive, family.negative, family.latent, 1.0
    )
    return out["samples"]


# The demo's flow model


def demo(comfyui, prompt: str, model_type: str = "rectified flow") -> SimpleNamespace:
    model, positive, negative = comfyui.nodes["FewStepDemoModel"].execute(prompt, "", model_type).result
    latent = comfyui.nodes["FewStepDemoLatent"].execute(2).result[0]
    return SimpleNamespace(model=model, positive=positive, negative=negative, latent=latent)


def demo_images(comfyui, demo, steps: int, model=None) -> torch.Tensor:
    sampler = comfyui.nodes["FewStepSampler"].execute("dpm_3m").result[0]
    run = SimpleNamespace(**{**vars(demo), "model": model or demo.model})
    sigmas = schedule(comfyui, run.model, "time_uniform", steps)
    latent = {"samples": sample(comfyui, run, sampler, sigmas, cfg=3.0)}
    return comfyui.nodes["FewStepDemoDecode"].execute(latent, 1).result[0]


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_the_demo_has_a_flow_model_and_starts_with_the_other(comfyui):
    import comfy.model_base
    import comfy.model_sampling

    flow, plain = demo(comfyui, "red apple"), demo(comfyui, "red apple", "noise prediction")
    assert flow.model.model.model_type == comfy.model_base.ModelType.FLOW
    sampling = flow.model.get_model_object("model_sampling")
    assert isinstance(sampling, comfy.model_sampling.CONST) and sampling.multiplier == 1000 and sampling.shift == 1
    assert comfyui.nodes["FewStepDemoModel"].execute("red apple", "").result[0].model is plain.model.model


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.9])
def test_both_demo_models_see_the_same_image_in_the_same_noise(comfyui, sigma):
    """Their answers, noise - image here and noise there, give one image at one signal-to-noise ratio."""
    flow, plain = demo(comfyui, "red apple"), demo(comfyui, "red apple", "noise prediction")
    image = flow.model.model.process_latent_in(
        comfyui.nodes["FewStepDemoEncode"].execute(demo_images(comfyui, plain, 8)).result[0]["samples"]
    )
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(4))
    words = flow.positive[0][0].expand(2, -1, -1)

    def denoised(model, x, level):
        return model.model.apply_model(x, torch.full((2,), level), c_crossattn=words, y=words[:, 0])

    in_flow = denoised(flow.model, (1 - sigma) * image + sigma * noise, sigma)
    in_edm = denoised(plain.model, image + sigma / (1 - sigma) * noise, sigma / (1 - sigma))
    assert rms(in_flow - in_edm) < 0.1 * rms(in_edm)
    assert rms(in_flow - image) < 0.4 * rms(image)


def test_the_demo_draws(comfyui):
    """Two different images of something red on white; a time shift puts the steps elsewhere, not the image."""
    apples = demo(comfyui, "red apple")
    images = demo_images(comfyui, apples, 12)
    assert not torch.equal(images[0], images[1])
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.min() > 0.9
    centre = images[:, 8:24, 8:24].mean((1, 2))
    assert (centre[:, 0] > centre[:, 1] + 0.2).all() and (centre[:, 0] > centre[:, 2] + 0.2).all()
    (shifted,) = comfyui.nodes["ModelSamplingSD3"]().patch(apples.model, shift=3.0)
    few, many = (rms(demo_images(comfyui, apples, n, shifted) - demo_images(comfyui, apples, n)) for n in (4, 20))
    assert many < 0.06 < few


def test_a_demo_file_of_a_type_that_the_network_has_no_form_for(comfyui, tmp_path):
    from safetensors.torch import save_file

    from demo.model import FORMAT, load

    path = tmp_path / "odd.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"format": FORMAT, "model_type": "EDM"})
    with pytest.raises(ValueError, match=r"odd.safetensors: model_type = 'EDM', use one of \['EPS', 'FLOW'\]"):
        load(path)
