"""Samplers with added noise: what they converge to, what they keep, and where their noise comes from.

On Gaussian data the denoiser is linear, so the samples are Gaussian, and mean and variance follow from the plan
exactly, without drawing anything.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math

import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from mixture import (
    NOISE,
    ONE_PREDICTION,
    X1,
    denoiser,
    each_stochastic,
    flow_denoiser,
    levels,
    pointwise,
    relative_error,
    with_noise,
    without_noise,
)
from test_plan import alpha, runs

from samplers import SAMPLERS, SCHEDULES, integrate
from samplers.noise import BrownianNoise, _seed_of_normals, mix, noise_for
from samplers.processes import stable_diffusion_sigma, stable_diffusion_time

MEAN, VARIANCE = 0.7, 0.3
RANGE = {False: (3.0, 0.1), True: (0.8, 0.1)}
both_spaces = pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])

# sampler, options, weak order of the variance
SOLVERS = [
    ("dpmpp_2m_sde", {}, 2),
    ("dpmpp_2m_sde", {"solver_type": "heun"}, 2),
    ("dpmpp_2m_sde", {"eta": 0.5}, 2),
    ("dpmpp_3m_sde", {}, 2),
    ("dpmpp_3m_sde", {"solver_type": "exact", "eta": 0.5}, 2),
    ("dpmpp_sde", {}, 2),
    ("dpmpp_sde", {"eta": 0.5}, 2),
    ("dpmpp_2s_ancestral", {}, 2),
    ("dpmpp_2s_ancestral", {"eta": 0.5, "ancestral_step": "linear"}, 2),
    ("edm", {"s_churn": 3.0}, 2),
    ("dpm_2_ancestral", {}, 2),
    ("dpm_2_ancestral", {"eta": 0.5, "ancestral_step": "linear"}, 2),
    ("res_multistep_ancestral", {}, 2),
    ("res_multistep_ancestral", {"eta": 0.5, "ancestral_step": "linear"}, 2),
    ("er_sde", {}, 2),
    ("er_sde", {"eta": 0.5, "noise_scaler": "sde"}, 2),
    ("er_sde", {"order": 1}, 1),
    ("sa_solver", {}, 2),
    ("sa_solver", {"pece": True, "eta": 0.5}, 2),
    ("sa_solver", {"corrector_order": 0, "sde_start": 0.0, "sde_end": 1.0, "lower_order_final": False}, 2),
    ("restart", {}, 2),
    ("seeds_2", {}, 2),
    ("seeds_2", {"eta": 0.5, "r": 0.3, "solver_type": "heun"}, 2),
    ("seeds_3", {}, 2),
    ("exp_heun_2_x0_sde", {}, 2),
    ("euler_ancestral", {}, 1),
    ("euler_ancestral", {"eta": 0.5, "ancestral_step": "linear"}, 1),
    ("ddim", {"eta": 0.5}, 1),
    ("ddpm", {}, 1),
]
each_solver = pytest.mark.parametrize(("name", "options", "order"), SOLVERS)


def gaussian(flow: bool):
    """E[x_0 | x_t] for data of this mean and variance."""

    def denoise(x, sigma):
        s = sigma.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        a = 1 - s if flow else 1.0
        return (MEAN * s**2 + VARIANCE * a * x) / (a**2 * VARIANCE + s**2)

    return denoise


def marginal(sigma: float, flow: bool) -> tuple[float, float]:
    """Mean and variance of x_t."""
    a = alpha(sigma, flow)
    return a * MEAN, a**2 * VARIANCE + sigma**2


def moments(plan, sigmas, flow) -> tuple[float, float, float]:
    """Mean and variance of the last sample, and the share of the first sample that is left in it.

    A batch carries the parts of a sum that the plan, being linear, keeps apart: the constant, the first sample, and
    each draw of noise. Draws on overlapping intervals are correlated as increments of one path in SNR are.
    """
    count = sum(stage.noise is not None for stage in plan)
    x = torch.zeros(count + 2, 1, 1, dtype=torch.float64)
    x[1] = 1
    intervals: list[tuple[float, float]] = []

    def noise_sampler(sigma, sigma_next):
        z = torch.zeros_like(x)
        z[2 + len(intervals)] = 1
        intervals.append(tuple((alpha(s, flow) / s) ** 2 for s in (sigma, sigma_next)))
        return z

    parts = integrate(gaussian(flow), x, plan, disable=True, noise_sampler=noise_sampler).flatten()
    kept, gained = parts[1] - parts[0], parts[2:] - parts[0]
    low, high = torch.tensor(intervals, dtype=torch.float64).T
    overlap = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0)
    correlation = overlap / ((high - low)[:, None] * (high - low)).sqrt()
    mean, variance = marginal(sigmas[0], flow)
    return (
        (parts[0] + kept * mean).item(),
        (kept**2 * variance + gained @ correlation @ gained).item(),
        kept.item(),
    )


# What they converge to


@both_spaces
@each_solver
@pytest.mark.slow
def test_weak_order_on_gaussian_data(name, options, order, flow):
    """Mean exact, variance of the stated order; halving the steps, from the exact distribution at the first level."""
    errors = []
    for n in (64, 128, 256):
        sigmas = levels(n, *RANGE[flow], flow).tolist()
        mean, variance, _ = moments(SAMPLERS[name].plan(sigmas, flow=flow, **options), sigmas, flow)
        exact_mean, exact_variance = marginal(sigmas[-1], flow)
        assert mean == pytest.approx(exact_mean, abs=1e-12)
        errors.append(abs(variance - exact_variance) / exact_variance)
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@both_spaces
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_the_sde_forgets_its_start_at_the_right_rate(name, eta, flow):
    """What is left of x_s in x_t, with order 2. With v = sigma^2 / alpha^2 the SDE has

    (alpha_t / alpha_s) ((variance + v_t) / (variance + v_s))^((1 + eta) / 2).
    """
    errors = []
    for n in (64, 128, 256):
        sigmas = levels(n, *RANGE[flow], flow).tolist()
        a_s, a_t = alpha(sigmas[0], flow), alpha(sigmas[-1], flow)
        ratio = (VARIANCE + (sigmas[-1] / a_t) ** 2) / (VARIANCE + (sigmas[0] / a_s) ** 2)
        left = moments(SAMPLERS[name].plan(sigmas, flow=flow, eta=eta), sigmas, flow)[2]
        errors.append(abs(left / (a_t / a_s * ratio ** ((1 + eta) / 2)) - 1))
    assert errors[-1] < 1e-12 or math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.15)


@both_spaces
@each_solver
@pytest.mark.slow
def test_mean_and_variance_of_1e5_samples(name, options, order, flow):
    """The noise as it is drawn: the moments that the plan has with ideal noise, and those of the data, within 4.5
    standard errors (and the error of 24 steps)."""
    spec, count = SAMPLERS[name], 100_000
    sigmas = levels(24, *RANGE[flow], flow).tolist()
    mean, variance = marginal(sigmas[0], flow)
    generator = torch.Generator().manual_seed(4)
    x = mean + math.sqrt(variance) * torch.randn(1, 1, 250, 400, dtype=torch.float64, generator=generator)
    samples = spec.function(gaussian(flow), x, sigmas, disable=True, seed=11, flow=flow, **options)

    plan_mean, plan_variance, _ = moments(spec.plan(sigmas, flow=flow, **options), sigmas, flow)
    assert samples.mean().item() == pytest.approx(plan_mean, abs=4.5 * math.sqrt(plan_variance / count))
    assert samples.var().item() == pytest.approx(plan_variance, rel=4.5 * math.sqrt(2 / count))
    exact_mean, exact_variance = marginal(sigmas[-1], flow)
    assert samples.mean().item() == pytest.approx(exact_mean, abs=0.01)
    assert samples.var().item() == pytest.approx(exact_variance, rel=0.03 if order == 2 else 0.2)


@each_stochastic
@settings(max_examples=15, deadline=None)
@over(run=runs(ends=(None,)))
def test_a_constant_prediction_keeps_data_and_noise_in_their_shares(spec, run):
    """x = alpha D + sigma unit noise at every level: for constant D what is left of the first noise and all that was
    added make up sigma exactly, whatever the steps. Flow from pure noise too."""
    sigmas, flow = run
    plan = spec.plan(sigmas, flow=flow, **with_noise(spec))
    count = sum(stage.noise is not None for stage in plan)
    x = torch.zeros(count + 2, 1, 1, dtype=torch.float64)
    x[1] = sigmas[0]
    x += alpha(sigmas[0], flow) * 5.0
    calls = []

    def noise_sampler(sigma, sigma_next):
        calls.append((sigma, sigma_next))
        z = torch.zeros_like(x)
        z[1 + len(calls)] = 1
        return z

    out = integrate(lambda x, s: torch.full_like(x, 5.0), x, plan, disable=True, noise_sampler=noise_sampler).flatten()
    assert out[0].item() == pytest.approx(alpha(sigmas[-1], flow) * 5.0, abs=1e-11)
    assert (out[1:] - out[0]).norm().item() == pytest.approx(sigmas[-1], rel=1e-11)
    assert all(a > b >= 0 for a, b in calls)


@each_stochastic
@pytest.mark.parametrize(("sigmas", "flow"), [([9.0, 2.0, 0.0], False), ([1.0, 0.6, 0.0], True), ([5.0, 0.0], False)])
def test_at_sigma_zero_the_sample_is_the_last_prediction(spec, sigmas, flow):
    made = []

    def model(x, sigma):
        made.append(pointwise(x, sigma))
        return made[-1]

    x = spec.function(model, X1, sigmas, disable=True, seed=1, flow=flow, **with_noise(spec))
    assert torch.equal(x, made[-1])


def same(a: str, a_options: dict, b: str, b_options: dict, sigmas, flow=False) -> None:
    def noise_sampler(sigma, sigma_next):
        return NOISE * math.cos(9 * sigma + 4 * sigma_next)

    model = flow_denoiser if flow else denoiser
    x, y = (
        SAMPLERS[name].function(
            model, X1 * sigmas[0], sigmas, disable=True, flow=flow, noise_sampler=noise_sampler, **options
        )
        for name, options in ((a, a_options), (b, b_options))
    )
    torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


EDM_LEVELS, FLOW_LEVELS = [9.0, 5.0, 2.0, 0.7, 0.2, 0.05], [0.97, 0.8, 0.6, 0.35, 0.1]


@pytest.mark.parametrize(("sigmas", "flow"), [(EDM_LEVELS, False), (FLOW_LEVELS, True)], ids=["edm", "flow"])
def test_samplers_that_meet_at_certain_options(sigmas, flow):
    same("ddpm", {}, "ddim", {"eta": 1.0}, sigmas, flow)
    same("er_sde", {"eta": 0.7, "noise_scaler": "sde", "order": 1}, "dpmpp_2m_sde", {"eta": 0.7}, sigmas[:2], flow)
    same("sa_solver", {"eta": 0.8, "predictor_order": 2, "corrector_order": 0, "sde_start": 0.0, "sde_end": 1.0,
         "lower_order_final": False}, "dpmpp_2m_sde", {"eta": 0.64, "solver_type": "heun"}, sigmas, flow)  # fmt: skip
    same("restart", {"restarts": 0}, "heun", {}, sigmas, flow)
    same("res_multistep_ancestral", {"eta": 0.0}, "res_multistep", {}, sigmas, flow)
    same("lms", {}, "ipndm_v", {}, sigmas, flow)
    same("gradient_estimation", {"ge_gamma": 1.0}, "euler", {}, sigmas, flow)
    if not flow:
        same("dpm_2_ancestral", {"eta": 0.0}, "dpm_2s", {}, sigmas)
    same("euler_ancestral", {"eta": 0.6}, "ddim", {"eta": 0.6}, sigmas, flow)
    same("dpmpp_sde", {"eta": 0.0}, "dpmpp_2s", {}, sigmas, flow)
    same("dpmpp_2s_ancestral", {"eta": 0.0, "r": 0.4}, "dpmpp_2s", {"r": 0.4}, sigmas, flow)
    same("dpmpp_2m_sde", {"eta": 0.0}, "dpmpp_2m", {"lower_order_final": False}, sigmas, flow)
    same("edm", {"s_churn": 0.0}, "heun", {}, sigmas, flow)
    same("consistency", {"gamma": 0.0}, "ddim", {}, sigmas, flow)
    three = {"solver_type": "exact"}
    same("dpmpp_3m_sde", {"eta": 0.0, **three}, "dpmpp_3m", {"lower_order_final": False, **three}, sigmas, flow)


def test_the_two_ancestral_forms_meet_in_edm_space_at_eta_1():
    same("euler_ancestral", {"ancestral_step": "linear"}, "euler_ancestral", {}, EDM_LEVELS)
    with pytest.raises(AssertionError):
        same("euler_ancestral", {"ancestral_step": "linear"}, "euler_ancestral", {}, FLOW_LEVELS, True)


def sd_alphas() -> torch.Tensor:
    """Stable Diffusion's alpha_bar at the time steps 0 ... 999."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@pytest.mark.parametrize("gamma", [0.25, 0.5])
