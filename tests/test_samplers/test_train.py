"""Training of AMED's predictor on the mixture."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from mixture import X1, denoiser, flow_denoiser, levels, relative_error, solution
from torch import nn

from samplers import SAMPLERS, NonFiniteError, integrate, read_levels
from samplers.calibrated.objective import geometric_mean, rmse
from samplers.calibrated.pairs import IntermediatePoint, predicted
from samplers.calibrated.plan import CalibratedPlan, prediction
from samplers.calibrated.predictor import Predictor
from samplers.calibrated.recipe import Recipe
from samplers.calibrated.train_amed import STEPS, Trainer, teacher_levels
from samplers.calibrated.tuning import Tuning

BASES = ("amed", "amed_dpm_2s", "dpm_2m", "ipndm")
each_base = pytest.mark.parametrize("base", BASES)
SIGMAS = tuple(levels(4, 6.0, 0.1).tolist())
FLOW = (1.0, 0.85, 0.7, 0.5, 0.3, 0.15, 0.05)


def noise(seed: int, n: int = 8, high: float = 6.0):
    return high * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nothing():
    """No bottleneck."""


class Told(nn.Module):
    """In the place of a predictor: gives these numbers, one [B, 3] a step, and keeps the gradients that come back."""

    bounds = 0.5, 0.5

    def __init__(self, *rows: torch.Tensor):
        super().__init__()
        self.rows = nn.ParameterList(nn.Parameter(row.clone()) for row in rows)
        self.gradients, self._next = [], 0

    def forward(self, bottleneck, sigma, sigma_next):
        numbers = self.rows[self._next % len(self.rows)] * 1.0
        self._next += 1
        numbers.register_hook(self.gradients.append)
        return numbers


def rows(batch: int, seed: int = 0):
    spread = torch.rand(batch, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    return torch.tensor([0.45, 1.0, 1.0], dtype=torch.float64) + torch.tensor([0.2, 0.04, 0.1]) * spread


def recorded(model):
    """The model, and what it was asked: pairs of sample and sigma."""
    asked = []

    def evaluate(x, sigma):
        asked.append((x.clone(), float(sigma[0])))
        return model(x, sigma)

    return evaluate, asked


def ends_of_steps(recipe, x, numbers, model=denoiser):
    """The samples at every second level, with gradients in the numbers."""
    given, found = read_levels(recipe.sigmas, recipe.flow), {}
    waiting = iter(numbers)

    def predict(state, s, t):
        return [IntermediatePoint(*row.unbind()) for row in next(waiting)]

    end = integrate(
        model,
        x,
        predicted(recipe.stages, given, predict, x),
        callback=lambda at: found.__setitem__(at["i"], at["x"]),
        disable=True,
    )
    return [found[i] for i in range(2, len(given) - 1, 2)] + [end]


# Its gradient


@each_base
def test_the_gradient_by_differences_is_that_of_autograd(base):
    """To a few percent: the differences are of finite width."""
    recipe, x = Recipe(base, SIGMAS), noise(1, 3)
    first, second = rows(3, 0), rows(3, 1)
    trainer = Trainer(told := Told(first, second), recipe, learning_rate=0.0)
    losses = trainer.learn(denoiser, x, nothing)
    goals = trainer.teach(denoiser, x)
    for k, ours in enumerate(told.gradients):
        mine = [first.clone(), second.clone()]
        mine[k].requires_grad_()
        if k == 1 and SAMPLERS[base].singlestep:
            end = ends_of_steps(Recipe(base, SIGMAS[2:]), goals[0], mine[1:])[0]
        else:
            end = ends_of_steps(recipe, x, mine)[k]
        loss = (end - goals[k]).flatten(1).square().sum(dim=1).mean()
        assert losses[k] == pytest.approx(loss.item(), rel=1e-9)
        (exact,) = torch.autograd.grad(loss, mine[k])
        for column in range(3):
            error = (ours - exact)[:, column].norm() / exact[:, column].norm()
            assert error < 0.12, (k, column)


@each_base
def test_the_gradient_for_the_last_sample_is_that_of_autograd(monkeypatch, base):
    """Every step's numbers, through all that follows."""
    monkeypatch.setattr("samplers.calibrated.train_amed.ROUNDS", 1)
    recipe, x = Recipe(base, SIGMAS), noise(1, 3)
    numbers = [rows(3, 0), rows(3, 1)]
    target = Trainer(Predictor(), recipe, extra=24).teach(denoiser, x)[-1]
    trainer = Trainer(told := Told(*numbers), recipe, learning_rate=0.0)
    loss = trainer.learn_end(denoiser, x, target, nothing)
    mine = [row.clone().requires_grad_() for row in numbers]
    end = ends_of_steps(recipe, x, mine)[-1]
    reference = (end - target).flatten(1).square().mean(dim=1).log().mean() / 2
    assert loss == pytest.approx(reference.item(), rel=1e-9)
    for row, exact in zip(told.rows, torch.autograd.grad(reference, mine), strict=True):
        assert (row.grad - exact).norm() < 0.2 * exact.norm()


