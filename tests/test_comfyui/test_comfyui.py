"""The pack inside the real ComfyUI: registration, nodes, and everything the host wraps around a sampler.

`dpmpp_2m` is the same method in the host and in the pack. So the host's wrappers are proved to work around our
samplers by running both under each of them: where the images agree, nothing was lost.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys

import pytest
import torch
from host import ROOT, environment
from in_the_host import ksample, module
from small_models import conditioning, controlled, small_model

from samplers import SAMPLERS, SCHEDULES, BrownianNoise

CURATED = [spec.id for spec in SAMPLERS.values() if spec.curated]
CURATED_SCHEDULES = [spec.id for spec in SCHEDULES.values() if spec.curated]


def latent(batch: int = 1, seed: int = 5) -> dict:
    return {"samples": torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))}


def assert_like_host(comfyui, model, **arguments) -> None:
    host, ours = (ksample(comfyui, model, name, **arguments) for name in ("dpmpp_2m", "fewstep_dpmpp_2m"))
    torch.testing.assert_close(ours, host, rtol=1e-4, atol=1e-4 * float(host.abs().max()))


# Registration


def test_import_is_fast_and_quiet():
    """A fourteenth of the time that the host takes, with no warning; measured in a fresh process, best of three copies.

    Both are times of the processor for the same kind of work, so what they share does not depend on the machine.
    """
    script = f"""
import logging, os, sys, tempfile, time, warnings
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tools")!r})
from host import ROOT, import_comfyui, load_pack
start = time.process_time()
nodes = import_comfyui()
host = time.process_time() - start
records = []
class Keep(logging.Handler):
    def emit(self, record): records.append(record.getMessage())
logging.getLogger().addHandler(Keep(logging.WARNING)); logging.captureWarnings(True); warnings.simplefilter("always")
times = []
with tempfile.TemporaryDirectory() as folder:
    for name in ("a", "b.c", "d e"):
        os.symlink(ROOT, os.path.join(folder, name))
        start = time.process_time()
        assert load_pack(nodes, Path(folder, name))
        times.append(time.process_time() - start)
print("SHARE", min(times) / host); print("WARNINGS", records)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=True)
    printed = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("SHARE", "WARNINGS")))
    assert printed["WARNINGS"] == "[]"
    assert float(printed["SHARE"]) < 1 / 14


def test_dropdowns_hold_the_curated_once(comfyui):
    assert comfyui.load(ROOT, "a-second-copy")
    import comfy.samplers as host_samplers

    registration = module(comfyui, "registration")
    ours = [f"fewstep_{s.id}" for s in registration.curated(SAMPLERS, registration.SAMPLERS_FIRST)]
    schedules = [f"fewstep_{s.id}" for s in registration.curated(SCHEDULES, registration.SCHEDULES_FIRST)]
    assert {*ours} == {f"fewstep_{id}" for id in CURATED} and len(ours) == len(CURATED)
    assert {*schedules} == {f"fewstep_{id}" for id in CURATED_SCHEDULES} and len(schedules) == len(CURATED_SCHEDULES)
    assert ours[:2] == ["fewstep_dpmpp_2m", "fewstep_ipndm_v"] and schedules[0] == "fewstep_karras"
    assert ours[-1] == "fewstep_amed_dpm_2m" and {"fewstep_kl_optimal", "fewstep_cosine"} <= {*schedules}
    for first, registry in (
        (registration.SAMPLERS_FIRST, SAMPLERS),
        (registration.SCHEDULES_FIRST, SCHEDULES),
    ):
        curated = [id for id, spec in registry.items() if spec.curated]
        assert sorted(first) == sorted(curated), "each has its place in the list"
    for node in ("KSampler", "KSamplerAdvanced"):
        inputs = comfyui.nodes[node].INPUT_TYPES()["required"]
        assert inputs["sampler_name"][0] == comfyui.before.samplers + ours
        assert inputs["scheduler"][0] == [*comfyui.before.schedulers, *schedules]
    for node, names in (("KSamplerSelect", ours), ("BasicScheduler", schedules)):
        combo = next(i for i in comfyui.nodes[node].define_schema().inputs if i.id in ("sampler_name", "scheduler"))
        assert combo.options[-len(names) :] == names
        assert len(set(combo.options)) == len(combo.options)
    assert list(host_samplers.SCHEDULER_HANDLERS) == [*comfyui.before.schedulers, *schedules]