@pytest.mark.parametrize(("t", "prev"), [(999, 799), (799, 399), (399, 199)])
def test_tcd_step_by_its_own_formula(gamma, t, prev):
    """Zheng et al., Algorithm 2, in the notation of diffusers' TCDScheduler: denoise to time (1 - gamma) t, then noise.

    Times are counted from 1 here, so that none is left at gamma = 1; (prev + 1) (1 - gamma) is whole.
    """
    alpha_bar = sd_alphas()
    s = round((1 - gamma) * (prev + 1)) - 1
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    x, d = X1[:1], X1[1:2]
    eps = (x - d) / sigma[t]
    denoised = alpha_bar[s].sqrt() * d + (1 - alpha_bar[s]).sqrt() * eps
    ratio = alpha_bar[prev] / alpha_bar[s]
    theirs = (ratio.sqrt() * denoised + (1 - ratio).sqrt() * NOISE[:1]) / alpha_bar[prev].sqrt()
    ours = SAMPLERS["consistency"].function(
        lambda x, s: d, x, [sigma[t], sigma[prev]], disable=True, noise_sampler=lambda a, b: NOISE[:1], gamma=gamma
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_time_of_a_sigma_and_back():
    for sigma in (0.0, 0.01, 0.0292, 0.5, 3.0, 14.6, 80.0):
        assert stable_diffusion_sigma(stable_diffusion_time(sigma)) == pytest.approx(sigma, rel=1e-12, abs=1e-15)
    step_499 = ((1 - sd_alphas()[499]) / sd_alphas()[499]).sqrt().item()
    assert stable_diffusion_time(step_499) == pytest.approx(500, abs=1e-9)


@pytest.mark.parametrize(("sigmas", "flow"), [([9.0, 2.0, 0.3], False), ([0.9, 0.5, 0.2], True)])
def test_gamma_of_sigma(sigmas, flow):
    """Down to (1 - gamma) sigma in both spaces; in flow space that is the time."""
    plan = SAMPLERS["consistency"].plan(sigmas, flow=flow, gamma=0.3, gamma_of="sigma")
    for stage, t in zip(plan, sigmas[1:], strict=True):
        a_t, a_d = alpha(t, flow), alpha(0.7 * t, flow)
        assert stage.noise.scale == pytest.approx(math.sqrt(t**2 - (a_t / a_d * 0.7 * t) ** 2), rel=1e-12)
    by_time = SAMPLERS["consistency"].plan(sigmas, flow=flow, gamma=0.3)
    assert ([stage.noise for stage in by_time] == [stage.noise for stage in plan]) == flow


def test_consistency_sampling_by_its_formula():
    """gamma = 1 forgets the sample: alpha D + sigma z (LCM)."""
    sigmas, d = [0.9, 0.5, 0.2], X1[:1]
    x = SAMPLERS["consistency"].function(
        lambda x, s: d, X1[1:2], sigmas, disable=True, flow=True, noise_sampler=lambda a, b: NOISE[:1]
    )
    torch.testing.assert_close(x, 0.8 * d + 0.2 * NOISE[:1])


def test_churn_by_its_formula():
    """Karras et al., Algorithm 2, written out; with the bounds on sigma, and the levels that the callback is told."""
    sigmas, churn, low, high, s_noise = [9.0, 5.0, 2.0, 0.7, 0.2, 0.0], 1.5, 0.5, 6.0, 1.007
    seen, hats = [], []
    x = X1 * sigmas[0]
    for s, t in itertools.pairwise(sigmas):
        gamma = min(churn / 5, math.sqrt(2) - 1) if low <= s <= high else 0.0
        hat = s * (1 + gamma)
        hats.append(hat)
        x = x + math.sqrt(hat**2 - s**2) * s_noise * NOISE
        d = (x - denoiser(x, torch.full((3,), hat, dtype=torch.float64))) / hat
        y = x + (t - hat) * d
        if t:
            d_2 = (y - denoiser(y, torch.full((3,), t, dtype=torch.float64))) / t
            y = x + (t - hat) * (d + d_2) / 2
        x = y
    ours = SAMPLERS["edm"].function(
        denoiser, X1 * sigmas[0], sigmas, callback=seen.append, disable=True, noise_sampler=lambda a, b: NOISE,
        s_churn=churn, s_tmin=low, s_tmax=high, s_noise=s_noise,
    )  # fmt: skip
    assert relative_error(ours, x) < 1e-13
    assert [info["i"] for info in seen] == [0, 1, 2, 3, 4]
    assert [info["sigma"].item() for info in seen] == sigmas[:-1]
    assert [info["sigma_hat"].item() for info in seen] == pytest.approx(hats, rel=1e-14)


@each_stochastic
def test_no_noise_on_the_way_up(spec):
    with pytest.raises(ValueError, match=r"up to .* cannot add noise: to invert .* set the option .* to 0"):
        spec.function(denoiser, X1, [0.1, 0.5, 2.0], disable=True, seed=0, **with_noise(spec))
    if spec.id != "ddpm":
        spec.function(denoiser, X1, [0.1, 0.5, 2.0], disable=True, **without_noise(spec))


@each_stochastic
def test_s_noise_scales_the_noise_of_every_stage(spec):
    options = with_noise(spec)
    plain, scaled, none = (spec.plan(EDM_LEVELS, s_noise=s, **options) for s in (1.0, 1.01, 0.0))
    assert any(stage.noise for stage in plain)
    for a, b, c in zip(plain, scaled, none, strict=True):
        assert c.noise is None and a.update.terms == b.update.terms == c.update.terms
        if a.noise:
            assert b.noise.scale == pytest.approx(1.01 * a.noise.scale, rel=1e-15)
            assert b.noise[1:] == a.noise[1:]


@pytest.mark.parametrize("eta", [1.5, 4.0])
@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "ddim"])
def test_eta_above_1_replaces_all_noise_at_most(name, eta):
    """Where the formula would make the variance of the noise kept negative, all of it is fresh."""
    plan = SAMPLERS[name].plan([9.0, 1.0, 0.5], eta=eta)
    last = [stage for stage in plan if stage.step == 0][-1]
    assert last.noise.scale == pytest.approx(1.0)
    assert all(stage.noise.scale <= stage.noise.sigma_next * (1 + 1e-12) for stage in plan)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@each_stochastic