def test_narrower_differences_are_closer(monkeypatch):
    """The error of a difference on one side is of the first order in its width."""
    recipe, x, first = Recipe("dpm_2m", SIGMAS[:3]), noise(1, 3), rows(3)

    def error(width):
        monkeypatch.setattr("samplers.calibrated.train_amed.STEPS", tuple(width * step for step in STEPS))
        trainer = Trainer(told := Told(first), recipe, learning_rate=0.0)
        trainer.learn(denoiser, x, nothing)
        mine = first.clone().requires_grad_()
        (end,) = ends_of_steps(recipe, x, [mine])
        loss = (end - trainer.teach(denoiser, x)[0]).flatten(1).square().sum(dim=1).mean()
        (exact,) = torch.autograd.grad(loss, mine)
        return float((told.gradients[0] - exact).norm() / exact.norm())

    wide, narrow = error(0.1), error(0.01)
    assert narrow < 0.2 * wide < 0.002


@each_base
def test_halves_of_a_batch_add_up_to_the_whole(base):
    """As two processes do that share the work: each gives the number of all images."""
    x = noise(2, 6)

    def gradients(part):
        torch.manual_seed(0)
        trainer = Trainer(Predictor(0.05, 0.1).double(), Recipe(base, SIGMAS[:3]), learning_rate=0.0)
        (loss,) = trainer.learn(denoiser, part, nothing, batch=6)
        return loss, [p.grad for p in trainer.predictor.parameters()]

    (first, ours), (second, others), (whole, together) = (gradients(part) for part in (x[:3], x[3:], x))
    assert first + second == pytest.approx(whole)
    for a, b, both in zip(ours, others, together, strict=True):
        torch.testing.assert_close(a + b, both, rtol=1e-9, atol=1e-11)


# The teacher


def test_levels_of_the_teacher():
    found = teacher_levels(read_levels(SIGMAS), 3)
    assert len(found) == 9
    assert found[::4] == pytest.approx(SIGMAS[::2]) and found == pytest.approx(levels(8, 6.0, 0.1).tolist())
    to_zero = teacher_levels(read_levels((6.0, 2.0, 1.0, 0.5, 0.0)), 2)
    assert to_zero[:4] == pytest.approx((6.0, 6.0 ** (2 / 3), 6.0 ** (1 / 3), 1.0)) and to_zero[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(to_zero))
    from_one = teacher_levels(read_levels(FLOW, True), 1)
    assert from_one[:3] == pytest.approx((1.0, 0.85, 0.7)) and from_one[2::2] == pytest.approx(FLOW[2::2])


@pytest.mark.parametrize("teacher", ["dpmpp_2m", "dpmpp_3m", "heun", "plms", "unipc", "ipndm_v"])
def test_the_teacher_ends_near_the_solution(teacher):
    """Whatever it remembers, and at the outer levels."""
    sigmas = tuple(levels(4).tolist())
    trainer = Trainer(Predictor(), Recipe("amed", sigmas), extra=24, teacher=teacher)
    ends = trainer.teach(denoiser, sigmas[0] * X1)
    assert len(ends) == 2
    for end, sigma in zip(ends, sigmas[2::2], strict=True):
        assert relative_error(end, solution(sigma)) < 0.02


