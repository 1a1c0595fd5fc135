"""Networks as denoisers, on the mixture, where what they predict and the guided scores are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from mixture import MU, SD, SIGMA_MAX, SIGMA_MIN, X1, denoiser, flow_denoiser, levels, relative_error, solution

from samplers import (
    SAMPLERS,
    SCHEDULES,
    CosineVP,
    Denoiser,
    DiscreteVP,
    LinearVP,
    RectifiedFlow,
    classifier_free,
    classifier_guided,
)

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # of Stable Diffusion
PROCESSES = {"discrete": DiscreteVP(betas=BETAS), "linear": LinearVP(), "cosine": CosineVP()}
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
each_prediction = pytest.mark.parametrize("prediction", ["noise", "data", "v", "score"])

SIGMAS = torch.tensor([0.05, 1.3, 14.0], dtype=torch.float64)
X = X1 * SIGMAS[:, None, None, None] + MU[:3].reshape(3, 1, 4, 4)
"""Three images at levels of their own."""


def column(values):
    return values[:, None, None, None]


def log_weights(x_t, alpha_t, sigma_t):
    """log of w_k N(x_t; alpha_t mu_k, alpha_t^2 SD^2 + sigma_t^2) up to a constant, [B, 4]."""
    variance = (alpha_t * SD) ** 2 + sigma_t**2
    return -((x_t.flatten(1)[:, None] - alpha_t[:, None, None] * MU) ** 2).sum(-1) / (2 * variance[:, None])


def scales(process, t):
    """alpha_t and sigma_t from a time."""
    sigma = process.sigma(t)
    alpha_t = 1 / (1 + sigma**2).sqrt()
    return alpha_t, sigma * alpha_t


def network(process, prediction):
    """What a perfect network predicts at x_t and t: the mixture's score, and what the others are in terms of it."""

    def predict(x_t, t):
        alpha_t, sigma_t = scales(process, t)
        share = log_weights(x_t, alpha_t, sigma_t).softmax(1)
        pull = alpha_t[:, None] * (share @ MU) - x_t.flatten(1)
        score = (pull / ((alpha_t * SD) ** 2 + sigma_t**2)[:, None]).reshape(x_t.shape)
        alpha_t, sigma_t = column(alpha_t), column(sigma_t)
        noise = -sigma_t * score
        data = (x_t + sigma_t**2 * score) / alpha_t
        return {"noise": noise, "data": data, "v": alpha_t * noise - sigma_t * data, "score": score}[prediction]

    return predict


def labelled(x, sigma, label):
    """The denoiser of one component of the mixture for each image; of all of them where the label is -1."""
    s2 = sigma[:, None] ** 2
    one = (MU[label] * s2 + x.flatten(1) * SD**2) / (s2 + SD**2)
    return torch.where(column(label < 0), denoiser(x, sigma), one.reshape(x.shape))


def counted(model):
    """The model, and how many images it was asked for in each call."""
    calls = []

    def evaluate(x, sigma, **extra_args):
        calls.append(len(x))
        return model(x, sigma, **extra_args)

    return evaluate, calls


# Processes


@pytest.mark.parametrize(
    ("process", "times", "sigmas"),
    [
        (
            "discrete",
            [0.0, 0.4, 10.5, 250.25, 700.75, 999.0],
            [
                0.029167158151720367,
                0.03454125473112093,
                0.10058330727730552,
                0.6964490403030195,
                3.344415608711053,
                14.614641229333625,
            ],
        ),
        (
            "discrete",
            [0.05757905977886988, 40.34282814631389, 353.89024779739054, 795.1730527061271, 991.8844147635009],
            [0.03, 0.2, 1.0, 5.0, 14.0],
        ),
        (
            "linear",
            [0.001, 0.1, 0.5, 0.9, 1.0],
            [0.010485992786703324, 0.3401765290774009, 3.4129183090691204, 58.8272709616633, 152.16697028394645],
        ),
        (
            "linear",
            [0.0030646737850788673, 0.05795925421312451, 0.25896026243279663, 0.5672266896865367, 0.9571067003596945],
            [0.02, 0.2, 1.0, 5.0, 100.0],
        ),
        (
            "cosine",
            [0.001, 0.1, 0.5, 0.9, 0.9946],
            [0.006425412771133422, 0.1694356419949723, 1.012389563948004, 6.364591868537916, 118.82365097257855],
        ),
        (
            "cosine",
            [0.007121694636691033, 0.11892033152097892, 0.4960498639669404, 0.8733387294563177, 0.9935835852449852],
            [0.02, 0.2, 1.0, 5.0, 100.0],
        ),
    ],
)
def test_times_and_levels_are_those_of_dpm_solver(process, times, sigmas):
    """The numbers are those of its NoiseScheduleVP, in float64."""
    process = PROCESSES[process]
    times, sigmas = (torch.tensor(values, dtype=torch.float64) for values in (times, sigmas))
    torch.testing.assert_close(process.sigma(times), sigmas, rtol=1e-8, atol=0)
    torch.testing.assert_close(process.time(sigmas), times, rtol=1e-10, atol=1e-8 * process.t_max)