@both_spaces
def test_derivative_with_respect_to_the_inner_levels(spec, flow):
    model, sigmas = (flow_denoiser, [0.9, 0.75, 0.5, 0.3, 0.1]) if flow else (denoiser, [3.0, 1.9, 1.1, 0.6, 0.4])

    def sample(inner):
        ends = torch.tensor([sigmas[0], sigmas[-1]], dtype=torch.float64)
        plan = spec.plan(torch.cat([ends[:1], inner, ends[1:]]), flow=flow, **with_noise(spec))
        return integrate(model, X1[:1], plan, disable=True, noise_sampler=lambda a, b: NOISE[:1])

    inner = torch.tensor(sigmas[1:-1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sample, (inner,), rtol=1e-5, atol=1e-6, fast_mode=True)


# Where the noise comes from


SHAPES = [(4, 4, 16, 16), (4, 16, 3, 6, 5), (4, 4, 9)]


def draw(count: int, seed: int = 7, shape=SHAPES[0], flow: bool = False, dtype=torch.float32, pairs=None):
    noise = BrownianNoise(torch.zeros(count, *shape[1:], dtype=dtype), seed, flow=flow)
    return torch.stack([noise(a, b) for a, b in pairs or [(14.6, 7.0), (7.0, 2.2), (2.2, 0.3), (0.3, 0.03)]])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_noise_of_an_image_does_not_depend_on_the_batch(shape):
    """Image k of a batch of 4, drawn in batches of 1, 2 and 3: bit for bit."""
    whole = draw(4, shape=shape)
    for count in (1, 2, 3):
        assert torch.equal(draw(count, shape=shape), whole[:, :count])
    first, second = whole[:, 0], whole[:, 1]
    assert (first - second).abs().mean() > 0.5


@each_stochastic
@both_spaces
def test_samples_of_an_image_do_not_depend_on_the_batch(spec, flow):
    """With a model that works element by element, bit for bit."""
    sigmas = FLOW_LEVELS if flow else EDM_LEVELS
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def sample(count):
        options = with_noise(spec)
        return spec.function(pointwise, x[:count], sigmas, {}, disable=True, seed=3, flow=flow, **options)

    def pointwise(x, sigma):
        return x * 0.5

    whole = sample(4)
    for count in (1, 2, 3):
        assert torch.equal(sample(count), whole[:count])


@each_stochastic
def test_seed(spec):
    """As an argument, from extra_args as the host gives it, or from torch's generator."""
    options = with_noise(spec)

    def sample(extra_args=None, **more):
        def model(x, sigma, **extra):
            return pointwise(x, sigma)

        return spec.function(model, X1, EDM_LEVELS, extra_args, disable=True, **options, **more)

    assert torch.equal(sample(seed=5), sample(seed=5))
    assert torch.equal(sample(seed=5), sample({"seed": 5}))
    assert torch.equal(sample({"seed": 9}, seed=5), sample(seed=5))
    assert not torch.allclose(sample(seed=5), sample(seed=6), atol=1e-3)
    assert not torch.allclose(sample(seed=5), sample(seed=2**64 - 5), atol=1e-3)
    torch.manual_seed(1)
    first, second = sample(), sample()
    torch.manual_seed(1)
    assert torch.equal(first, sample()) and not torch.equal(first, second)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (1.5, "seed = 1.5 must be a whole number"),
        ("7", "seed = '7' must be a whole number"),
        ([1, None, 3], "seed = None must be a whole number"),
        ([1, 2], "seed holds 2 numbers for 3 images: give one for each, or one for all"),
    ],
)
def test_a_seed_that_is_no_whole_number(seed, message):
    for arguments in ({"seed": seed}, {"extra_args": {"seed": seed}}):
        with pytest.raises(ValueError, match=message):
            SAMPLERS["ddpm"].function(pointwise, X1, EDM_LEVELS, disable=True, **arguments)