def test_host_entries_are_untouched(comfyui):
    import comfy.samplers as host_samplers
    from comfy.k_diffusion import sampling

    for name, function in comfyui.before.functions.items():
        assert getattr(sampling, name) is function
    for name, handler in comfyui.before.schedulers.items():
        assert host_samplers.SCHEDULER_HANDLERS[name] is handler
    assert not any(name.startswith("fewstep_") for name in (*comfyui.before.samplers, *comfyui.before.schedulers))


def test_a_taken_name_is_left_alone(comfyui, monkeypatch):
    """If the host or another pack comes to own one of our names, its entry stays."""
    import comfy.samplers as host_samplers
    from comfy.k_diffusion import sampling

    theirs, handler = object(), object()
    monkeypatch.setattr(sampling, "sample_fewstep_ddim", theirs)
    monkeypatch.setitem(host_samplers.SCHEDULER_HANDLERS, "fewstep_karras", handler)
    assert comfyui.load(ROOT, "a-third-copy")
    assert sampling.sample_fewstep_ddim is theirs
    assert host_samplers.SCHEDULER_HANDLERS["fewstep_karras"] is handler


# Model types


@pytest.mark.parametrize("model_type", ["EPS", "V_PREDICTION", "EDM", "V_PREDICTION_EDM"])
def test_same_image_as_the_host(comfyui, model_type):
    assert_like_host(comfyui, small_model(model_type), scheduler="karras")


def test_rectified_flow_uses_its_own_log_snr(comfyui):
    """The host's 2M SDE at eta = 0 works in log-SNR of flow levels; below sigma = 1 it is our dpmpp_2m."""
    model = small_model("FLOW")
    sigmas = torch.linspace(0.9, 0, 7)
    sde = comfyui.nodes["KSamplerSelect"].execute("dpmpp_2m_sde").result[0]
    sde.extra_options = {"eta": 0.0}
    host = sample_custom(comfyui, sde, sigmas, model)
    ours = sample_custom(comfyui, comfyui.nodes["FewStepSampler"].execute("dpmpp_2m").result[0], sigmas, model)
    torch.testing.assert_close(ours, host, rtol=1e-5, atol=1e-5)
    # The host's plain 2M reads the levels as if alpha were 1: the difference is what is proved here.
    other = sample_custom(comfyui, comfyui.nodes["KSamplerSelect"].execute("dpmpp_2m").result[0], sigmas, model)
    assert (ours - other).abs().max() > 100 * (ours - host).abs().max()


MODEL_TYPES = ["EPS", "V_PREDICTION", "EDM", "FLOW"]


# A sampler and a schedule meet in a list of levels and nowhere else: not every pair of them needs to be run.


@pytest.mark.parametrize("schedule", CURATED_SCHEDULES)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_levels_of_every_schedule_of_the_dropdown(comfyui, schedule, model_type):
    """A run by KSampler visits the levels that the schedule's node gives."""
    model, told = small_model(model_type).clone(), []
    model.set_model_sampler_pre_cfg_function(lambda args: told.append(float(args["sigma"][0])) or args["conds_out"])
    ksample(comfyui, model, "fewstep_ddim", scheduler=f"fewstep_{schedule}", steps=4)
    sigmas = comfyui.nodes["FewStepScheduler"].execute(model, schedule, 4, 1.0).result[0]
    assert told == sigmas[:-1].tolist()


@pytest.mark.parametrize("sampler", CURATED)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_sampler_of_the_dropdown(comfyui, sampler, model_type):
    """A finite image, the same for the same seed. The schedules take turns."""
    schedule = CURATED_SCHEDULES[CURATED.index(sampler) % len(CURATED_SCHEDULES)]
    model, run = small_model(model_type), {"scheduler": f"fewstep_{schedule}", "steps": 4}
    first = ksample(comfyui, model, f"fewstep_{sampler}", **run)
    assert first.isfinite().all()
    assert torch.equal(first, ksample(comfyui, model, f"fewstep_{sampler}", **run))
    assert not torch.allclose(first, ksample(comfyui, model, f"fewstep_{sampler}", seed=4, **run))


# What the host wraps around a sampler


def test_img2img(comfyui, eps_model):
    assert_like_host(comfyui, eps_model, image=latent(), denoise=0.5)


def test_batch(comfyui, eps_model):
    assert_like_host(comfyui, eps_model, image={"samples": torch.zeros(3, 4, 8, 8)})


def test_inpainting(comfyui, eps_model):
    image = latent()
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    image["noise_mask"] = mask
    assert_like_host(comfyui, eps_model, image=image)
    out = ksample(comfyui, eps_model, "fewstep_dpmpp_2m", image=image)
    torch.testing.assert_close(out[..., 4:], image["samples"][..., 4:])
    assert not torch.allclose(out[..., :4], image["samples"][..., :4], atol=0.1)