@each_process
def test_time_and_level_are_inverse(process):
    t = torch.linspace(process.t_min, process.t_max, 2001, dtype=torch.float64)
    assert (process.time(process.sigma(t)) - t).abs().max() < 1e-12 * process.t_max
    assert (process.sigma(t).diff() > 0).all()
    assert (process.sigma_min, process.sigma_max) == (process.sigma(t)[0].item(), process.sigma(t)[-1].item())


def test_discrete_levels_are_those_of_the_steps():
    process = DiscreteVP(alphas_cumprod=(1 - BETAS).cumprod(0))
    alphas_cumprod = (1 - BETAS).cumprod(0)
    torch.testing.assert_close(process.sigma(torch.arange(1000)), ((1 - alphas_cumprod) / alphas_cumprod).sqrt())
    torch.testing.assert_close(process.sigma(torch.arange(1000)), PROCESSES["discrete"].sigma(torch.arange(1000)))


@each_process
def test_levels_beyond_the_ends_are_told_as_the_ends(process):
    beyond = torch.tensor([process.sigma_min / 2, process.sigma_max * 2], dtype=torch.float64)
    assert process.time(beyond).tolist() == [process.t_min, process.t_max]
    told = []
    x = torch.ones(2, 1, 2, 2, dtype=torch.float64)
    model = Denoiser(lambda x_t, t: told.append((x_t, t)) or x_t * 0, process)
    assert torch.equal(model(x, beyond), x)  # no noise predicted
    (x_t, t), alpha = told[0], 1 / (1 + beyond**2).sqrt()
    assert t.tolist() == [process.t_min, process.t_max]
    torch.testing.assert_close(x_t[:, 0, 0, 0], alpha)  # but scaled for the level that it has


def test_rounded_steps_are_whole_and_the_nearest():
    process = DiscreteVP(betas=BETAS, rounded=True)
    sigmas = torch.logspace(-2, 2, 200, dtype=torch.float64)
    t = process.time(sigmas)
    assert t.dtype == torch.int64 and t.min() == 0 and t.max() == 999
    assert (PROCESSES["discrete"].time(sigmas) - t).abs().max() <= 0.5
    seen = []
    Denoiser(lambda x, t: seen.append(t) or x, process)(X, SIGMAS)
    assert seen[0].dtype == torch.int64


# What networks predict