@each_stochastic
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_image_with_a_seed_of_its_own_is_the_same_alone_and_in_any_row(spec, shape):
    """Bit for bit; two images with one seed have the same noise."""

    def sample(seeds):
        x = torch.ones(len(seeds), *shape[1:])
        return spec.function(lambda x, sigma: x * 0.5, x, EDM_LEVELS, disable=True, seed=seeds, **with_noise(spec))

    whole = sample([5, 2**64 - 1, -3, 5])
    for row, seed in enumerate([5, 2**64 - 1, -3, 5]):
        assert torch.equal(sample([seed])[0], whole[row])
    assert torch.equal(whole[0], whole[3])
    assert (whole[0] - whole[1]).abs().max() > 0.1


def test_noise_is_the_same_in_every_dtype_and_on_every_schedule():
    exact = draw(2)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert torch.equal(draw(2, dtype=dtype), exact.to(dtype))
    assert torch.equal(draw(2, pairs=[(2.2, 0.3)])[0], exact[2])


def test_gpu_noise_is_drawn_on_the_device_of_the_model(monkeypatch):
    from samplers import sampler as specs

    devices = []

    def watch(plan, x, seed, *, flow, device):
        devices.append(str(device))
        return noise_for(plan, x, seed, flow=flow)

    monkeypatch.setattr(specs, "noise_for", watch)
    for choice in ("cpu", "gpu"):
        x = X1.to("meta") if choice == "gpu" else X1  # the device without memory: the final check cannot read it
        with pytest.raises(NotImplementedError) if choice == "gpu" else contextlib.nullcontext():
            SAMPLERS["ddpm"].function(pointwise, x, EDM_LEVELS, disable=True, seed=1, noise_device=choice)
    assert devices == ["cpu", "meta"]


