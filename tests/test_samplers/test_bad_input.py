"""Every bad input ends in an error that names the input at fault."""

import math

import pytest
import torch
from mixture import SIGMA_MAX, SIGMA_MIN, X1, each_ode, pointwise, without_noise

from samplers import DENOISED, SAMPLERS, SCHEDULES, Noise, NonFiniteError, Stage, X, integrate
from samplers.checks import counted
from samplers.inversion import invert

SIGMAS = [14.0, 6.0, 2.5, 1.0, 0.4, 0.0]
nan, inf = math.nan, math.inf


def sample(spec, x=X1, sigmas=SIGMAS, model=pointwise, **options):
    return spec.function(model, x, sigmas, disable=True, **without_noise(spec), **options)


def outcome(run):
    """What it gives, or None, and its ValueError as text."""
    try:
        return run(), ""
    except ValueError as error:
        return None, str(error)


# The model's answers


@pytest.mark.parametrize("whole", [True, False], ids=["whole tensor", "one element"])
@pytest.mark.parametrize("value", [nan, inf])
@pytest.mark.parametrize("step", [0, 2, 4])
@each_ode
def test_a_prediction_that_is_not_finite_names_step_and_sigma(spec, step, value, whole):
    """The first evaluation of a step goes wrong; all that follow do so too, yet this step is named."""
    stages = [stage for stage in spec.plan(SIGMAS, **without_noise(spec)) if stage.sigma is not None]
    first = next(i for i, stage in enumerate(stages) if stage.step == step)
    calls = []

    def model(x, sigma):
        prediction = pointwise(x, sigma)
        if len(calls) == first:
            prediction[... if whole else (-1, 0, 2, 1)] = value
        calls.append(sigma)
        return prediction

    with pytest.raises(NonFiniteError, match=rf"step {step + 1} of 5 \(sigma = {stages[first].sigma:.6g}\)"):
        sample(spec, model=model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_overflow_in_a_small_dtype_is_found_and_a_large_sum_is_not_one(dtype):
    spec, x = SAMPLERS["ddim"], torch.zeros(1, 4, 64, 64, dtype=dtype)
    large = torch.full_like(x, 6e4)  # the sum of all, 1e9, does not fit into fp16
    assert torch.equal(sample(spec, x, model=lambda x, sigma: large), large)
    overflow = large.clone()
    overflow[0, 1, 2, 3] = torch.finfo(dtype).max * torch.tensor(2.0, dtype=dtype)
    assert overflow.isinf().any()
    with pytest.raises(NonFiniteError, match=r"step 1 of 5"):
        sample(spec, x, model=lambda x, sigma: overflow)


def test_infinities_of_both_signs_do_not_cancel():
    def model(x, sigma):
        prediction = pointwise(x, sigma)
        prediction[0, 0, 0, 0], prediction[0, 0, 0, 1] = inf, -inf
        return prediction

    with pytest.raises(NonFiniteError, match="step 1 of 5"):
        sample(SAMPLERS["ddim"], model=model)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x[:1], r"shaped like x, \[3, 1, 4, 4\]; it returned a tensor of shape \[1, 1, 4, 4\]"),
        (lambda x: (x, x), "it returned tuple"),
        (lambda x: None, "it returned NoneType"),
        (lambda x: x.long(), "in one of float16, bfloat16, float32, float64; it returned a tensor of torch.int64"),
        (lambda x: x > 0, "it returned a tensor of torch.bool"),
        (lambda x: x.to(torch.complex64), "it returned a tensor of torch.complex64"),
        (lambda x: x.to(torch.float8_e4m3fn), "it returned a tensor of torch.float8_e4m3fn"),
        (lambda x: x.to_sparse(), "it returned a tensor that is not dense"),
        (lambda x: torch.nested.nested_tensor([x[0], x[1]]), "it returned a tensor that is not dense"),
        (lambda x: x.to("meta"), "where x is, on cpu; it returned a tensor on meta: look for what moves it"),
    ],
)
@each_ode
def test_an_answer_that_is_no_denoised_sample(spec, answer, message):
    with pytest.raises(ValueError, match=message):
        sample(spec, model=lambda x, sigma: answer(x))