@each_process
@each_prediction
def test_every_prediction_is_the_same_denoiser(process, prediction):
    model = Denoiser(network(process, prediction), process, prediction)
    torch.testing.assert_close(model(X, SIGMAS), denoiser(X, SIGMAS), rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_rectified_flow(prediction):
    def predict(x_t, t):
        data = flow_denoiser(x_t, t)
        return data if prediction == "data" else (x_t - data) / column(t)  # noise - x_0 of x_t = (1-t) x_0 + t noise

    model = Denoiser(predict, RectifiedFlow(), prediction)
    for sigma in (0.03, 0.5, 0.97, 1.0):
        told = torch.full((3,), sigma, dtype=torch.float64)
        torch.testing.assert_close(model(X1, told), flow_denoiser(X1, told), rtol=0, atol=1e-12)
    spec, sigmas = SAMPLERS["dpmpp_2m"], levels(10, 0.97, 0.03, flow=True)
    expected = spec.function(flow_denoiser, X1, sigmas, disable=True, flow=True)
    assert relative_error(spec.function(model, X1, sigmas, disable=True, flow=True), expected) < 1e-12


@each_process
@each_prediction
def test_samples_of_a_network_are_those_of_the_mixture(process, prediction):
    model = Denoiser(network(process, prediction), process, prediction)
    errors = []
    for n in (40, 80):
        sigmas = levels(n)
        sample = SAMPLERS["dpmpp_2m"].function(model, X1 * SIGMA_MAX, sigmas, disable=True)
        expected = SAMPLERS["dpmpp_2m"].function(denoiser, X1 * SIGMA_MAX, sigmas, disable=True)
        assert relative_error(sample, expected) < 1e-11
        errors.append(relative_error(sample, solution(SIGMA_MIN)))
    assert errors[1] < 1e-3 and errors[0] / errors[1] > 3.3  # second order


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_network_gets_the_dtype_of_x_and_time_in_float32(dtype):
    process, seen = PROCESSES["discrete"], []

    def predict(x_t, t):
        seen.append((x_t.dtype, t))
        return network(process, "v")(x_t.double(), t.double()).to(x_t.dtype)

    sigmas = SCHEDULES["karras"].function(8, process.sigma_min, process.sigma_max)
    start = (X1 * sigmas[0]).to(dtype)
    out = SAMPLERS["dpmpp_2m"].function(Denoiser(predict, process, "v"), start, sigmas, disable=True)
    assert out.dtype == dtype and {x_dtype for x_dtype, _ in seen} == {dtype}
    assert seen[0][1].dtype == torch.float32 and seen[0][1].tolist() == [999.0] * 3
    exact = SAMPLERS["dpmpp_2m"].function(denoiser, X1 * sigmas[0], sigmas, disable=True)
    assert relative_error(out.double(), exact) < {torch.float16: 0.01, torch.bfloat16: 0.1}.get(dtype, 1e-5)


@each_process
def test_nothing_is_read_back_from_the_device(process):
    """Tensors on `meta` have no values: whoever asks for one fails."""
    x, sigma = torch.empty(2, 4, 8, 8, device="meta"), torch.empty(2, device="meta")
    model = Denoiser(lambda x_t, t, context: x_t * context, process)
    model = classifier_free(model, {"context": x[:1]}, {"context": x[:1]}, 2.0)
    model = classifier_guided(model, lambda x_t, t: x_t.sum((1, 2, 3)) * t, process, 2.0)
    assert model(x, sigma).shape == x.shape


@each_process
def test_levels_carry_gradients(process):
    sigma = SIGMAS.clone().requires_grad_()
    assert torch.autograd.gradcheck(Denoiser(network(process, "noise"), process), (X, sigma))


# Classifier-free guidance


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0])
def test_classifier_free_guidance_in_closed_form(scale):
    label, none = torch.tensor([2, 0, 3]), torch.tensor([-1])
    model, calls = counted(labelled)
    guided = classifier_free(model, {"label": label}, {"label": none}, scale)
    without, given = denoiser(X, SIGMAS), labelled(X, SIGMAS, label)
    torch.testing.assert_close(guided(X, SIGMAS), without + scale * (given - without), rtol=0, atol=1e-12)
    assert calls == [6]  # one call for both


@pytest.mark.parametrize(("scale", "label"), [(1, 2), (0, -1)])
def test_without_guidance_one_pass_is_enough(scale, label):
    model, calls = counted(labelled)
    guided = classifier_free(model, {"label": torch.tensor([2])}, {"label": torch.tensor([-1])}, scale)
    assert torch.equal(guided(X, SIGMAS), labelled(X, SIGMAS, torch.full((3,), label)))
    assert calls == [3]


def test_scale_as_a_function_of_the_level():
    """Guidance in an interval: passes are saved elsewhere, and in it the image is the guided one."""
    model, calls = counted(labelled)
    condition = {"label": torch.tensor([1])}, {"label": torch.tensor([-1])}
    guided = classifier_free(model, *condition, lambda sigma: 2.0 if 0.5 < sigma < 5 else 1.0)
    sigmas = levels(8)
    SAMPLERS["dpmpp_2m"].function(guided, X1 * SIGMA_MAX, sigmas, disable=True)
    assert calls == [6 if 0.5 < sigma < 5 else 3 for sigma in sigmas[:-1]]
    sigma = torch.full((3,), 2.0, dtype=torch.float64)
    assert torch.equal(guided(X, sigma), classifier_free(labelled, *condition, 2.0)(X, sigma))