def test_lora(comfyui, eps_model):
    """Weight patches, which is what a LoRA becomes, act during our sampling and are undone after it."""
    plain = ksample(comfyui, eps_model, "fewstep_dpmpp_2m")
    patched = eps_model.clone()
    weight = eps_model.model.state_dict()["diffusion_model.out.2.weight"]
    assert patched.add_patches({"diffusion_model.out.2.weight": (0.3 * torch.ones_like(weight),)}, 1.0)
    assert_like_host(comfyui, patched)
    assert not torch.allclose(ksample(comfyui, patched, "fewstep_dpmpp_2m"), plain, atol=1e-2)
    assert torch.equal(ksample(comfyui, eps_model, "fewstep_dpmpp_2m"), plain)


def test_controlnet(comfyui, eps_model):
    """The host's own ControlNet, with a network of the model's shape."""
    positive, negative = controlled(comfyui, conditioning(1), conditioning(2))

    def run(sampler, positive, negative):
        image = {"samples": torch.zeros(1, 4, 8, 8)}
        node = comfyui.nodes["KSampler"]()
        return node.sample(eps_model, 3, 6, 2.5, sampler, "karras", positive, negative, image, 1.0)[0]["samples"]

    host, ours = (run(name, positive, negative) for name in ("dpmpp_2m", "fewstep_dpmpp_2m"))
    torch.testing.assert_close(ours, host, rtol=1e-4, atol=1e-4 * float(host.abs().max()))
    plain = run("fewstep_dpmpp_2m", conditioning(1), conditioning(2))
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_split_over_two_advanced_ksamplers(comfyui, eps_model):
    """Stopping with leftover noise and going on is the whole run, for a solver without memory between steps."""

    def run(start: int, end: int, image: dict, add_noise: str) -> dict:
        node = comfyui.nodes["KSamplerAdvanced"]()
        arguments = (conditioning(1), conditioning(2), image, start, end, "enable" if end < 6 else "disable")
        return node.sample(eps_model, add_noise, 3, 6, 2.5, "fewstep_dpmpp_2s", "fewstep_karras", *arguments)[0]

    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    whole = run(0, 10000, empty, "enable")["samples"]
    halves = run(3, 10000, run(0, 3, empty, "enable"), "disable")["samples"]
    torch.testing.assert_close(halves, whole, rtol=1e-5, atol=1e-5)


def test_previews(comfyui, eps_model):
    """The host's callback gets the denoised image once a step, numbered, for its preview and progress bar."""
    import comfy.sample

    steps = []
    noise = torch.randn(1, 4, 8, 8)
    for sampler in ("fewstep_dpmpp_2m", "fewstep_dpmpp_2s"):
        steps.clear()
        comfy.sample.sample(
            eps_model, noise, 5, 2.5, sampler, "karras", conditioning(1), conditioning(2), torch.zeros_like(noise),
            callback=lambda step, x0, x, total: steps.append((step, total, x0.shape == x.shape)), seed=0,
        )  # fmt: skip
        assert steps == [(i, 5, True) for i in range(5)]


def test_interruption(comfyui, eps_model):
    """Cancel in the middle of a run stops it at once, and the next run is not affected."""
    import comfy.model_management
    import comfy.sample

    before = ksample(comfyui, eps_model, "fewstep_dpmpp_2m")
    seen = []

    def cancel_at_two(step, x0, x, total):
        seen.append(step)
        if step == 2:
            comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    noise = torch.randn(1, 4, 8, 8)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        comfy.sample.sample(
            eps_model, noise, 6, 2.5, "fewstep_dpmpp_2m", "karras", conditioning(1), conditioning(2),
            torch.zeros_like(noise), callback=cancel_at_two, seed=0,
        )  # fmt: skip
    assert seen == [0, 1, 2]
    assert torch.equal(ksample(comfyui, eps_model, "fewstep_dpmpp_2m"), before)


