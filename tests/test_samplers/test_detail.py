"""Detail: what the model is told of the noise, and that nothing else changes."""

from __future__ import annotations

import math

import pytest
import torch
from mixture import X1, denoiser, each_planned, given

from samplers import SAMPLERS, Levels
from samplers.calibrated.recipe import Recipe
from samplers.detail import bump, progress_of
from samplers.inversion import invert

SIGMAS = [14.0, 8.0, 5.0, 3.1, 1.7, 0.9, 0.3, 0.1, 0.0]
FLOW = [1.0, 0.93, 0.8, 0.66, 0.5, 0.3, 0.15, 0.05, 0.0]


def test_the_curve():
    """(1 - cos 2 pi u) / 2: 0 at both ends, 1 in the middle, a half at the quarters, and 0 beyond."""
    places = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
    assert [bump(p, 0.2, 0.8) for p in places] == pytest.approx([0, 0, 0.5, 1, 0.5, 0, 0])
    assert bump(0.25, 0.0, 1.0) == pytest.approx(0.5)


def test_progress_counts_steps_and_goes_on_a_line_between_levels():
    progress = progress_of(Levels((8.0, 4.0, 2.0, 1.0, 0.0)))
    assert [progress(s) for s in (9.0, 8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.0)] == pytest.approx(
        [0, 0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 1, 1, 1]
    )
    upward = progress_of(Levels((0.5, 1.0, 2.0, 4.0)))
    downward = progress_of(Levels((4.0, 2.0, 1.0, 0.5)))
    assert all(upward(s) == downward(s) for s in (0.5, 0.7, 1.0, 2.0, 3.0, 4.0))
    assert progress_of(Levels((8.0, 0.0)))(8.0) == 0


@each_planned
@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
def test_only_what_the_model_is_told_changes(spec, flow):
    """sigma (1 - detail b) of every evaluation in the part, and the same coefficients, bit for bit."""
    sigmas = FLOW if flow else SIGMAS
    options = given(spec, eta=0.5, s_churn=2.0, gamma=0.5)
    plain = spec.plan(sigmas, flow=flow, **options)
    told = spec.plan(sigmas, flow=flow, detail=0.1, **options)
    progress = progress_of(Levels(tuple(sigmas), flow))
    for a, b in zip(plain, told, strict=True):
        assert dict(a.update.terms) == dict(b.update.terms) and a.noise == b.noise and a.step == b.step
        if a.sigma is not None:
            assert b.sigma == pytest.approx(a.sigma * (1 - 0.1 * bump(progress(a.sigma), 0.2, 0.8)), rel=1e-14)
    assert any(a.sigma != b.sigma for a, b in zip(plain, told, strict=True))
    assert spec.plan(sigmas, flow=flow, detail=0.0, detail_start=0.9, detail_end=0.1, **options) is not None


def test_its_part_of_the_run():
    told = [s.sigma for s in SAMPLERS["euler"].plan(SIGMAS, detail=0.2, detail_start=0.4, detail_end=1.0)]
    changed = [i for i, (a, b) in enumerate(zip(told, SIGMAS, strict=False)) if a != b]
    assert changed == [3, 4, 5, 6]
    assert told[5] == pytest.approx(0.9 * (1 - 0.2 * (1 - math.cos(2 * math.pi * (5 / 7 - 0.4) / 0.6)) / 2))
    smoother = [s.sigma for s in SAMPLERS["euler"].plan(SIGMAS, detail=-0.2)]
    assert smoother[3] > SIGMAS[3]


def test_a_flow_model_is_told_of_no_more_than_pure_noise():
    levels = [1.0, 0.999, 0.998, 0.9, 0.0]
    told = [s.sigma for s in SAMPLERS["euler"].plan(levels, flow=True, detail=-0.5, detail_start=0.0, detail_end=1.0)]
    assert max(told) == 1.0 and told[1] == 1.0


def test_the_model_sees_it_and_the_step_does_not():
    seen = []

    def model(x, sigma):
        seen.append(float(sigma[0]))
        return denoiser(x, sigma)

    found = SAMPLERS["euler"].function(model, 14 * X1, SIGMAS, disable=True, detail=0.1)
    x = 14 * X1
    for s, t, told in zip(SIGMAS, SIGMAS[1:], seen, strict=False):
        denoised = denoiser(x, torch.full((3,), told, dtype=torch.float64))
        x = denoised + t / s * (x - denoised)
    torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


def test_coefficients_still_carry_gradients():
    sigmas = torch.tensor(SIGMAS[:-1], dtype=torch.float64, requires_grad=True)
    plan = SAMPLERS["dpmpp_2m"].plan(sigmas, detail=0.1)
    sum(stage.sigma for stage in plan).backward()
    assert sigmas.grad.isfinite().all() and 0.8 < sigmas.grad[3] < 1


def test_an_inversion_is_told_the_same():
    """Of a sampler with one evaluation a level, and of one whose way up is a run."""
    part = SIGMAS[4:]
    for id, refinements, allowed in (("ddim", 40, 1e-6), ("heun", 3, 0.05)):
        image = SAMPLERS[id].function(denoiser, part[0] * X1, part, disable=True, detail=0.1)
        found = invert(SAMPLERS[id], denoiser, image, part, refinements=refinements, detail=0.1, disable=True)
        again = SAMPLERS[id].function(denoiser, found.sample, part, disable=True, detail=0.1)
        assert (again - image).norm() / image.norm() < allowed


def test_errors_name_the_option():
    with pytest.raises(ValueError, match=r"detail_start = 0\.8 must be smaller than detail_end = 0\.2"):
        SAMPLERS["euler"].plan(SIGMAS, detail=0.1, detail_start=0.8, detail_end=0.2)
    with pytest.raises(ValueError, match=r"euler: option detail = 1 must lie between -0\.5 and 0\.5"):
        SAMPLERS["euler"].plan(SIGMAS, detail=1)
    with pytest.raises(ValueError, match="dpm_adaptive has no option 'detail'"):
        SAMPLERS["dpm_adaptive"].check_options({"detail": 0.1})
    with pytest.raises(ValueError, match="options: a plan takes no detail"):
        Recipe("euler", tuple(SIGMAS), options={"detail": 0.1})