class Writes:
    """Models that do what they must not: each is `pointwise`, in memory that is not its own to write to."""

    def __init__(self):
        self.buffer = None

    def into_x(self, x, sigma):
        return x.copy_(pointwise(x, sigma))

    def into_x_and_back_as_another(self, x, sigma):
        answer = pointwise(x, sigma)
        x *= 0.5
        return answer

    def over_its_last_answer(self, x, sigma):
        self.buffer = torch.empty_like(x) if self.buffer is None else self.buffer
        return self.buffer.copy_(pointwise(x, sigma))


@pytest.mark.parametrize("inference", [False, True])
@each_ode
def test_a_model_that_writes_into_x(spec, inference):
    for model in (Writes().into_x, Writes().into_x_and_back_as_another):
        with torch.inference_mode(inference), pytest.raises(ValueError, match="model wrote into the sample x"):
            sample(spec, X1.clone(), model=model)


def test_a_model_that_writes_into_x_on_the_way_back():
    with pytest.raises(ValueError, match="model wrote into the sample x"):
        invert(SAMPLERS["ddim"], Writes().into_x, X1.clone(), [9.0, 3.0, 1.0, 0.0], disable=True)


@pytest.mark.parametrize("inference", [False, True])
@each_ode
def test_a_model_that_writes_over_its_last_answer(spec, inference):
    """Is found, or changes nothing."""
    with torch.inference_mode(inference):
        right = sample(spec)
        found, complaint = outcome(lambda: sample(spec, model=Writes().over_its_last_answer))
        assert "wrote over a prediction that it had returned" in complaint or torch.equal(found, right)


@each_ode
def test_a_model_that_gives_one_stored_answer_is_fine(spec):
    stored = torch.full_like(X1, 0.25)
    torch.testing.assert_close(sample(spec, model=lambda x, sigma: stored), stored)


@pytest.mark.parametrize(("answer", "got"), [(lambda x: x.long(), "int64"), (lambda x: x > 0, "bool")])
def test_noise_that_is_no_floating_point(answer, got):
    with pytest.raises(ValueError, match=f"noise_sampler must return noise in one of .* tensor of torch.{got}"):
        sample(SAMPLERS["ddpm"], noise_sampler=lambda sigma, sigma_next: answer(X1))


def test_non_finite_error_is_a_value_error():
    assert issubclass(NonFiniteError, ValueError)


# Sigmas


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([14.0, nan, 1.0, 0.0], r"sigmas\[1\] = nan"),
        ([inf, 1.0, 0.0], r"sigmas\[0\] = inf"),
        ([14.0, 1.0, -0.5], r"sigmas\[2\] = -0.5"),
        ([14.0, 1.0, 3.0, 0.0], r"sigmas\[1\] = 1 and sigmas\[2\] = 3"),
        ([nan], r"sigmas\[0\] = nan"),
        ([1.0, 3.0, 2.0], r"sigmas\[1\] = 3 and sigmas\[2\] = 2"),
        ([0.0, 1.0, 3.0], "cannot start at 0"),
    ],
)
@pytest.mark.parametrize("kind", [list, torch.tensor])
@each_ode
def test_sigmas_at_fault_are_named(spec, kind, sigmas, message):
    with pytest.raises(ValueError, match=message):
        sample(spec, sigmas=kind(sigmas))
    with pytest.raises(ValueError, match=message):
        spec.nfe(kind(sigmas))


@pytest.mark.parametrize("shape", [(), (2, 3), (1, 4, 1)])
def test_sigmas_of_another_rank(shape):
    with pytest.raises(ValueError, match="sigmas must be a 1-D tensor, got shape"):
        sample(SAMPLERS["ddim"], sigmas=torch.ones(shape))