def test_fresh_noise_is_not_the_noise_that_the_run_starts_from(comfyui):
    """Both come from the same seed; the host's own ancestral samplers once drew the same numbers twice."""
    import comfy.sample

    image = torch.zeros(2, 4, 64, 64)
    first = comfy.sample.prepare_noise(image, 3).flatten()
    noise = BrownianNoise(image, 3)
    for sigma, sigma_next in ((14.6, 7.0), (7.0, 1.0), (1.0, 0.03)):
        z = noise(sigma, sigma_next).flatten()
        assert torch.corrcoef(torch.stack([first, z]))[0, 1].abs() < 4.5 / len(z) ** 0.5


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "euler_ancestral", "consistency"])
def test_stochastic_samplers_take_the_seed_of_the_host(comfyui, eps_model, sampler):
    """The same image for the same seed, whatever was drawn before; and not that of the sampler without noise."""
    arguments = {"sampler": f"fewstep_{sampler}", "model": eps_model}
    first = ksample(comfyui, **arguments)
    torch.randn(17)
    assert torch.equal(ksample(comfyui, **arguments), first)
    assert not torch.allclose(ksample(comfyui, **arguments, seed=4), first, atol=1e-2)


def test_adaptive_sampler_reports_its_evaluations(comfyui, eps_model, caplog):
    sampler = comfyui.nodes["FewStepSampler"].execute("dpm_adaptive", rtol=0.2).result[0]
    sigmas = comfyui.nodes["FewStepScheduler"].execute(eps_model, "karras", 8, 1.0).result[0]
    with caplog.at_level("INFO"):
        assert sample_custom(comfyui, sampler, sigmas, eps_model).isfinite().all()
    (line,) = [record.getMessage() for record in caplog.records if "DPM-Solver adaptive" in record.getMessage()]
    assert re.search(r"\d+ n_accept, \d+ n_reject, \d+ nfe", line)


# The nodes


def sample_custom(comfyui, sampler, sigmas, model, seed=3):
    image = {"samples": torch.zeros(1, 4, 8, 8)}
    node = comfyui.nodes["SamplerCustom"]
    out = node.execute(model, True, seed, 2.5, conditioning(1), conditioning(2), sampler, sigmas, image)
    return out.result[0]["samples"]


def test_sampler_node_gives_every_sampler_with_its_options(comfyui, eps_model):
    node = comfyui.nodes["FewStepSampler"]
    sigmas = comfyui.nodes["FewStepScheduler"].execute(eps_model, "karras", 5, 1.0).result[0]
    plain = {id: sample_custom(comfyui, node.execute(id).result[0], sigmas, eps_model) for id in SAMPLERS}
    assert all(out.isfinite().all() for out in plain.values())
    widgets = {
        i.id: i.default for i in node.define_schema().inputs if i.id != "sampler"
    }  # as the front end sends them: every option, at the value the widget starts with
    for id in SAMPLERS:
        as_sent = sample_custom(comfyui, node.execute(id, **widgets).result[0], sigmas, eps_model)
        assert torch.equal(as_sent, plain[id])
    heun = sample_custom(
        comfyui, node.execute("dpmpp_2m", **widgets | {"solver_type": "heun"}).result[0], sigmas, eps_model
    )
    assert not torch.equal(heun, plain["dpmpp_2m"])


def test_rounded_widget_is_the_default(comfyui):
    """The front end shows 1/3 as 0.33 and sends that; it is still the default, which has order 3."""
    sampler = comfyui.nodes["FewStepSampler"].execute("dpmpp_3s", r1=0.33, r2=0.67).result[0]
    assert sampler.extra_options["r1"] == 1 / 3
    assert sampler.extra_options["r2"] == 2 / 3
    assert comfyui.nodes["FewStepSampler"].execute("dpmpp_3s", r1=0.32).result[0].extra_options["r1"] == 0.32


def test_widgets_count_finely_enough(comfyui, eps_model):
    """A value beside the default is not taken for it, and the smallest that matter can be typed."""
    node = comfyui.nodes["FewStepSampler"]
    options = node.execute("dpm_adaptive", rtol=0.0005, atol=0.01).result[0].extra_options
    assert (options["rtol"], options["atol"]) == (0.0005, 0.01)
    steps = {i.id: getattr(i, "step", None) for i in node.define_schema().inputs}
    assert steps["rtol"] == steps["atol"] == 1e-4 and steps["r"] == 0.01
    run = comfyui.nodes["FewStepScheduler"].execute
    default, other = (run(eps_model, "linear_quadratic", 8, 1.0, threshold_noise=t).result[0] for t in (0.025, 0.03))
    assert torch.equal(default, run(eps_model, "linear_quadratic", 8, 1.0).result[0])
    assert not torch.equal(default, other)