def test_more_levels_make_a_better_teacher():
    sigmas = tuple(levels(4).tolist())

    def error(extra):
        trainer = Trainer(Predictor(), Recipe("amed", sigmas), extra=extra)
        return relative_error(trainer.teach(denoiser, sigmas[0] * X1)[-1], solution(sigmas[-1]))

    assert error(39) < error(19) / 2 < error(9) / 4


# What the student sees


@pytest.mark.parametrize("base", [*BASES, "euler", "ddim", "dpmpp_2m"])
def test_single_steps_start_from_the_teachers_sample_and_others_from_their_own(base):
    trainer = Trainer(Predictor(), Recipe(base, SIGMAS), extra=2)
    model, asked = recorded(denoiser)
    trainer.learn(model, noise(3), nothing)
    goal = trainer.teach(denoiser, noise(3))[0]
    teachers = len(trainer._teacher)
    starts = [x for x, sigma in asked[teachers:] if sigma == pytest.approx(SIGMAS[2])]
    assert len(starts) == 1
    assert torch.equal(starts[0], goal) == (base in ("amed", "amed_dpm_2s", "euler", "ddim"))
    torch.testing.assert_close(starts[0], goal, rtol=0, atol=3.0)


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("bounds", [(0.0, 0.0), (0.02, 0.0), (0.0, 0.1), (0.02, 0.1)])
@pytest.mark.parametrize(
    ("sigmas", "flow"),
    [(SIGMAS, False), ((6.0, 3.0, 1.0, 0.5, 0.2, 0.0), False), ((6.0, 2.0, 1.0, 0.5, 0.0), False), (FLOW, True)],
    ids=["four", "odd", "to 0", "flow"],
)
def test_the_cost_is_what_it_says(sigmas, flow, bounds, afs):
    """Also: the numbers of parameters stay finite, one loss per step that has a middle."""
    trainer = Trainer(Predictor(*bounds), Recipe("amed", sigmas, flow, afs=afs), teacher="heun")
    before = [p.clone() for p in trainer.predictor.parameters()]
    model, asked = recorded(flow_denoiser if flow else denoiser)
    losses = trainer.learn(model, sigmas[0] * X1, nothing)
    assert len(asked) == trainer.evaluations
    assert len(losses) == len(trainer.starts) - flow and all(math.isfinite(loss) for loss in losses)
    after = list(trainer.predictor.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
    asked.clear()
    trainer.learn_end(model, sigmas[0] * X1, torch.zeros_like(X1), nothing)
    assert len(asked) == trainer.evaluations_to_end


def test_afs_does_not_look_at_a_bottleneck_before_there_is_one():
    looks = []
    for afs in (False, True):
        Trainer(Predictor(), Recipe("amed", SIGMAS, afs=afs)).learn(
            denoiser, noise(4), lambda: looks.append(1) or torch.ones(8, 3, 8, 8)
        )
        looks.append(0)
    assert looks == [1, 1, 0, 1, 0]


# What it learns


@each_base
@pytest.mark.slow
def test_training_lowers_the_loss_and_the_error_for_fresh_noise(base):
    """The bottleneck is the last prediction."""
    torch.manual_seed(0)
    recipe, predictor, last = Recipe(base, SIGMAS), Predictor(0.05, 0.1), []
    x = noise(1000, 48)
    exact = Trainer(Predictor(), recipe, extra=24).teach(denoiser, x)[-1]

    def model(x, sigma):
        last[:] = [denoiser(x, sigma)]
        return last[0]

    def bottleneck():
        return last[0]

    def loss():
        return sum(Trainer(predictor, recipe, extra=9, learning_rate=0.0).learn(model, x, bottleneck))

    @torch.no_grad()
    def error():
        predict = prediction(predictor, bottleneck, len(x))
        end = integrate(model, x, predicted(recipe.stages, read_levels(SIGMAS), predict, x), disable=True)
        return geometric_mean(rmse((end - exact).flatten(1)))

    before = loss(), error()
    trainer = Trainer(predictor, recipe, extra=9)
    for k in range(30):
        trainer.learn(model, noise(k, 16), bottleneck)
    assert loss() < 0.7 * before[0]
    assert error() < 0.9 * before[1]


def test_numbers_at_their_ends_stay_in_their_steps():
    """A prediction of r near 1 is moved down for its difference."""
    told = Told(torch.tensor([[0.999, 1.0, 1.0], [0.001, 1.0, 1.0], [0.975, 1.0, 1.0]], dtype=torch.float64))
    (loss,) = Trainer(told, Recipe("amed", SIGMAS[:3]), learning_rate=0.0).learn(denoiser, noise(5, 3), nothing)
    assert math.isfinite(loss) and told.gradients[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype):
    trainer = Trainer(Predictor(0.02, 0.1), Recipe("ipndm", SIGMAS))
    assert all(math.isfinite(loss) for loss in trainer.learn(denoiser, noise(6).to(dtype), nothing))


# Errors


def test_a_model_that_writes_into_x_teaches_nothing():
    trainer = Trainer(Predictor(), Recipe("amed", SIGMAS))
    with pytest.raises(ValueError, match="model wrote into the sample x"):
        trainer.learn(lambda x, sigma: x.mul_(0.5), noise(7), nothing)


def test_a_model_that_breaks_teaches_nothing():
    trainer = Trainer(Predictor(0.02, 0.1), Recipe("amed", SIGMAS))
    before = [p.clone() for p in trainer.predictor.parameters()]
    with pytest.raises(NonFiniteError, match="step 1 of 4"):
        trainer.learn(lambda x, sigma: denoiser(x, sigma) * math.nan, noise(7), nothing)
    assert all(torch.equal(p, q) for p, q in zip(before, trainer.predictor.parameters(), strict=True))


def test_arguments_at_fault_are_named():
    with pytest.raises(ValueError, match="extra = 0 must be at least 1"):
        Trainer(Predictor(), Recipe("amed", SIGMAS), extra=0)
    for teacher in ("dpmpp_2m_sde", "dpm_adaptive", "euler_ancestral"):
        with pytest.raises(ValueError, match=f"teacher = '{teacher}' must be a sampler with a plan and without noise"):
            Trainer(Predictor(), Recipe("amed", SIGMAS), teacher=teacher)
    with pytest.raises(KeyError, match="unknown sampler 'dpmpp2m'"):
        Trainer(Predictor(), Recipe("amed", SIGMAS), teacher="dpmpp2m")
    with pytest.raises(ValueError, match="recipe has one evaluation only"):
        Trainer(Predictor(), Recipe("amed", SIGMAS[:2]))


# A plan to begin with


GUIDED = tuple(Tuning(slope=0.1 * (k > 0), curvature=-0.05 * (k > 1), guidance=1 + 0.1 * k) for k in range(4))


def guided_model():
    """A model whose guidance can be set, and all it was told of that."""
    told = []

    def model(x, sigma):
        return x / (1 + sigma[0]) + told[-1] * (denoiser(x, sigma) - x / (1 + sigma[0]))

    return model, told


def test_a_predictor_that_gives_the_numbers_of_a_plan_follows_it():
    """All of them, those that it does not predict too; its bounds are as wide as they must be."""
    plan = Recipe("dpmpp_2m", SIGMAS, tunings=[t._replace(scale_time=0.8, scale_dir=1.1) for t in GUIDED])
    predictor = Predictor.giving(read_levels(SIGMAS), plan.tunings, 0.01, 0.5)
    assert predictor.bounds == pytest.approx((0.15, 0.5))
    model, told = guided_model()
    x = noise(1, 3)
    options = {"disable": True, "set_guidance": told.append}
    fixed = CalibratedPlan(plan).function(model, x, **options)
    levels, tunings = predictor.requires_grad_(False).fixed(read_levels(SIGMAS), plan.tunings)
    assert levels.sigmas == pytest.approx(SIGMAS, rel=1e-5)
    assert torch.tensor(tunings).sub(torch.tensor(plan.tunings)).abs().max() < 1e-5
    seen = CalibratedPlan(plan, predictor).function(model, x, **options, bottleneck=lambda: torch.zeros(3, 1, 8, 8))
    torch.testing.assert_close(seen, fixed, rtol=1e-4, atol=1e-4)


def test_training_begins_with_the_run_of_the_plan():
    """Its slopes, and its guidance in each evaluation, also when the run is gone on with from a later step."""
    plan = Recipe("dpmpp_2m", SIGMAS, tunings=GUIDED)
    model, told = guided_model()
    x = noise(1, 3)
    end = plan.function(model, x, disable=True, set_guidance=told.append)
    target = end + 0.1 * noise(2, 3)
    trainer = Trainer(Predictor.giving(read_levels(SIGMAS), plan.tunings, 0.0, 0.0), plan)
    told.clear()
    loss = trainer.learn_end(model, x, target, nothing, set_guidance=told.append)
    assert loss == pytest.approx(math.log(geometric_mean(rmse((end - target).flatten(1)))), abs=1e-3)
    whole = [t.guidance for t in GUIDED]
    assert told == [*whole, *whole[1:], *whole[3:]]  # the run, and r of both steps
    with pytest.raises(ValueError, match="changes the guidance of single evaluations"):
        trainer.learn_end(denoiser, x, target, nothing)


# Images that are kept


def test_to_first_order_an_image_is_what_it_is_run_with_other_numbers():
    """The kept squares, for numbers a little beside those of the run."""
    recipe, x = Recipe("dpm_2m", SIGMAS), noise(1, 3)
    first, second = rows(3, 0), rows(3, 1)
    target = Trainer(Predictor(), recipe, extra=24).teach(denoiser, x)[-1]
    trainer = Trainer(Told(first, second), recipe, learning_rate=0.0)
    trainer.learn_end(denoiser, x, target, nothing)
    (linear,) = trainer._kept
    beside = [row + torch.tensor([0.02, 0.004, 0.02], dtype=torch.float64) for row in (first, second)]
    exact = (ends_of_steps(recipe, x, beside)[-1] - target).flatten(1).square().sum(dim=1)
    missed = linear.squares_at(torch.cat(beside, dim=1)) - exact
    assert (missed.abs() < 0.4 * (linear.squares - exact).abs()).all()


def test_images_that_are_gone_through_again_teach_more(monkeypatch):
    """The error of others after the same evaluations."""
    recipe = Recipe("dpm_2m", SIGMAS)
    teacher = Trainer(Predictor(), recipe, extra=24)
    x = noise(1000, 48)
    exact = teacher.teach(denoiser, x)[-1]

    def after(rounds: int) -> float:
        monkeypatch.setattr("samplers.calibrated.train_amed.ROUNDS", rounds)
        torch.manual_seed(0)
        trainer = Trainer(predictor := Predictor(0.05, 0.1), recipe)
        for k in range(4):
            batch = noise(k, 16)
            trainer.learn_end(denoiser, batch, teacher.teach(denoiser, batch)[-1], nothing)
        assert [len(linear.squares) for linear in trainer._kept] == [16] * 4
        levels, tunings = predictor.requires_grad_(False).fixed(read_levels(SIGMAS))
        end = Recipe("dpm_2m", levels.sigmas, tunings=tuple(tunings)).function(denoiser, x, disable=True)
        return geometric_mean(rmse((end - exact).flatten(1)))

    assert after(10) < 0.9 * after(1)


def test_the_oldest_are_let_go(monkeypatch):
    monkeypatch.setattr("samplers.calibrated.train_amed.KEPT", 16)
    trainer = Trainer(Predictor(), Recipe("ipndm", SIGMAS[:3]))
    for k in range(4):
        x = noise(k, 8)
        trainer.learn_end(denoiser, x, torch.zeros_like(x), nothing)
    assert len(trainer._kept) == 2