@pytest.mark.parametrize(
    "sigmas", [None, 3.0, [[2.0, 1.0], [1.0, 0.0]], ["a", "b"], [10**400, 1.0], [1e39, 1.0]], ids=str
)
def test_sigmas_that_are_no_numbers(sigmas):
    with pytest.raises(ValueError, match="sigmas"):
        sample(SAMPLERS["ddim"], sigmas=sigmas)


@each_ode
def test_flow_levels_above_1(spec):
    with pytest.raises(ValueError, match=r"sigmas\[0\] = 14\.0: .*between 0 and 1"):
        sample(spec, flow=True)


# The sample


@pytest.mark.parametrize("shape", [(4,), (4, 4), (1, 1, 1, 1, 4, 4)])
@each_ode
def test_sample_of_another_rank(spec, shape):
    with pytest.raises(ValueError, match=r"x must .* got shape \[" + str(shape[0])):
        sample(spec, torch.ones(shape))


@each_ode
def test_sample_without_an_image(spec):
    with pytest.raises(ValueError, match=r"x holds no image: its shape is \[0, 4, 8, 8\]"):
        sample(spec, torch.ones(0, 4, 8, 8))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e5m2])
@each_ode
def test_sample_of_another_dtype(spec, dtype):
    with pytest.raises(ValueError, match=f"x must be a floating-point tensor, got {dtype}"):
        sample(spec, torch.ones(1, 4, 8, 8).to(dtype))


@pytest.mark.parametrize("value", [nan, inf, -inf])
@each_ode
def test_sample_that_is_not_finite(spec, value):
    x = X1.clone()
    x[1, 0, 2, 3] = value
    with pytest.raises(NonFiniteError, match="x holds NaN or infinity"):
        sample(spec, x)


def test_sample_that_is_no_tensor():
    with pytest.raises(ValueError, match="x must be a floating-point tensor, got list"):
        sample(SAMPLERS["ddim"], [[[1.0]]])


@each_ode
def test_the_model_is_not_called_on_bad_input(spec):
    def model(x, sigma):
        raise AssertionError("called")

    for x, sigmas in ((X1, [1.0, 2.0, 1.5]), (X1[0, 0], SIGMAS)):
        with pytest.raises(ValueError, match=r"sigmas|x must"):
            sample(spec, x, sigmas, model)


# Options of samplers


@each_ode
def test_unknown_option(spec):
    with pytest.raises(ValueError, match=rf"{spec.id} has no option 'sharpness'"):
        sample(spec, sharpness=1.0)


def test_unknown_option_names_those_there_are():
    with pytest.raises(ValueError, match="its options are: r, solver_type, lower_order_final"):
        sample(SAMPLERS["dpmpp_2s"], R=0.5)


OPTIONS = [(spec, option) for spec in (*SAMPLERS.values(), *SCHEDULES.values()) for option in spec.options]


@pytest.mark.parametrize(("spec", "option"), OPTIONS, ids=[f"{spec.id}-{option.name}" for spec, option in OPTIONS])
def test_every_option_refuses_what_does_not_fit(spec, option):
    if isinstance(option.default, bool):
        bad = [2, 0.5, "yes", None]
    elif option.choices:
        bad = ["trapezoid", "", 1, None]
    elif isinstance(option.default, str):
        bad = [1, 0.5, None, ["1"]]
    else:
        bad = [option.minimum - 1, option.maximum + 1, nan, inf, "large", None, 10**400, -(10**5000), [1, 2]]
    for value in bad:
        with pytest.raises(ValueError, match=rf"{spec.id}: option {option.name} = "):
            spec.check_options({option.name: value})


def test_the_message_says_what_would_fit():
    with pytest.raises(ValueError, match=r"dpmpp_2s: option r = 1.5 must lie between 0.05 and 1"):
        sample(SAMPLERS["dpmpp_2s"], r=1.5)
    with pytest.raises(ValueError, match="option solver_type = 'taylor' must be one of midpoint, heun"):
        sample(SAMPLERS["dpmpp_2m"], solver_type="taylor")