@both_spaces
def test_noise_has_unit_variance_and_steps_are_independent(flow):
    sigmas = [1.0, 0.99, 0.7, 0.4, 0.399, 0.1, 0.02] if flow else [80.0, 14.6, 3.0, 2.7, 2.699, 1.0, 0.4, 0.03, 0.002]
    noise = BrownianNoise(torch.zeros(1, 250, 400, dtype=torch.float64), 1, flow=flow)
    z = torch.stack([noise(a, b).flatten() for a, b in itertools.pairwise(sigmas)])
    covariance = z @ z.T / z.shape[1]
    assert (covariance - torch.eye(len(z), dtype=torch.float64)).abs().max() < 4.5 * math.sqrt(2 / z.shape[1])
    assert z.mean(1).abs().max() < 4.5 / math.sqrt(z.shape[1])


@both_spaces
def test_a_step_gets_what_its_halves_get_together(flow):
    """In units of the data the noise of the SDE has the SNR as its clock: W(s, t) = W(s, m) + W(m, t)."""
    sigmas = (0.9, 0.5, 0.02) if flow else (9.0, 1.3, 0.2)
    s, m, t = sigmas
    snr = [(alpha(x, flow) / x) ** 2 for x in sigmas]
    noise = BrownianNoise(torch.zeros(2, 4, 8, 8, dtype=torch.float64), 3, flow=flow)
    whole = math.sqrt(snr[2] - snr[0]) * noise(s, t)
    halves = math.sqrt(snr[1] - snr[0]) * noise(s, m) + math.sqrt(snr[2] - snr[1]) * noise(m, t)
    assert (whole - halves).abs().max() < 1e-6 * math.sqrt(snr[2])  # rounding of X in float32
    assert torch.equal(noise(s, t), noise(t, s))  # a label, whichever way round
    parts_first = BrownianNoise(torch.zeros(2, 4, 8, 8, dtype=torch.float64), 3, flow=flow)
    late, early = parts_first(m, t), parts_first(s, m)
    halves = math.sqrt(snr[1] - snr[0]) * early + math.sqrt(snr[2] - snr[1]) * late
    whole = math.sqrt(snr[2] - snr[0]) * parts_first(s, t)
    assert (whole - halves).abs().max() < 1e-6 * math.sqrt(snr[2])


@both_spaces
@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "euler_ancestral"])
@pytest.mark.slow
def test_more_steps_follow_the_same_path(name, flow):
    """With one seed the sample converges with order 1 as the steps are halved; another seed gives another sample.

    By rights a run of n steps is half as far from the limit as one of n / 2; that is, from one of 512 steps.
    """
    spec = SAMPLERS[name]
    x = RANGE[flow][0] * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def sample(n, seed=5):
        sigmas = levels(n, *RANGE[flow], flow)
        return spec.function(gaussian(flow), x, sigmas, disable=True, flow=flow, seed=seed)

    fine = sample(2048)
    errors = [(sample(n) - fine).square().mean().sqrt().item() for n in (16, 128, 512)]
    slope = math.log2(errors[1] / errors[2]) / 2
    assert slope == pytest.approx(1, abs=0.2)  # the skeleton has 4 steps or 2 to an interval
    assert errors[0] / errors[1] > 4  # before, with steps longer than 1/16, it stays the same
    assert errors[1] < 0.02 * (sample(128, seed=6) - fine).square().mean().sqrt().item()


