"""Two samplers as one: what the chain takes over, and where the second one begins anew."""

from __future__ import annotations

import math

import pytest
import torch
from mixture import NOISE, SIGMA_MIN, X1, denoiser, flow_denoiser, given, levels, pointwise, relative_error, solution

from samplers import SAMPLERS, Guided, integrate
from samplers.chain import chained
from samplers.levels import first_below

PLANNED = [id for id, spec in SAMPLERS.items() if not spec.adaptive]
SIGMAS = [14.0, 8.0, 5.0, 3.1, 1.7, 0.9, 0.3, 0.1, 0.0]
N = len(SIGMAS) - 1
FLOW = [1.0, 0.93, 0.8, 0.66, 0.5, 0.3, 0.15, 0.05, 0.0]


def chain(first, second, step=0, sigma=0.0, first_options=(), second_options=()):
    options = dict(first_options), dict(second_options)
    return chained(SAMPLERS[first], options[0], SAMPLERS[second], options[1], step=step, sigma=sigma)


def numbers(plan):
    """All that a plan says."""
    return [
        (s.step, s.sigma, dict(s.update.terms), dict(s.prediction.terms), s.completes, s.noise and tuple(s.noise))
        for s in plan
    ]


def noise_sampler(sigma, sigma_next):
    return NOISE * math.cos(3 * float(sigma) + 2 * float(sigma_next))


def run(spec, sigmas=SIGMAS, flow=False, model=None, x=None, **options):
    model = model or (flow_denoiser if flow else denoiser)
    if spec.takes_apart:
        plain = model

        def model(x, sigma):
            denoised = plain(x, sigma)
            return Guided(denoised + 0.1 * denoised.sin(), denoised)

    x = sigmas[0] * X1 if x is None else x
    return spec.function(model, x, sigmas, disable=True, flow=flow, noise_sampler=noise_sampler, **options)


@pytest.mark.parametrize("id", PLANNED)
def test_a_sampler_after_itself_is_its_run_to_the_bit(id):
    """At every step, in both spaces, also with steps of several evaluations, with levels of its own and with noise."""
    spec = SAMPLERS[id]
    for sigmas, flow in ((SIGMAS, False), (SIGMAS[:-1], False), (FLOW, True)):
        options = given(spec, eta=0.7, s_noise=0.9, s_churn=2.0, gamma=0.4, restarts=2, detail=0.1)
        whole = numbers(spec.plan(sigmas, flow=flow, **options))
        for step in range(N + 2):
            made = chain(id, id, step, first_options=options, second_options=options)
            assert numbers(made.plan(sigmas, flow=flow)) == whole
    assert torch.equal(run(chain(id, id, 4)), run(spec))


DATA = ("dpmpp_2m", "dpmpp_3m", "unipc", "res_multistep")
PREDICTED_NOISE = ("dpm_2m", "dpm_3m")
DERIVATIVE = ("ipndm", "ipndm_v", "deis", "lms", "gradient_estimation")


@pytest.mark.parametrize("first", [*DATA, *PREDICTED_NOISE, *DERIVATIVE])
@pytest.mark.parametrize("second", [*DATA[:2], "dpm_3m", "ipndm_v", "deis", "gradient_estimation"])
@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
def test_history_is_handed_on_where_both_remember_the_same(first, second, flow):
    """The steps of the second are then those of its own run; otherwise those of a run that begins there. The derivative
    in sigma is the predicted noise in EDM space, and the velocity in rectified flow."""
    families = [DATA, PREDICTED_NOISE, DERIVATIVE] if flow else [DATA, PREDICTED_NOISE + DERIVATIVE]
    same = any({first, second} <= {*family} for family in families)
    options = [given(SAMPLERS[id], lower_order_final=False) for id in (first, second)]
    sigmas = FLOW[1:] if flow else SIGMAS
    whole = SAMPLERS[second].plan(sigmas, flow=flow, **options[1])
    for step in (1, 2, 5):
        made = chain(first, second, step, first_options=options[0], second_options=options[1])
        found = [stage for stage in made.plan(sigmas, flow=flow) if stage.step >= step]
        anew = SAMPLERS[second].plan(sigmas[step:], flow=flow, **options[1])
        updates = [[dict(stage.update.terms) for stage in plan] for plan in (found, whole[step:], anew)]
        assert updates[1] != updates[2]
        assert updates[0] == updates[1 if same else 2]


