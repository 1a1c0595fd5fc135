"""Work that is done in the place of a sampler, with all that the host wraps around one."""

from __future__ import annotations

import importlib

import pytest
import torch
from small_models import conditioning, small_model

SIGMAS = torch.tensor([9.0, 2.0, 0.0])


@pytest.fixture
def session(comfyui):
    package = comfyui.nodes["FewStepCalibrate"].__module__.rpartition(".")[0]
    return importlib.import_module(f"{package}.host.session")


def guider_of(session, model, cfg=2.5):
    return session.Guider(model, conditioning(1), conditioning(2), cfg)


def noise(count=2):
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def test_the_result_is_that_of_the_work(session):
    """Of any kind; what it is given is what the host gives a sampler, and evaluates as one of its own does."""
    import comfy.samplers

    model, guider = small_model("EPS"), guider_of(session, small_model("EPS"))
    image = torch.ones(2, 4, 8, 8)

    def work(run):
        assert run.guider.model_patcher is guider.model_patcher and torch.equal(run.sigmas, SIGMAS)
        first = run.model(run.x, run.sigmas[:1].expand(len(run.x)), **run.extra_args)
        return {"x": run.x, "denoised": first, "seed": run.extra_args["seed"]}

    result = session.inside(guider, work, SIGMAS, noise(), image, seed=7)
    sampling = model.get_model_object("model_sampling")
    inside = model.model.process_latent_in(image)
    torch.testing.assert_close(result["x"], sampling.noise_scaling(SIGMAS[0], noise(), inside, False))
    assert result["seed"] == 7

    seen = []
    euler = comfy.samplers.sampler_object("euler")

    def callback(step, denoised, x, total):
        seen.append(denoised)

    guider.sample(noise(), image, euler, SIGMAS, callback=callback, disable_pbar=True, seed=7)
    assert torch.equal(result["denoised"], seen[0])


def errors():
    import comfy.model_management as management

    return [ValueError("no"), KeyboardInterrupt(), management.InterruptProcessingException()]


@pytest.mark.parametrize("kind", range(3))
def test_errors_and_interruptions_come_out_as_they_are(session, kind):
    """And the guider can be used again."""
    guider, error = guider_of(session, small_model("EPS")), errors()[kind]

    def fail(run):
        raise error

    with pytest.raises(type(error)) as raised:
        session.inside(guider, fail, SIGMAS, noise())
    assert raised.value is error
    assert session.inside(guider, lambda run: len(run.x), SIGMAS, noise()) == 2


def test_the_hosts_interruption_stops_an_evaluation(session):
    import comfy.model_management as management

    def interrupted(run):
        management.interrupt_current_processing()
        return run.model(run.x, run.sigmas[:1].expand(len(run.x)), **run.extra_args)

    with pytest.raises(management.InterruptProcessingException):
        session.inside(guider_of(session, small_model("EPS")), interrupted, SIGMAS, noise())


def test_patches_of_the_model_are_in_effect(comfyui, session):
    """A schedule of guidance sets the scale of each evaluation."""
    node = comfyui.nodes["FewStepGuidance"]
    fields = {field.id: field.default for field in node.define_schema().inputs}
    guidance = node.execute(**fields | {"schedule": "list", "values": "4, 6"}).result[0]
    model = comfyui.nodes["FewStepGuidancePatch"].execute(small_model("EPS"), guidance).result[0].clone()
    scales = []
    model.set_model_sampler_post_cfg_function(lambda given: scales.append(given["cond_scale"]) or given["denoised"])

    def work(run):
        for sigma in run.sigmas[:-1]:
            run.model(run.x, sigma.expand(len(run.x)), **run.extra_args)

    assert session.inside(guider_of(session, model), work, SIGMAS, noise()) is None
    assert scales == [4.0, 6.0]


def test_a_patch_that_samples_in_place_of_the_work_is_an_error(session):
    from comfy.patcher_extension import WrappersMP

    model = small_model("EPS").clone()
    model.add_wrapper(WrappersMP.SAMPLER_SAMPLE, lambda sampler, guider, sigmas, extra_args, callback, noise, *_: noise)
    with pytest.raises(RuntimeError, match="a patch of the model from another pack samples in its place"):
        session.inside(guider_of(session, model), lambda run: 1, SIGMAS, noise())