def total(noise, lambdas) -> torch.Tensor:
    """What the path gains in all on its way through these lambdas, in units of the data at the last."""
    gained = 0.0
    for a, b in itertools.pairwise(lambdas):
        z = noise(math.exp(-a), math.exp(-b))
        gained = gained + math.sqrt(math.exp(2 * (b - lambdas[-1])) - math.exp(2 * (a - lambdas[-1]))) * z
    return gained


@pytest.mark.parametrize("seed", [0, 1])
def test_runs_of_any_length_agree_at_the_skeleton(seed):
    """Multiples of 1/4 in lambda are places of every path; and of 1/8 where steps are shorter than 1/16, and so on."""
    x = torch.zeros(2, 4, 8, 8)

    def between(low, high, steps):
        inner = [low + (high - low) * (k + 0.3) / steps for k in range(steps)]
        return total(BrownianNoise(x, seed, ends=(math.exp(2.63), math.exp(-3.5))), [low, *inner, high])

    for low, high in ((-2.0, 2.5), (-0.5, 0.0), (1.0, 4.5)):
        runs = [between(low, high, steps) for steps in (1, 4, 7, 20)]
        assert all((run - runs[0]).abs().max() < 1e-5 for run in runs)
    deeper = [between(0.125, 0.375, steps) for steps in (9, 23)]
    assert (deeper[0] - deeper[1]).abs().max() < 1e-5
    assert (between(0.125, 0.375, 2) - deeper[0]).abs().max() > 0.1


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("meet", [0.45, 0.13])
def test_the_noise_of_a_run_in_two_parts_is_that_of_one_run(meet, white):
    """Wherever they meet: unit variance, independent steps. Bit for bit that of the whole run outside of the interval
    of the skeleton in which they meet, and in it where the level is the first there (lambda = 0.13) or noise is white.
    """
    lambdas = [-2.1, -0.9, 0.13, 0.35, 0.45, 1.2, 2.9]
    cut = lambdas.index(meet)
    x = torch.zeros(1, 1, 250, 400)

    def run(lambdas):
        sigmas = [math.exp(-lam) for lam in lambdas]
        noise = BrownianNoise(x, 1, white=white, ends=(sigmas[0], sigmas[-1]))
        return [noise(a, b) for a, b in itertools.pairwise(sigmas)]

    parts, whole = run(lambdas[: cut + 1]) + run(lambdas[cut:]), run(lambdas)
    z = torch.stack(parts).flatten(1)
    assert (z @ z.T / z.shape[1] - torch.eye(len(z))).abs().max() < 4.5 * math.sqrt(2 / z.shape[1])
    same = [torch.equal(part, one) for part, one in zip(parts, whole, strict=True)]
    assert all(same) if white or meet == 0.13 else same[0] and same[-1]


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_sde"])
@pytest.mark.parametrize("schedule", ["karras", "exponential", "time_uniform", "beta"])
@pytest.mark.parametrize("steps", [8, 20, 30])
def test_a_run_in_two_parts_has_the_noise_of_the_whole(name, schedule, steps):
    """Bit for bit, where no other level of it lies in the same quarter of lambda as the one where they meet."""
    spec, x = SAMPLERS[name], torch.zeros(1, 1, 4, 4)
    sigmas = SCHEDULES[schedule].function(steps, 0.0292, 14.6146).tolist()

    def run(sigmas):
        plan = spec.plan(sigmas)
        noise = noise_for(plan, x, 0)
        return [noise(*stage.noise[1:]) for stage in plan if stage.noise]

    placed = {s for stage in spec.plan(sigmas) if stage.noise for s in stage.noise[1:]}
    quarters = [math.floor(-math.log(sigma) * 4) for sigma in placed]
    whole, compared = run(sigmas), 0
    for cut in range(1, steps - 1):
        if quarters.count(math.floor(-math.log(sigmas[cut]) * 4)) == 1:
            compared += 1
            assert all(map(torch.equal, run(sigmas[: cut + 1]) + run(sigmas[cut:]), whole))
    assert compared >= (1 if steps < 30 else 0)


def test_overlapping_intervals_have_the_correlation_of_a_path():
    """In the order in which two-stage samplers ask: from s to u, then from s to t; going back, and far out."""
    noise = BrownianNoise(torch.zeros(1, 1, 500, 400), 4)
    asked = [
        (9.0, 4.0),
        (9.0, 2.0),
        (4.0, 2.0),
        (2.0, 1.9),
        (2.0, 1.0),
        (7.0, 3.0),
        (80.0, 0.01),
        (1e9, 1e8),
        (9.0, 4.0),
    ]
    z = torch.stack([noise(a, b).flatten() for a, b in asked])
    snr = torch.tensor(asked, dtype=torch.float64) ** -2
    low, high = snr.T
    overlap = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0)
    expected = overlap / ((high - low)[:, None] * (high - low)).sqrt()
    assert (z @ z.T / z.shape[1] - expected).abs().max() < 4.5 * math.sqrt(2 / z.shape[1])
    assert torch.equal(z[0], z[-1])


