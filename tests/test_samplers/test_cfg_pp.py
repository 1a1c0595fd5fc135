"""Samplers with CFG++: their formula in both spaces of levels, and a model that gives its predictions apart."""

from __future__ import annotations

import itertools

import pytest
import torch
from mixture import FLOW_MIN, SIGMA_MAX, SIGMA_MIN, X1, denoiser, flow_denoiser, pointwise

from samplers import SAMPLERS, SCHEDULES, Denoiser, Guided, LinearVP, classifier_free
from samplers.calibrated.recipe import Recipe, usable_bases
from samplers.guidance import Guidance
from samplers.inversion import invert

IDS = ("euler_cfg_pp", "dpmpp_2m_cfg_pp")
SCALE = 0.6


def predictions(x, sigma, flow=False):
    unconditional = (flow_denoiser if flow else denoiser)(x, sigma)
    return unconditional, unconditional + 0.3 * torch.sin(unconditional)


def apart(flow=False, scale=SCALE):
    def model(x, sigma):
        unconditional, conditional = predictions(x, sigma, flow)
        return Guided(unconditional + scale * (conditional - unconditional), unconditional)

    return model


def levels(flow, n=7, end=0.0):
    high, low = (0.97, FLOW_MIN) if flow else (SIGMA_MAX, SIGMA_MIN)
    sigmas = SCHEDULES["time_uniform"].function(n, low, high, flow=flow).tolist()
    return sigmas[:-1] if end else sigmas


def run(id, model, sigmas, flow=False, **options):
    return SAMPLERS[id].function(model, sigmas[0] * X1, sigmas, disable=True, flow=flow, **options)


