"""What the one loop promises of every sampler: no device reads, few passes, nothing overwritten, nothing kept."""

import weakref

import pytest
import torch
from mixture import NOISE, X1, each_ode, each_stochastic, pointwise, with_noise, without_noise
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from samplers import DENOISED, SAMPLERS, Noise, Stage, X, integrate
from samplers.integrate import combine

SIGMAS = [14.0, 6.0, 2.5, 1.0, 0.4, 0.1, 0.0]
FLOW_SIGMAS = [1.0, 0.9, 0.7, 0.4, 0.1, 0.0]


class Watch(TorchDispatchMode):
    """Notes every operation of torch that is not the model's: its name, and the sizes it works on."""

    def __init__(self):
        super().__init__()
        self.ops = []
        self.in_model = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self.in_model:
            sizes = [t.numel() for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.ops.append((func.overloadpacket.__name__, max(sizes, default=0)))
        return out

    def model(self, x, sigma, **extra_args):
        self.in_model = True
        try:
            return pointwise(x, sigma)
        finally:
            self.in_model = False


def sample(spec, x, sigmas=SIGMAS, model=pointwise, callback=None, flow=False, extra_args=None):
    options = without_noise(spec)
    return spec.function(model, x, sigmas, extra_args, callback, disable=True, flow=flow, **options)


# Device and memory


@pytest.mark.parametrize(("sigmas", "flow"), [(SIGMAS, False), (FLOW_SIGMAS, True)], ids=["edm", "flow"])
@each_ode
def test_nothing_is_read_back_from_the_device(spec, sigmas, flow):
    """Neither while sampling nor before: float(t), t.item(), `if t` all end in _local_scalar_dense."""
    with Watch() as watch:
        sample(spec, X1, torch.tensor(sigmas), watch.model, callback=lambda info: None, flow=flow)
    names = {name for name, _ in watch.ops}
    assert "sum" in names  # the watch does see
    assert not names & {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero"}


@pytest.mark.parametrize(("sigmas", "flow"), [(SIGMAS, False), (FLOW_SIGMAS, True)], ids=["edm", "flow"])
@each_stochastic
def test_nothing_is_read_back_where_noise_is_drawn(spec, sigmas, flow):
    with Watch() as watch:
        spec.function(watch.model, X1, torch.tensor(sigmas), {"seed": 1}, disable=True, flow=flow, **with_noise(spec))
    names = {name for name, _ in watch.ops}
    assert {"normal_", "sum"} <= names
    assert not names & {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero"}


def test_the_watch_sees_a_read():
    with Watch() as watch:
        float(torch.ones(3).sum())
    assert "_local_scalar_dense" in {name for name, _ in watch.ops}


@pytest.mark.parametrize(("sigmas", "flow"), [(SIGMAS, False), (FLOW_SIGMAS, True)], ids=["edm", "flow"])
@each_ode
def test_one_pass_over_memory_per_operand(spec, sigmas, flow):
    """And one for the check of the prediction; nothing else touches a tensor as large as the sample."""
    x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    plan = spec.plan(sigmas, flow=flow, **without_noise(spec))
    allowed = 1  # the check of x
    for stage in plan:
        allowed += sum(c != 0 for c in stage.update.terms.values())
        if stage.sigma is not None:
            allowed += 1 + (len(stage.prediction.terms) if stage.prediction is not DENOISED else 0)
    with Watch() as watch:
        integrate(watch.model, x, plan, disable=True)
    large = [
        name for name, size in watch.ops if size >= x.numel() and name != "new_full"
    ]  # that one takes only x's type
    assert len(large) <= allowed, large


@each_stochastic
def test_one_more_pass_for_noise(spec):
    x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 4, 32, 32)
    plan = spec.plan(SIGMAS, **with_noise(spec))
    assert any(stage.noise for stage in plan)
    allowed = 1 + sum(len(stage.update.terms) + (stage.noise is not None) + (stage.sigma is not None) for stage in plan)
    allowed += sum(len(stage.prediction.terms) for stage in plan if stage.prediction is not DENOISED)
    with Watch() as watch:
        integrate(watch.model, x, plan, disable=True, noise_sampler=lambda a, b: noise)
    large = [name for name, size in watch.ops if size >= x.numel() and name != "new_full"]
    assert len(large) <= allowed, large


@each_ode
def test_predictions_are_let_go_when_no_step_needs_them(spec):
    """A video's prediction is large: at no time do more live than the deepest combination uses."""
    plan = spec.plan([float(s) for s in range(24, 0, -1)], **without_noise(spec))
    depth = 1 + max(max(stage.update.terms) for stage in plan)
    made, living = [], []

    def model(x, sigma):
        living.append(sum(ref() is not None for ref in made))
        prediction = pointwise(x, sigma)
        made.append(weakref.ref(prediction))
        return prediction

    integrate(model, X1, plan, disable=True)
    assert max(living) <= max(depth, 1)
    assert sum(ref() is not None for ref in made) == 0


@each_ode
def test_nothing_handed_out_is_written_to(spec):
    """Neither the caller's tensors nor those that a model or a callback may have kept."""
    seen = []

    def watch(*tensors):
        seen.extend((t, t._version, t.clone()) for t in tensors)

    def model(x, sigma):
        prediction = pointwise(x, sigma)
        watch(x, sigma, prediction)
        return prediction

    def callback(info):
        watch(info["x"], info["denoised"], info["sigma"], info["sigma_hat"])

    x, sigmas = X1 * SIGMAS[0], torch.tensor(SIGMAS, dtype=torch.float64)
    watch(x, sigmas)
    sample(spec, x, sigmas, model, callback)
    for tensor, version, copy in seen:
        assert tensor._version == version
        assert torch.equal(tensor, copy)


def test_noise_is_not_written_to():
    noise = NOISE.clone()
    plan = [Stage(0, 2.0, 0.5 * X + 0.5 * DENOISED, noise=Noise(0.5, 2.0, 1.0)), Stage(1, 1.0, DENOISED)]
    integrate(pointwise, X1, plan, disable=True, noise_sampler=lambda s, t: noise)
    assert torch.equal(noise, NOISE)


# Types and shapes


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=["fp64", "fp32", "fp16", "bf16"]
)
@each_ode
def test_every_dtype_is_kept_and_approximates_float64(spec, dtype):
    """Each of the seven steps rounds some three numbers, by half an eps each: 10 eps of the largest."""

    def model(x, sigma):
        assert x.dtype == dtype
        assert sigma.dtype == torch.promote_types(dtype, torch.float32)
        return pointwise(x.double(), sigma.double()).to(dtype)

    sigmas = [14.0, 8.0, 4.5, 2.5, 1.4, 0.8, 0.4, 0.2]
    x = (X1 * sigmas[0]).to(dtype)
    result, exact = sample(spec, x, sigmas, model), sample(spec, x.double(), sigmas)
    assert result.dtype == dtype
    tolerance = 0 if dtype == torch.float64 else 10 * torch.finfo(dtype).eps
    assert (result.double() - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize("shape", [(1, 4, 9), (3, 4, 9), (1, 4, 6, 5), (3, 4, 6, 5), (1, 4, 3, 6, 5), (3, 4, 3, 6, 5)])
@each_ode
def test_every_shape_gives_each_element_the_same_treatment(spec, shape):
    """The denoiser works element by element, and so must the sampler: a long strip of the same numbers agrees."""
    x = 14 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def model(x, sigma):
        assert x.shape == shape and sigma.shape == shape[:1] and (sigma == sigma[0]).all()
        return pointwise(x, sigma)

    result = sample(spec, x, model=model)
    assert result.shape == shape
    torch.testing.assert_close(result.reshape(1, 1, -1), sample(spec, x.reshape(1, 1, -1)), rtol=1e-12, atol=1e-12)


@each_ode
def test_non_contiguous_sample(spec):
    x = 14 * torch.randn(2, 8, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    view = x.permute(0, 3, 1, 2)
    assert not view.is_contiguous()
    torch.testing.assert_close(sample(spec, view), sample(spec, view.contiguous()), rtol=1e-12, atol=1e-12)


@each_ode
def test_a_model_may_answer_in_another_dtype(spec):
    """An fp16 sample with a model that answers in fp32: the result stays fp16, the callback sees the answer itself."""
    seen = []
    result = sample(
        spec,
        (X1 * SIGMAS[0]).half(),
        model=lambda x, sigma: pointwise(x.float(), sigma),
        callback=lambda info: seen.append(info["denoised"].dtype),
    )
    assert result.dtype == torch.float16 and set(seen) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each_ode
def test_levels_may_come_as_a_tensor_or_a_list(spec, dtype):
    sigmas = torch.tensor(SIGMAS, dtype=dtype)
    assert torch.equal(sample(spec, X1, sigmas), sample(spec, X1, sigmas.tolist()))


# Callback, arguments, interruption


@each_ode
def test_callback_once_a_step_with_what_the_model_saw(spec):
    evaluations, infos = [], []

    def model(x, sigma):
        evaluations.append((sigma[0].item(), x, pointwise(x, sigma)))
        return evaluations[-1][-1]

    def callback(info):
        assert info["denoised"] is evaluations[-1][-1]  # at once, before the next evaluation
        infos.append(info)

    sample(spec, X1 * SIGMAS[0], model=model, callback=callback)
    assert [info["i"] for info in infos] == list(range(len(SIGMAS) - 1))
    plan = spec.plan(SIGMAS, **without_noise(spec))
    starts = [next(stage.sigma for stage in plan if stage.step == i) for i in range(len(SIGMAS) - 1)]
    assert starts == SIGMAS[:-1] or spec.id == "dpm_fast"  # which has levels of its own
    assert [info["sigma"].item() for info in infos] == [info["sigma_hat"].item() for info in infos] == starts
    for info in infos:
        sigma, x, _ = next(e for e in evaluations if e[-1] is info["denoised"])
        assert sigma == info["sigma"] and x is info["x"]
        assert set(info) == {"x", "i", "sigma", "sigma_hat", "denoised"}


@each_ode
def test_extra_args_reach_every_evaluation(spec):
    extra_args, seen = {"cond": object(), "seed": 3}, []

    def model(x, sigma, **kwargs):
        seen.append(kwargs)
        return pointwise(x, sigma)

    sample(spec, X1, model=model, extra_args=extra_args)
    assert seen == [extra_args] * spec.nfe(SIGMAS, **without_noise(spec))


class Interrupted(BaseException):
    """Not an Exception: nothing may swallow it."""


@each_ode
def test_an_interruption_in_the_callback_ends_the_run_at_once(spec):
    calls = []

    def model(x, sigma):
        calls.append(sigma[0].item())
        return pointwise(x, sigma)

    def callback(info):
        if info["i"] == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        sample(spec, X1 * SIGMAS[0], model=model, callback=callback)
    assert calls[-1] == next(stage.sigma for stage in spec.plan(SIGMAS, **without_noise(spec)) if stage.step == 2)
    assert torch.equal(sample(spec, X1), sample(spec, X1))  # and leaves nothing behind


@pytest.mark.parametrize("disable", [None, False, True])
def test_progress_bar_counts_steps_and_does_not_change_the_result(disable, capsys):
    spec = SAMPLERS["dpmpp_2s"]
    x = spec.function(pointwise, X1, SIGMAS, disable=disable)
    assert torch.equal(x, sample(spec, X1))
    if disable is False:
        assert f"{len(SIGMAS) - 1}/{len(SIGMAS) - 1}" in capsys.readouterr().err
    elif disable:
        assert not capsys.readouterr().err


# Going on from another run


@each_ode
def test_a_run_may_go_on_from_another(spec):
    """The rest of a plan, given the sample and all predictions so far, ends where the whole plan does."""
    plan = spec.plan(SIGMAS, **without_noise(spec))
    whole = integrate(pointwise, X1 * SIGMAS[0], plan, disable=True)
    for cut in (i for i in range(1, len(plan)) if plan[i - 1].completes and plan[i].sigma is not None):
        stages, history = iter([stage for stage in plan[:cut] if stage.sigma is not None]), []

        def model(x, sigma, stages=stages, history=history):
            denoised = pointwise(x, sigma)
            history.insert(0, combine(next(stages).prediction, (denoised, x, x)))
            return denoised

        x = integrate(model, X1 * SIGMAS[0], plan[:cut], disable=True)
        rest = integrate(pointwise, x, plan[cut:], history=history, disable=True)
        torch.testing.assert_close(rest, whole, rtol=1e-12, atol=1e-12)