def test_arguments_with_an_entry_for_each_image_are_repeated():
    def model(x, sigma, label, shift, factor):
        return labelled(x, sigma, label) + factor * column(shift)

    guided = classifier_free(model, {"label": torch.tensor([1])}, {"label": torch.tensor([-1])}, 2.0)
    shift = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    plain = classifier_free(labelled, {"label": torch.tensor([1])}, {"label": torch.tensor([-1])}, 2.0)
    given = guided(X, SIGMAS, shift=shift, factor=10)
    torch.testing.assert_close(given, plain(X, SIGMAS) + 10 * column(shift), rtol=0, atol=1e-12)


# Classifier guidance


def log_prob(process, label):
    """log p(c | x_t) of the mixture: a component's share in the density at x_t."""
    return lambda x_t, t: log_weights(x_t, *scales(process, t)).log_softmax(1)[torch.arange(len(x_t)), label]


@each_process
@pytest.mark.parametrize("scale", [-0.5, 0.0, 1.0, 4.0])
def test_classifier_guidance_in_closed_form(process, scale):
    """D + w sigma^2 grad log p(c | x), whose gradient is (mu_c - sum_k p(k | x) mu_k) / (SD^2 + sigma^2)."""
    label = torch.tensor([2, 0, 3])
    model = Denoiser(network(process, "v"), process, "v")
    guided = classifier_guided(model, log_prob(process, label), process, scale)
    share = log_weights(X, torch.ones(3, dtype=torch.float64), SIGMAS).softmax(1)
    s2 = SIGMAS[:, None] ** 2
    pull = (scale * s2 / (SD**2 + s2) * (MU[label] - share @ MU)).reshape(X.shape)
    torch.testing.assert_close(guided(X, SIGMAS), denoiser(X, SIGMAS) + pull, rtol=0, atol=1e-11)
    if scale == 1:  # Bayes
        torch.testing.assert_close(guided(X, SIGMAS), labelled(X, SIGMAS, label), rtol=0, atol=1e-11)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_classifier_guidance_draws_the_class(mode):
    """With scale 1 the run is that of the class's own denoiser; gradients are taken where the caller has none."""
    process, label = LinearVP(), torch.tensor([2, 0, 3])
    guided = classifier_guided(denoiser, log_prob(process, label), process, 1.0)
    with mode():
        start, sigmas = X1 * 100, SCHEDULES["karras"].function(12, 0.02, 100.0)
        sample = SAMPLERS["dpmpp_2m"].function(guided, start, sigmas, disable=True)
        expected = SAMPLERS["dpmpp_2m"].function(
            lambda x, sigma: labelled(x, sigma, label), start, sigmas, disable=True
        )
    assert relative_error(sample, expected) < 1e-9
    distance = ((sample.reshape(3, 1, 16) - MU) ** 2).sum(-1)
    assert torch.equal(distance.argmin(1), label)


def test_both_kinds_of_guidance_together():
    process, label = LinearVP(), torch.tensor([2, 0, 3])
    free = classifier_free(labelled, {"label": label}, {"label": torch.tensor([-1])}, 3.0)
    both = classifier_guided(free, log_prob(process, label), process, 2.0)
    without, given = denoiser(X, SIGMAS), labelled(X, SIGMAS, label)  # their difference is sigma^2 grad log p(c | x)
    torch.testing.assert_close(both(X, SIGMAS), without + 5 * (given - without), rtol=0, atol=1e-10)


# Bad input