@pytest.mark.parametrize(
    ("first", "second"), [("dpmpp_2m", "dpmpp_3m"), ("unipc", "dpmpp_3m"), ("dpmpp_2s", "dpmpp_2m")]
)
def test_the_order_is_that_of_the_lower_one(first, second):
    """No step at the change has a lower order than 2, or one that has, once in a run, does no harm."""
    errors = []
    for n in (64, 128, 256):
        sigmas = levels(n, 2.0, SIGMA_MIN)
        options = [given(SAMPLERS[id], lower_order_final=False) for id in (first, second)]
        plan = chain(first, second, n // 2, first_options=options[0], second_options=options[1]).plan(sigmas)
        x = integrate(denoiser, solution(2.0), plan, disable=True)
        errors.append(relative_error(x, solution(SIGMA_MIN)))
    assert math.log2(errors[0] / errors[2]) / 2 > 1.75


def test_a_step_of_several_evaluations_and_a_correction_are_finished_first():
    """UniPC corrects a sample at the next evaluation, which is another sampler's: that takes the predicted one."""
    for first in ("unipc", "heun", "dpmpp_2s", "rk4", "edm", "dpmpp_sde"):
        options = given(SAMPLERS[first], eta=0.0, lower_order_final=False)
        for second in ("dpmpp_2s", "heun", "euler", "dpmpp_2m"):
            found = run(chain(first, second, 3, first_options=options, second_options={}))
            half = SAMPLERS[first].plan(SIGMAS[:4], **options)
            x = integrate(denoiser, 14 * X1, half, disable=True)
            if (first, second) == ("unipc", "dpmpp_2m"):
                continue  # which hands its history on
            same = run(SAMPLERS[second], SIGMAS[3:], x=x)
            torch.testing.assert_close(found, same, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", ["dpm_fast", "amed", "amed_dpm_2s", "restart"])
def test_a_sampler_with_levels_of_its_own_ends_at_the_change(first):
    """Its part of the run is one of its own; the other goes on from the level that it was given."""
    for step in (2, 3, 5):
        found = run(chain(first, "euler", step))
        x = run(SAMPLERS[first], SIGMAS[: step + 1])
        same = run(SAMPLERS["euler"], SIGMAS[step:], x=x)
        if first == "restart" and step == 5:
            continue  # where the interval that it goes through again is cut by the change
        torch.testing.assert_close(found, same, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("id", ["dpm_fast", "amed_dpm_2m", "restart", "plms", "consistency", "ddpm"])
def test_any_sampler_can_be_the_second(id):
    found = run(chain("euler", id, 3))
    x = run(SAMPLERS["euler"], SIGMAS[:4])
    torch.testing.assert_close(found, run(SAMPLERS[id], SIGMAS[3:], x=x), rtol=1e-11, atol=1e-11)


def test_from_pure_noise():
    for first, second in (("euler", "dpmpp_3m"), ("dpmpp_2m", "dpmpp_3m"), ("dpm_2m", "unipc")):
        for step in (1, 2, 4):
            assert run(chain(first, second, step), FLOW, flow=True).isfinite().all()


# Where it changes


def test_steps_beyond_the_run_and_none():
    euler, heun = run(SAMPLERS["euler"]), run(SAMPLERS["heun"])
    for step in (N, N + 1, 1000):
        assert torch.equal(run(chain("euler", "heun", step)), euler)
    assert torch.equal(run(chain("euler", "heun", 0)), heun)
    assert torch.equal(run(chain("euler", "heun", 3), [9.0]), 9 * X1)


@pytest.mark.parametrize(("sigma", "step"), [(20.0, 0), (14.0, 1), (5.1, 2), (5.0, 3), (4.9, 3), (0.1, 8), (1e-6, 8)])
def test_a_noise_level_says_where(sigma, step):
    """The first takes the steps that begin at it or above."""
    assert first_below(SIGMAS, sigma) == step
    found = chain("euler", "dpmpp_3m", sigma=sigma, step=99).plan(SIGMAS)
    assert numbers(found) == numbers(chain("euler", "dpmpp_3m", step).plan(SIGMAS))


def test_a_level_that_is_the_boundary_in_float32():
    assert first_below(torch.tensor([1.0, 0.9, 0.8, 0.0]).tolist(), 0.9) == 2
    assert first_below([], 0.5) == 0 and first_below([1.0], 2.0) == 0


# What is known of it


def test_what_is_known_of_both():
    noisy, plain = chain("euler", "dpmpp_sde", 3), chain("euler", "heun", 3)
    assert noisy.stochastic and not plain.stochastic and chain("dpmpp_sde", "euler").stochastic
    assert [option.name for option in noisy.options] == ["noise_device"] and not plain.options
    assert chain("euler", "euler_cfg_pp", 3).takes_apart and not plain.takes_apart
    assert plain.order == 1 and plain.label == "Euler, then Heun"
    assert chain("euler", "heun", 3).solver is plain.solver, "so that its plans are kept"


def test_options_are_those_of_each():
    found = chain("dpmpp_2m", "dpmpp_2m_sde", 4, second_options={"eta": 0.5, "s_noise": 0.0}).plan(SIGMAS)
    assert not any(stage.noise for stage in found)
    found = chain("dpmpp_2m", "dpmpp_2m_sde", 4, second_options={"eta": 0.5, "s_noise": 0.8}).plan(SIGMAS)
    same = SAMPLERS["dpmpp_2m_sde"].plan(SIGMAS, eta=0.5, s_noise=0.8)
    assert [s.noise for s in found] == [None] * 4 + [s.noise for s in same[4:]]
    found = chain("dpmpp_2m", "dpmpp_2m", 4, second_options={"detail": 0.1}).plan(SIGMAS)
    told = SAMPLERS["dpmpp_2m"].plan(SIGMAS, detail=0.1)
    assert [s.sigma for s in found] == [*SIGMAS[:4], *(s.sigma for s in told[4:])]
    assert [dict(s.update.terms) for s in found] == [dict(s.update.terms) for s in told], "history is handed on"


def test_errors():
    with pytest.raises(ValueError, match=r"dpm_adaptive decides its steps as it goes: .* part of a chain"):
        chain("euler", "dpm_adaptive", 3)
    with pytest.raises(ValueError, match="euler has no option 'eta'"):
        chain("euler", "heun", first_options={"eta": 1.0})
    with pytest.raises(ValueError, match=r"sigma = 2: the sigmas ascend, and a chain by noise level"):
        chain("euler", "heun", sigma=2.0).plan(SIGMAS[-2::-1])
    assert run(chain("euler", "dpmpp_2m", 3), SIGMAS[-2::-1], model=pointwise).isfinite().all()


def test_a_list_of_restart_intervals_is_a_chain():
    """The list of the paper: each interval with its own number of restarts and its own solver."""
    high = {"restarts": 2, "restart_max": 8.0, "restart_min": 3.1, "base": "euler"}
    low = {"restarts": 1, "restart_max": 1.7, "restart_min": 0.3, "base": "heun"}
    made = chain("restart", "restart", sigma=1.8, first_options=high, second_options=low)
    z = [(k + 1.0) * NOISE for k in range(3)]
    draws = iter(z)
    x = SIGMAS[0] * X1
    found = made.function(denoiser, x, SIGMAS, disable=True, noise_sampler=lambda a, b: next(draws))

    def down(id, x, sigmas):
        return SAMPLERS[id].function(denoiser, x, sigmas, disable=True)

    x = down("euler", x, SIGMAS[:4])
    for noise in z[:2]:
        x = down("euler", x + math.sqrt(8.0**2 - 3.1**2) * noise, SIGMAS[1:4])
    x = down("heun", down("euler", x, SIGMAS[3:5]), SIGMAS[4:7])
    x = down("heun", x + math.sqrt(1.7**2 - 0.3**2) * z[2], SIGMAS[4:])
    torch.testing.assert_close(found, x, rtol=1e-11, atol=1e-11)


def test_a_chain_has_the_time_of_the_whole_run():
    """A sampler that begins anew places its noise by the same model."""
    shift = 8.0
    whole = SAMPLERS["sa_solver"].plan(FLOW, flow=True, model_shift=shift)
    later = chain("euler", "sa_solver", 1).plan(FLOW, flow=True, model_shift=shift)
    noisy = [[stage.noise.sigma_next for stage in plan if stage.noise] for plan in (whole, later)]
    assert noisy == [[0.93, 0.8], [0.8]]


def test_chains_of_chains():
    one = chain("dpmpp_2m", "dpmpp_3m", 2)
    found = chained(one, {}, SAMPLERS["dpmpp_2m"], {}, step=5).plan(SIGMAS)
    plans = [SAMPLERS[id].plan(SIGMAS) for id in ("dpmpp_2m", "dpmpp_3m", "dpmpp_2m")]
    assert numbers(found) == [n for plan, part in zip(plans, ((0, 2), (2, 5), (5, N)), strict=True)
                              for n in numbers(plan)[slice(*part)]]  # fmt: skip


def test_detail_is_that_of_the_whole_run():
    """Whether the second part takes the history over, begins anew, or is part of another chain."""
    options = {"detail": 0.1, "detail_start": 0.1, "detail_end": 0.9}
    seen = [s.sigma for s in SAMPLERS["dpmpp_2m"].plan(SIGMAS, **options)]
    goes_on, anew = (
        chain(first, "dpmpp_2m", 4, first_options=options, second_options=options) for first in ("dpmpp_2m", "dpm_2m")
    )
    assert [s.sigma for s in goes_on.plan(SIGMAS)] == [s.sigma for s in anew.plan(SIGMAS)] == seen
    inner = chain("dpmpp_2m", "dpmpp_2m", 2, first_options=options, second_options=options)
    nested = chained(inner, {}, SAMPLERS["dpmpp_2m"], options, step=5)
    assert numbers(nested.plan(SIGMAS)) == numbers(SAMPLERS["dpmpp_2m"].plan(SIGMAS, **options))