@pytest.mark.parametrize(("r1", "r2"), [(0.5, 0.5), (0.7, 0.4)])
def test_3s_needs_its_evaluations_in_order(r1, r2):
    with pytest.raises(ValueError, match=f"r1 = {r1} must be smaller than r2 = {r2}"):
        sample(SAMPLERS["dpmpp_3s"], r1=r1, r2=r2)


# Plans


def test_a_plan_with_noise_needs_a_source_of_it():
    plan = [Stage(0, 2.0, 0.5 * X + 0.5 * DENOISED, noise=Noise(0.5, 2.0, 1.0))]
    with pytest.raises(ValueError, match="noise_sampler"):
        integrate(pointwise, X1, plan, disable=True)


def test_a_sample_that_overflows_is_an_error():
    """A prediction that fits its own dtype but not the sample's, or a combination of large predictions."""
    x = torch.zeros(1, 4, 8, 8, dtype=torch.float16)
    with pytest.raises(NonFiniteError, match="step 1 of 5"):
        sample(SAMPLERS["ddim"], x, model=lambda x, sigma: torch.full(x.shape, 1e5))
    with pytest.raises(NonFiniteError, match="overflowed"):
        integrate(lambda x, sigma: torch.full_like(x, 6e4), x, [Stage(0, 1.0, 2.0 * DENOISED)], disable=True)


def test_a_plan_that_goes_on_needs_its_history():
    """Without it a remembered prediction would silently be taken from elsewhere, and so would the last evaluation."""
    for plan in (SAMPLERS["dpmpp_2m"].plan(SIGMAS)[2:], SAMPLERS["unipc"].plan(SIGMAS)[-1:]):
        with pytest.raises(ValueError, match="history"):
            integrate(pointwise, X1, plan, disable=True)


def test_an_empty_plan_changes_nothing():
    assert torch.equal(integrate(pointwise, X1, [], disable=True), X1)


# Schedules

each_schedule = pytest.mark.parametrize("spec", SCHEDULES.values(), ids=SCHEDULES)


@pytest.mark.parametrize("n", [0, -1])
@each_schedule
def test_schedule_with_too_few_steps(spec, n):
    with pytest.raises(ValueError, match=rf"{spec.id}: steps = {n} must be at least 1"):
        spec.function(n, SIGMA_MIN, SIGMA_MAX)


@pytest.mark.parametrize("n", [10.0, 2.5, nan, "10", None])
@each_schedule
def test_schedule_with_steps_that_are_no_whole_number(spec, n):
    with pytest.raises(ValueError, match=rf"{spec.id}: steps = .* must be a whole number"):
        spec.function(n, SIGMA_MIN, SIGMA_MAX)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (nan, 1.0), (0.1, nan), (0.1, inf)])
@each_schedule
def test_schedule_with_bad_ends(spec, ends):
    low, high = ends
    with pytest.raises(ValueError, match=rf"{spec.id}: sigma_min = {low:g} and sigma_max = {high:g}"):
        spec.function(10, low, high)


@each_schedule
def test_schedule_beyond_the_levels_of_a_flow_model(spec):
    with pytest.raises(ValueError, match=rf"{spec.id}: sigma_max = 14.6146.* end at 1"):
        spec.function(10, SIGMA_MIN, SIGMA_MAX, flow=True)


@each_schedule
def test_schedule_with_an_unknown_option(spec):
    with pytest.raises(ValueError, match=f"{spec.id} has no option 'warp'"):
        spec.function(10, SIGMA_MIN, SIGMA_MAX, warp=2)


# Ids


@pytest.mark.parametrize(
    ("registry", "key", "message"),
    [
        (SAMPLERS, "dpmpp2m", "unknown sampler 'dpmpp2m'; did you mean 'dpmpp_2m'"),
        (SAMPLERS, "zzz", "unknown sampler 'zzz'; known: dpmpp_2s, "),
        (SCHEDULES, "karas", "unknown schedule 'karas'; did you mean 'karras'"),
        (SCHEDULES, "zzz", "unknown schedule 'zzz'; known: karras, "),
        (SCHEDULES, "z" * 10**6, "^unknown schedule 'z{59} ...; known: karras, "),
    ],
)
def test_unknown_id_suggests_the_near_one(registry, key, message):
    with pytest.raises(KeyError, match=message):
        registry[key]