def test_the_noise_of_pure_noise_begins_at_minus_infinity():
    """From sigma = 1 of a flow model nothing is known before: W itself is gained, and steps stay independent."""
    noise = BrownianNoise(torch.zeros(1, 1, 250, 400), 4, flow=True)
    z = torch.stack([noise(a, b).flatten() for a, b in ((1.0, 0.97), (0.97, 0.5), (1.0, 0.5))])
    snr = [((1 - s) / s) ** 2 for s in (0.97, 0.5)]
    whole = math.sqrt(snr[0]) * z[0] + math.sqrt(snr[1] - snr[0]) * z[1]
    torch.testing.assert_close(whole, math.sqrt(snr[1]) * z[2], rtol=0, atol=1e-6)
    assert (z[:2] @ z[:2].T / z.shape[1] - torch.eye(2)).abs().max() < 4.5 * math.sqrt(2 / z.shape[1])


def test_consistency_sampling_draws_noise_of_its_levels_alone():
    """It keeps nothing of the sample, so each level has noise of its own, whatever the levels before it."""
    plan = SAMPLERS["consistency"].plan(EDM_LEVELS)
    noise = noise_for(plan, torch.zeros(1, 1, 250, 400), 4)
    z = torch.stack([noise(a, b).flatten() for a, b in itertools.pairwise(EDM_LEVELS)])
    assert noise.draws == len(z)
    assert (z @ z.T / z.shape[1] - torch.eye(len(z))).abs().max() < 4.5 * math.sqrt(2 / z.shape[1])
    other = noise_for(SAMPLERS["consistency"].plan([7.0, 2.0, 0.2]), torch.zeros(1, 1, 250, 400), 4)
    assert torch.equal(other(7.0, 2.0).flatten(), z[1])
    partly = noise_for(SAMPLERS["consistency"].plan(EDM_LEVELS, gamma=0.3), torch.zeros(1, 1, 250, 400), 4)
    assert (partly(5.0, 2.0).flatten() - z[1]).abs().max() > 1


@each_stochastic
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("schedule", ["karras", "exponential", "time_uniform", "beta"])
@pytest.mark.parametrize(("steps", "most"), [(20, 4), (4, 8)])
def test_noise_takes_few_draws(spec, flow, schedule, steps, most):
    """Draws of a batch for each step; those of steps after one another share the skeleton."""
    sigmas = SCHEDULES[schedule].function(steps, *((0.001, 1.0) if flow else (0.0292, 14.6146))).tolist()
    plan = spec.plan(sigmas, flow=flow, **with_noise(spec))
    steps_of_noise = [stage.noise[1:] for stage in plan if stage.noise]
    if not steps_of_noise:  # no level lies where `restart` and `sa_solver` add some
        assert spec.id in ("restart", "sa_solver")
        return
    noise = noise_for(plan, torch.zeros(2, 1, 4, 4), 0, flow=flow)
    for sigma, sigma_next in steps_of_noise:
        noise(sigma, sigma_next)
    assert noise.draws <= most * steps


@pytest.mark.parametrize("restarts", [1, 4])
def test_restarts_are_no_places_within_a_step(restarts):
    """However often noise is added again, it is that of the usual skeleton."""
    x, spec = torch.zeros(1, 1, 8, 8), SAMPLERS["restart"]
    adding = [stage.noise for stage in spec.plan(EDM_LEVELS, restarts=restarts) if stage.noise]
    noise = BrownianNoise(x, 1, ends=(adding[0].sigma, adding[-1].sigma_next))
    own, usual = (
        spec.function(lambda x, sigma: x * 0.5, x, EDM_LEVELS, disable=True, restarts=restarts, **source)
        for source in ({"seed": 1}, {"noise_sampler": noise})
    )
    assert torch.equal(own, usual)


STORED_STEPS = {
    False: [(14.6, 7.0), (7.0, 2.2), (2.2, 0.3), (0.3, 0.03)],
    True: [(1.0, 0.97), (0.97, 0.5), (0.5, 0.02)],
}
STORED_NOISE = [
    # flow, options, shape, noise of the second image in each step at three places
    (
        False,
        {},
        (2, 4, 8, 8),
        [
            [0.431001, -2.894837, -0.247049],
            [0.056592, -0.423915, -0.781037],
            [0.489153, 1.158865, -0.383973],
            [1.615624, 1.007113, -2.053305],
        ],
    ),
    (
        True,
        {},
        (2, 3, 2, 5, 7),
        [[0.613322, -1.978736, 0.388317], [0.244558, -1.055211, 1.340421], [0.305446, 0.194067, -0.817809]],
    ),
    (
        False,
        {"white": True},
        (2, 4, 9),
        [
            [-0.896421, -0.528487, -1.007951],
            [0.984474, 1.423391, 0.322548],
            [0.303334, -0.208803, -1.004401],
            [0.783944, 1.35313, 0.097901],
        ],
    ),
    (
        False,
        {"coarseness": 4.0},
        (2, 4, 9),
        [
            [0.553471, -2.914902, 0.965071],
            [-0.703476, -0.261038, 1.355946],
            [0.801374, 0.334968, 1.302732],
            [1.618451, 0.951394, 0.279468],
        ],
    ),
]


@pytest.mark.parametrize(("flow", "options", "shape", "stored"), STORED_NOISE)
def test_noise_of_a_seed_stays_what_it_is(flow, options, shape, stored):
    """The numbers of an image are a promise, and must not change any more. Their transform rounds as the processor
    does."""
    noise = BrownianNoise(torch.zeros(shape), 7, flow=flow, **options)
    drawn = torch.stack([noise(a, b)[1].flatten()[[0, 3, -1]] for a, b in STORED_STEPS[flow]])
    torch.testing.assert_close(drawn, torch.tensor(stored), rtol=0, atol=1e-5)