def bad_betas(step, value):
    betas = BETAS.clone()
    betas[step] = value
    return betas


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiscreteVP(), "either betas or alphas_cumprod"),
        (lambda: DiscreteVP(betas=BETAS, alphas_cumprod=BETAS), "either betas or alphas_cumprod"),
        (lambda: DiscreteVP(betas=bad_betas(3, math.nan)), r"betas\[3\] = nan"),
        (lambda: DiscreteVP(betas=bad_betas(4, 0.0)), r"betas\[4\] = 0.0 must lie between 0 and 1$"),
        (lambda: DiscreteVP(betas=bad_betas(999, 1.0)), r"betas\[999\] = 1.0.*leave out a last step"),
        (lambda: DiscreteVP(betas=[0.1, -0.1]), r"betas\[1\] = -0.1"),
        (lambda: DiscreteVP(betas=BETAS[:1]), r"shape \[1\]"),
        (lambda: DiscreteVP(betas=BETAS[None]), r"shape \[1, 1000\]"),
        (lambda: DiscreteVP(alphas_cumprod=[0.9, 0.5, 0.5]), "from step 1 to 2"),
        (lambda: DiscreteVP(alphas_cumprod=[0.9, 0.5, 0.0]), r"alphas_cumprod\[2\].*leave out a last step"),
        (lambda: LinearVP(20.0, 0.1), "beta_0 = 20.0 and beta_1 = 0.1"),
        (lambda: LinearVP(math.nan), "beta_0 = nan"),
        (lambda: LinearVP(0.0, 0.0), "beta_0 = 0.0"),
        (lambda: LinearVP(t_min=0.0), "t_min = 0.0"),
        (lambda: LinearVP(t_max=1.5), "t_max = 1.5"),
        (lambda: CosineVP(t_max=1.0), "pure noise"),
        (lambda: CosineVP(s=-1.0), "s = -1.0"),
        (lambda: RectifiedFlow(1.0), "sigma_min = 1.0"),
        (lambda: Denoiser(denoiser, LinearVP(), "epsilon"), "prediction = 'epsilon'.*noise, data, v, score"),
        (lambda: Denoiser(denoiser, LinearVP(), "velocity"), "LinearVP predicts one of noise, data, v, score"),
        (lambda: Denoiser(denoiser, RectifiedFlow(), "v"), "RectifiedFlow predicts one of velocity, data"),
        (lambda: classifier_free(labelled, {}, {}, math.nan), "scale = nan"),
        (lambda: classifier_free(labelled, {"a": X}, {"b": X}, 2.0), r"\['a'\] and \['b'\]"),
        (lambda: classifier_guided(denoiser, log_prob, LinearVP(), math.inf), "scale = inf"),
        (lambda: classifier_guided(denoiser, log_prob, RectifiedFlow(), 1.0), "VP process, not RectifiedFlow"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


LABELS = torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Denoiser(lambda x, t: x[:, :, :2], LinearVP()), r"prediction of noise, shaped like x, \[3, 1, 4, 4\].*2, 4\]"),
        (Denoiser(lambda x, t: (x, x), LinearVP(), "v"), "network must return its prediction of v.*tuple"),
        (classifier_free(labelled, {"label": LABELS}, {"label": LABELS}, 2.0), "'label' must be .* 1 or 3 entries"),
        (classifier_free(labelled, {"label": 4}, {"label": 5}, 2.0), "'label' must be a tensor .*: int"),
        (classifier_free(labelled, {"label": X}, {"label": X[:, 0]}, 2.0), r"\[3, 1, 4, 4\] and without .*pad"),
        (classifier_free(labelled, {}, {}, lambda sigma: math.nan), "scale = nan"),
        (classifier_guided(denoiser, lambda x, t: x.sum(), LinearVP(), 2.0), r"log_prob .* shape \[3\]"),
        (classifier_guided(denoiser, lambda x, t: 0 * t, LinearVP(), 2.0), "depends on x_t"),
    ],
)
def test_what_does_not_fit_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        model(X, SIGMAS)


@pytest.mark.parametrize("sigma", [1.0, torch.tensor(1.0), torch.ones(2)])
def test_sigma_has_an_entry_for_each_image(sigma):
    for model in (
        Denoiser(denoiser, LinearVP()),
        classifier_guided(lambda x, sigma: x, lambda x, t: x.sum((1, 2, 3)), LinearVP(), 2.0),
    ):
        with pytest.raises(ValueError, match=r"sigma must be a tensor with a level for each image, of shape \[3\]"):
            model(X, sigma)