def test_which_samplers_take_the_predictions_apart():
    assert tuple(id for id, spec in SAMPLERS.items() if spec.takes_apart) == IDS
    assert all(SAMPLERS[id].curated for id in IDS)


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.parametrize("end", [0, 1], ids=["to 0", "above 0"])
def test_euler_is_the_papers_formula(flow, end):
    sigmas = levels(flow, end=end)
    x = sigmas[0] * X1
    for s, t in itertools.pairwise(sigmas):
        denoised, unconditional = apart(flow)(x, torch.full((3,), s, dtype=x.dtype))
        alpha_s, alpha_t = (1 - s, 1 - t) if flow else (1, 1)
        x = alpha_t * denoised + t * (x - alpha_s * unconditional) / s
    torch.testing.assert_close(run("euler_cfg_pp", apart(flow), sigmas, flow), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
def test_euler_is_the_guidance_of_that_name(flow):
    sigmas = levels(flow)
    scale = Guidance(cfg=SCALE, cfg_pp=True).over(sigmas, flow=flow)

    def guided(x, sigma):
        return apart(flow, scale(float(sigma[0])))(x, sigma).denoised

    same = run("euler", guided, sigmas, flow)
    torch.testing.assert_close(run("euler_cfg_pp", apart(flow), sigmas, flow), same, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("end", [0, 1], ids=["to 0", "above 0"])
def test_flow_is_the_same_run_in_other_units(id, end):
    """x_t / alpha_t at the level sigma / alpha. Forge Neo's and ComfyUI's 2M take flow levels for those of alpha = 1
    (Haoming02/sd-webui-forge-classic, 1381), which is another run."""
    sigmas = levels(flow=True, end=end)
    edm = [sigma / (1 - sigma) for sigma in sigmas]
    same = SAMPLERS[id].function(apart(), edm[0] * X1, edm, disable=True) * (1 - sigmas[-1])
    found = SAMPLERS[id].function(apart(True), sigmas[0] * X1, sigmas, disable=True, flow=True)
    torch.testing.assert_close(found, same, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("id", IDS)
def test_from_pure_noise(id):
    """The first step is alpha_t D + sigma_t x: at sigma = 1 the sample is the noise."""
    start = 0.9
    denoised, _ = apart(True)(X1, torch.ones(3, dtype=torch.float64))
    found = run(id, apart(True), [1.0, start], flow=True)
    torch.testing.assert_close(found, (1 - start) * denoised + start * X1, rtol=1e-14, atol=1e-14)
    assert run(id, apart(True), [1.0, start, 0.4, 0.1, 0.0], flow=True).isfinite().all()


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.parametrize(("id", "plain"), [("euler_cfg_pp", "ddim"), ("dpmpp_2m_cfg_pp", "dpmpp_2m")])
@pytest.mark.parametrize("end", [0, 1], ids=["to 0", "above 0"])
def test_without_guidance_they_are_the_plain_samplers(id, plain, flow, end):
    """So they have their order."""
    assert SAMPLERS[id].order == SAMPLERS[plain].order
    model = flow_denoiser if flow else denoiser
    options = {"lower_order_final": False} if plain == "dpmpp_2m" else {}
    sigmas = levels(flow, end=end)
    found = run(id, lambda x, sigma: Guided(model(x, sigma), model(x, sigma)), sigmas, flow)
    torch.testing.assert_close(found, run(plain, model, sigmas, flow, **options), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("id", IDS)
def test_the_end_is_the_guided_prediction_to_the_bit(id):
    found = run(id, apart(), [9.0, 0.0])
    assert torch.equal(found, apart()(9 * X1, torch.full((3,), 9.0, dtype=torch.float64)).denoised)


@pytest.mark.parametrize("id", IDS)
@pytest.mark.parametrize("model", [denoiser, lambda x, sigma: (x, x)], ids=["one prediction", "a plain pair"])
def test_a_model_of_one_prediction_is_refused(id, model):
    with pytest.raises(ValueError, match="Guided" if model is denoiser else "model must return the denoised sample"):
        run(id, model, levels(False))


@pytest.mark.parametrize("id", IDS)
def test_an_answer_of_another_shape_is_refused(id):
    with pytest.raises(ValueError, match="model must return the denoised sample, shaped like x"):
        run(id, lambda x, sigma: Guided(x, x[:1]), levels(False))


def test_an_unconditional_prediction_that_is_written_over_is_found():
    store = torch.empty_like(X1)

    def model(x, sigma):
        guided = apart()(x, sigma)
        return Guided(guided.denoised, store.copy_(guided.unconditional))

    assert run("euler_cfg_pp", model, levels(False)).isfinite().all(), "which needs no earlier one"
    with pytest.raises(ValueError, match="the model wrote over a prediction"):
        run("dpmpp_2m_cfg_pp", model, levels(False))


def test_evaluations_are_counted_and_shown_as_ever():
    seen, info = [], {}
    SAMPLERS["dpmpp_2m_cfg_pp"].function(
        apart(), SIGMA_MAX * X1, levels(False), {}, lambda step: seen.append(step["denoised"]), True, info=info
    )
    assert info == {"nfe": 7} and all(denoised.shape == X1.shape for denoised in seen)
    with pytest.raises(ValueError, match="NaN or infinity at step 1 of 7"):
        run("euler_cfg_pp", lambda x, sigma: Guided(x, x * torch.nan), levels(False))


def test_other_samplers_take_the_guided_one():
    plain = run("dpmpp_2m", lambda x, sigma: apart()(x, sigma).denoised, levels(False))
    assert torch.equal(run("dpmpp_2m", apart(), levels(False)), plain)


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_classifier_free_guidance_apart(scale):
    """Both predictions, also at scale 1, where the unconditional one would be left out."""
    model = Denoiser(lambda x, t, c: pointwise(x, t) + c, LinearVP())
    condition, nothing = ({"c": torch.full((1, 1, 1, 1), c, dtype=torch.float64)} for c in (0.4, 0.1))
    sigma = torch.full((3,), 2.0, dtype=torch.float64)
    guided = classifier_free(model, condition, nothing, scale, apart=True)(X1, sigma)
    torch.testing.assert_close(guided.unconditional, model(X1, sigma, **nothing))
    torch.testing.assert_close(guided.denoised, classifier_free(model, condition, nothing, scale)(X1, sigma))


def test_they_are_no_base_of_a_plan_and_cannot_be_inverted():
    assert not {*IDS} & {*usable_bases()}
    for id in IDS:
        with pytest.raises(ValueError, match=r"cannot follow a recipe: .* guidance apart \(CFG\+\+\)"):
            Recipe(id, (3.0, 1.0, 0.0))
        with pytest.raises(ValueError, match=rf"{id} \(CFG\+\+\) cannot be inverted"):
            invert(SAMPLERS[id], apart(), X1, levels(False), disable=True)