def test_the_normals_of_a_seed_stay_which_they_are():
    """Exactly: the seeds of images, the places of a path, the seeds of their normals."""
    assert [mix(0, 0), mix(7, 1), mix(-1, 2**64 - 1)] == [
        12035550249420947055,
        2875738036014693257,
        5860843724407469298,
    ]
    assert [_seed_of_normals(mix(7, 1), key) for key in (1, 2, 3, 47)] == [
        550375706,
        2193664198,
        1665135442,
        4131040530,
    ]
    noise = BrownianNoise(torch.zeros(1, 1, 4, 4), 7, ends=(14.6, 0.03))
    drawn = []
    noise._normals = lambda key, deviation=1.0: drawn.append(key) or torch.zeros(1, 1, 4, 4)
    for a, b in STORED_STEPS[False]:
        noise(a, b)
    assert drawn == [1, 2, 5, 10, 21, 42, 85, 11, 22, 44, 88, 23, 46, 92, 3, 6, 12, 25, 50, 100, 13, 27, 55, 110]
    assert len({_seed_of_normals(mix(7, 1), key) for key in range(100_000)}) == 100_000  # no two places share any


def test_without_noise_no_number_is_drawn(monkeypatch):
    """At eta = 0, gamma = 0 and s_noise = 0, none from torch's generator either."""
    from samplers import sampler as specs

    monkeypatch.delattr(specs, "noise_for")
    state = torch.get_rng_state()
    for spec in ONE_PREDICTION:
        options = {"s_noise": 0.0} if spec.id == "ddpm" else without_noise(spec)
        spec.function(pointwise, X1, [9.0, 3.0, 1.0, 0.0], disable=True, **options)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(NameError):
        SAMPLERS["ddpm"].function(pointwise, X1, [9.0, 3.0, 1.0, 0.0], disable=True)


def test_levels_too_close_for_the_noise():
    with pytest.raises(ValueError, match="too close"):
        BrownianNoise(X1, 0)(1.0, 1.0 - 1e-9)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.ones(1, 1, 4, 4), r"a tensor of shape \[1, 1, 4, 4\]"),
        (torch.ones(3, 1, 4, 5), r"a tensor of shape \[3, 1, 4, 5\]"),
        (None, "NoneType"),
        (1.0, "float"),
    ],
)
def test_noise_of_another_shape(answer, message):
    start = r"the noise_sampler must return noise, shaped like x, \[3, 1, 4, 4\]; it returned "
    with pytest.raises(ValueError, match=start + message):
        SAMPLERS["ddpm"].function(pointwise, X1, EDM_LEVELS, disable=True, noise_sampler=lambda a, b: answer)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@each_stochastic
def test_noise_of_another_dtype_does_not_change_that_of_the_sample(spec, dtype):
    x = X1.float()

    def noise_sampler(sigma, sigma_next):
        return NOISE.to(dtype)

    result = spec.function(pointwise, x, EDM_LEVELS, disable=True, noise_sampler=noise_sampler, **with_noise(spec))
    assert result.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
@pytest.mark.parametrize("shape", [(2, 4, 9), (2, 4, 6, 5), (2, 4, 3, 6, 5)])
@each_stochastic
def test_every_dtype_and_shape_with_noise(spec, shape, dtype, tolerance):
    x = 9 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen = []

    def sample(x):
        def model(x, sigma):
            assert x.shape == shape
            return pointwise(x.double(), sigma.double()).to(x.dtype)

        return spec.function(model, x, EDM_LEVELS, callback=seen.append, disable=True, seed=1, **with_noise(spec))

    result, exact = sample(x.to(dtype)), sample(x)
    assert result.dtype == dtype
    assert (result.double() - exact).abs().max() <= tolerance * exact.abs().max()
    assert [info["i"] for info in seen] == 2 * list(range(len(EDM_LEVELS) - 1))


def test_memory_of_the_noise_is_that_of_a_few_samples():
    """Over a whole run: the places on the way to its last two levels. And nothing is kept after it."""
    x = torch.zeros(1, 4, 32, 32)
    sigmas = levels(60, 14.6, 0.03).tolist()
    noise = BrownianNoise(x, 0)

    def living() -> int:
        return sum(type(t) is torch.Tensor and t.shape == x.shape for t in gc.get_objects())

    gc.collect()
    gc.freeze()  # what is there already is not among the objects, of which the host alone has millions
    gc.disable()
    try:
        assert living() == 0
        most = 0
        for s, t in itertools.pairwise(sigmas):
            noise(s, t)
            most = max(most, living())
        noise.close()
        left = living()
    finally:
        gc.enable()
        gc.unfreeze()
    assert 1 <= most <= 16
    assert left == 0


@pytest.mark.parametrize(("schedule", "steps"), [("beta", 3000), ("linear_quadratic", 3000), ("karras", 10000)])
def test_noise_for_very_many_steps(schedule, steps):
    """Levels that differ in float32 get noise; that of neighbours is independent and of unit variance."""
    sigmas = SCHEDULES[schedule].function(steps, 0.0292, 14.6146).float().tolist()
    noise = BrownianNoise(torch.zeros(1, 1, 60, 60), 0)
    z = torch.stack([noise(a, b).flatten() for a, b in itertools.islice(itertools.pairwise(sigmas), 8)])
    assert ((z @ z.T / z.shape[1]) - torch.eye(8)).abs().max() < 4.5 * math.sqrt(2 / z.shape[1])


def test_there_is_no_noise_for_a_step_to_zero():
    with pytest.raises(ValueError, match="no noise for the step from sigma = 1 to 0"):
        BrownianNoise(X1, 0)(1.0, 0.0)