@pytest.mark.parametrize("sigmas", [[1e38, 1e-38], [1e10, math.nextafter(1e10, 0.0), 1.0]])
def test_levels_that_float64_has_no_steps_for(sigmas):
    """The error names them, or the steps are finite."""
    for spec in SAMPLERS.values():
        if spec.adaptive:
            continue
        plan, complaint = outcome(lambda spec=spec: spec.plan(sigmas, **without_noise(spec)))
        finite = plan and all(math.isfinite(c) for stage in plan for c in stage.update.terms.values())
        assert finite or "too close or too far apart" in complaint, spec.id


@pytest.mark.parametrize("eta", [1e-320, 1e-12, 1e-9, 1e-8, 1e-7, 1e-4])
@pytest.mark.parametrize("id", ["dpmpp_2s_ancestral", "euler_ancestral", "ddim", "dpmpp_2m_sde", "dpmpp_sde"])
def test_hardly_any_noise_is_hardly_any(id, eta):
    """The variance of it, a difference of squares, may round to below 0."""
    spec = SAMPLERS[id]
    for k in range(20):
        sigmas = sorted((0.01 + 80 * math.sin(7.1 * k + 1.3 * i) ** 2 for i in range(12)), reverse=True)
        noises = [stage.noise for stage in spec.plan([*sigmas, 0.0], eta=eta) if stage.noise is not None]
        most = (20 * eta) ** 0.5 if id == "dpmpp_2m_sde" else 2 * eta  # 1 - e^(-2 eta h), or eta^2 times that
        assert all(0 <= noise.scale <= 80 * max(most, 1e-7) for noise in noises)


def test_a_coefficient_beyond_fp16():
    """It is no error in itself: what it leads to fits into fp16, or the error says that a wider dtype is needed."""
    x = torch.full((1, 4, 4, 4), 1e-4, dtype=torch.float16)
    plan = [Stage(0, 1.0, 1e5 * X - 1e5 * DENOISED)]
    found = integrate(lambda x, sigma: x / 2, x, plan, disable=True)
    torch.testing.assert_close(found, torch.full_like(x, 5.0), rtol=1e-2, atol=0)
    noisy = [Stage(0, 1.0, DENOISED, noise=Noise(1e5, 1.0, 0.5))]
    found = integrate(lambda x, sigma: x, x, noisy, disable=True, noise_sampler=lambda sigma, sigma_next: x)
    torch.testing.assert_close(found, torch.full_like(x, 10.0), rtol=1e-2, atol=0)
    sigmas = SCHEDULES["karras"].function(4, 0.002, 700.0).flip(0)[1:]
    with pytest.raises(NonFiniteError, match="use a wider dtype"):
        sample(SAMPLERS["ipndm_v"], torch.ones(1, 4, 4, 4).half(), sigmas)


@pytest.mark.parametrize(
    ("name", "value"),
    [("denoise", 10**400), ("denoise", 1e-300), ("sigma_max", 10**400), ("model_shift", "wide"), ("sigma_min", None)],
)
def test_numbers_of_a_schedule_that_do_not_fit(name, value):
    numbers = {"sigma_min": 0.03, "sigma_max": 14.6} | {name: value}
    with pytest.raises(ValueError, match=f"karras: .*{name}"):
        SCHEDULES["karras"].function(10, **numbers)
    with pytest.raises(ValueError, match="karras: steps = "):
        SCHEDULES["karras"].function(10**400, 0.03, 14.6)


# The words of messages


def test_a_number_of_things():
    assert [counted(n, "step") for n in (0, 1, 2, "1", "4 or 8")] == [
        "0 steps",
        "1 step",
        "2 steps",
        "1 step",
        "4 or 8 steps",
    ]
    assert [counted(n, "batch", "batches") for n in (1, 3)] == ["1 batch", "3 batches"]