def test_tooltips_say_what_the_default_is(comfyui):
    tooltips = {i.id: i.tooltip for i in comfyui.nodes["FewStepSampler"].define_schema().inputs}
    assert "-1, the default: 0 (ddim), 1 (all but ddim)." in tooltips["eta"]
    assert "default: off (dpmpp_2s" in tooltips["lower_order_final"]
    assert tooltips["noise_device"].endswith("default: cpu.")
    tooltips = {i.id: i.tooltip for i in comfyui.nodes["FewStepScheduler"].define_schema().inputs}
    assert "(" not in tooltips["start_step"].replace("KSampler (Advanced)", "")  # every schedule has it: none is named


OF_ANY_LENGTH = [id for id, spec in SCHEDULES.items() if spec.any_steps]


@pytest.mark.parametrize("schedule", OF_ANY_LENGTH)
def test_scheduler_node(comfyui, eps_model, schedule):
    run = comfyui.nodes["FewStepScheduler"].execute
    sigmas = run(eps_model, schedule, 8, 1.0).result[0]
    sampling = eps_model.get_model_object("model_sampling")
    assert sigmas.shape == (9,)
    assert sigmas.dtype == torch.float32 and sigmas.device.type == "cpu"
    assert sigmas[-1] == 0
    assert (
        sigmas[0] == sampling.sigma_max if SCHEDULES[schedule].starts_at_sigma_max else sigmas[0] < sampling.sigma_max
    )
    if SCHEDULES[schedule].ends_at_sigma_min:
        assert math.isclose(sigmas[-2], sampling.sigma_min, rel_tol=1e-6)
    half = run(eps_model, schedule, 8, 0.5).result[0]
    assert torch.equal(half, run(eps_model, schedule, 16, 1.0).result[0][-9:])
    assert run(eps_model, schedule, 8, 0.0).result[0].numel() == 0


def test_scheduler_node_reads_the_level_space(comfyui):
    flow = small_model("FLOW")
    for schedule in OF_ANY_LENGTH:
        sigmas = comfyui.nodes["FewStepScheduler"].execute(flow, schedule, 8, 1.0).result[0]
        assert sigmas[0] <= 1 and (sigmas[1:] < sigmas[:-1]).all()


@pytest.mark.parametrize("shift", [1.32, 3.0, 8.0])
def test_shifted_flow_models(comfyui, shift):
    """The host's float32 shift puts sigma_max at 1.0000001 for some shifts, 1.32 among them."""
    (model,) = comfyui.nodes["ModelSamplingSD3"]().patch(small_model("FLOW"), shift=shift)
    assert (shift == 1.32) == (model.get_model_object("model_sampling").sigma_max > 1)
    for scheduler in ("simple", *(f"fewstep_{id}" for id, spec in SCHEDULES.items() if spec.curated)):
        assert ksample(comfyui, model, "fewstep_dpmpp_2m", scheduler=scheduler, steps=4).isfinite().all()


def test_schedule_options_reach_the_schedule(comfyui, eps_model):
    run = comfyui.nodes["FewStepScheduler"].execute
    assert not torch.equal(
        run(eps_model, "karras", 8, 1.0, rho=3.0).result[0], run(eps_model, "karras", 8, 1.0).result[0]
    )
    exponential = run(eps_model, "exponential", 8, 1.0).result[0]
    assert torch.equal(run(eps_model, "exponential", 8, 1.0, rho=3.0).result[0], exponential)  # not its option


def test_node_errors_name_the_input(comfyui, eps_model):
    with pytest.raises(KeyError, match=r"^unknown sampler 'dpmpp_2n'"):
        comfyui.nodes["FewStepSampler"].execute("dpmpp_2n")
    with pytest.raises(ValueError, match="solver_type"):
        comfyui.nodes["FewStepSampler"].execute("dpmpp_2m", solver_type="published")
    with pytest.raises(ValueError, match="steps"):
        comfyui.nodes["FewStepScheduler"].execute(eps_model, "karras", 0, 1.0)
    with pytest.raises(ValueError, match="rho"):
        comfyui.nodes["FewStepScheduler"].execute(eps_model, "karras", 8, 1.0, rho=0.0)
    sampler = comfyui.nodes["FewStepSampler"].execute("dpmpp_2m").result[0]
    with pytest.raises(ValueError, match=r"sigmas\[1\] = 5 and sigmas\[2\] = 6"):
        sample_custom(comfyui, sampler, torch.tensor([14.0, 5.0, 6.0, 0.0]), eps_model)


def test_a_broken_model_is_an_error_not_a_black_image(comfyui):
    broken = small_model("EPS")
    broken.model.diffusion_model.out[2].bias.data.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN or infinity at step 1 of 6"):
        ksample(comfyui, broken, "fewstep_dpmpp_2m")
