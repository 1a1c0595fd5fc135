"""Calibration on the mixture, whose solution is known."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
from mixture import FLOW_MAX, FLOW_MIN, MU, SIGMA_MAX, SIGMA_MIN, X1, denoiser, flow_denoiser, levels

from samplers import SAMPLERS
from samplers.calibrated.fit import PATIENCE, calibrate, plain_recipes
from samplers.calibrated.objective import PENALTY, DifferentiableGoal, Goal, geometric_mean, rmse
from samplers.calibrated.parameters import FITTABLE, Parameter, moved, parameters_of, placed
from samplers.calibrated.recipe import Recipe
from samplers.calibrated.tuning import Tuning

PARAMETERS = ("level", "slope", "curvature", "scale_time")


def start(base: str = "dpmpp_2m", n: int = 5) -> Recipe:
    """A poor one: levels uniform in lambda."""
    return Recipe(base, (*levels(n - 1).tolist(), 0.0))


@functools.cache
def samples(seed: int, n: int = 16):
    """Noise at the first level, and the samples of a run of many steps from there."""
    x = SIGMA_MAX * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sigmas = [*levels(150).tolist(), 0.0]
    return x, SAMPLERS["dpmpp_3m"].function(denoiser, x, sigmas, disable=True, solver_type="exact")


def goal(seed: int, n: int = 16, model=denoiser) -> Goal:
    x, target = samples(seed)
    return Goal(lambda recipe: recipe.function(model, x[:n], disable=True), target[:n])


def run(starts, training=None, validation=None, **options):
    """All the progress of a calibration."""
    training, validation = training or goal(1), validation or goal(2)
    return list(calibrate(starts, goal(1, 4), training, validation, **{"parameters": PARAMETERS, **options}))


# What it reaches


@pytest.mark.parametrize(("base", "n"), [("dpmpp_2m", 4), ("ipndm_v", 5), ("amed", 5), ("amed_dpm_2m", 5)])
def test_the_error_on_fresh_noise_falls_by_a_third_at_least_and_again_alike(base, n):
    first, again = (run([start(base, n)], rounds=3)[-1] for _ in range(2))
    assert first == again
    assert first.after < 2 / 3 * first.before
    error = geometric_mean(rmse(goal(2).residuals(first.best)))
    assert error == pytest.approx(first.after)
    assert geometric_mean(rmse(goal(2).residuals(start(base, n)))) == pytest.approx(first.before)
    assert error < 2 / 3 * first.before
    assert first.best.sigmas[0] == start(base, n).sigmas[0] and first.best.sigmas[-1] == 0


def test_guidance_is_fitted_where_it_can_be_set():
    """A model whose guidance is 20 percent off at each evaluation: the parameters find it."""
    x, _ = samples(1)

    def result(recipe, n=16):
        scale = [1.0]

        def model(x, sigma):
            uncond = x / (1 + sigma[0])
            return uncond + 1.2 * scale[0] * (denoiser(x, sigma) - uncond)

        set_guidance = functools.partial(scale.__setitem__, 0)
        return recipe.function(model, x[:n], disable=True, set_guidance=set_guidance)

    def exact(recipe):
        return recipe.function(denoiser, x, disable=True)

    plain = start()
    training = Goal(result, exact(plain))
    *_, end = calibrate([plain], training, training, training, parameters=("guidance",), rounds=6)
    assert end.after < 0.05 * end.before
    assert [t.guidance for t in end.best.tunings] == pytest.approx([1 / 1.2] * 5, abs=0.03)


def test_the_best_is_judged_on_samples_that_nothing_is_fitted_to():
    """Validation contradicts training: fitting makes it worse, and the plain recipe is kept."""
    x, _ = samples(1)
    plain = start()
    kept = plain.function(denoiser, x, disable=True)
    training = Goal(lambda recipe: recipe.function(denoiser, x, disable=True), kept + 0.3 * MU[0].reshape(1, 1, 4, 4))
    validation = Goal(training.run, kept)
    *_, end = run([plain], training, validation, rounds=2)
    assert end.best == plain and end.before == end.after
    assert all(progress.best == plain for progress in run([plain], training, validation, rounds=1))


def test_it_stops_when_steps_no_longer_help_in_validation():
    """Training can go on for long, and validation gets worse from the first step on: four steps in vain are enough."""
    x, _ = samples(1)
    plain = start()
    kept = plain.function(denoiser, x, disable=True)
    validation = Goal(lambda recipe: recipe.function(denoiser, x, disable=True), kept)
    judged = []

    def judge(recipe):
        judged.append(recipe)
        return validation.run(recipe)

    progress = run([plain], goal(1), Goal(judge, kept), rounds=50)
    assert len(judged) == 1 + PATIENCE and progress[-1].best == plain


def test_inserted_levels_alone_are_fitted_for_amed():
    plain = start("dpm_2m", 6)
    *_, end = run([plain], parameters=("level", "scale_dir", "scale_time"), inserted=True, rounds=2)
    assert end.after < end.before and end.best.sigmas[::2] == plain.sigmas[::2]
    assert set(end.best.tunings[::2]) == {Tuning()} and end.best.sigmas[1] != plain.sigmas[1]


def test_of_several_starts_the_best_is_where_it_begins():
    poor, good = start("euler"), Recipe("dpmpp_2m", (SIGMA_MAX, 4.0, 1.5, 0.7, 0.3, 0.0))
    errors = [geometric_mean(rmse(goal(2).residuals(recipe))) for recipe in (poor, good)]
    *_, end = run([poor, good], rounds=1)
    assert errors[1] < errors[0] and end.before == pytest.approx(errors[1]) and end.best.base == good.base


def test_what_is_fitted_keeps_a_constant_exact():
    *_, end = run([start()], rounds=2)
    assert end.best != start()
    c = torch.full_like(X1, 0.7)
    torch.testing.assert_close(end.best.function(lambda x, sigma: c, 14 * X1, disable=True), c, rtol=0, atol=1e-12)


def test_what_is_free_is_all_that_changes():
    *_, end = run([start()], parameters=("slope",), rounds=2)
    assert end.best.sigmas == start().sigmas
    assert all(t == Tuning(slope=t.slope) for t in end.best.tunings)
    assert end.best.tunings[0].slope == 0 and end.after < end.before
    *_, end = run([start()], parameters=("level",), rounds=1, inserted=True)
    same = [a == b for a, b in zip(end.best.sigmas, start().sigmas, strict=True)]
    assert same == [True, False, True, False, True, True]


def test_a_problem_linear_in_its_parameters_is_solved_in_one_round():
    """The sample of a constant per evaluation is linear in the slopes; the optimum is that of least squares."""
    recipe = start()
    fixed = torch.randn(5, 6, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def result(recipe):
        answers = iter(fixed)
        return recipe.function(lambda x, sigma: next(answers), SIGMA_MAX * noise, disable=True)

    parameters = parameters_of(recipe, ("slope",))
    plain = result(recipe)
    columns = torch.stack(
        [result(moved(recipe, [n], [1.0])) - plain for n in parameters]  # exact: it is linear
    ).flatten(2)
    target = plain + 0.1 * torch.randn(plain.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    training = Goal(result, target)
    *_, end = calibrate([recipe], training, training, training, parameters=("slope",), rounds=1)

    found = (plain - target).flatten(1)
    weights = 1 / found.square().mean(1).sqrt() / math.sqrt(found.numel())
    scale = FITTABLE["slope"].scale
    rows = (columns * scale * weights[:, None]).flatten(1)
    ridge = math.sqrt(PENALTY) * torch.eye(len(parameters), dtype=torch.float64)
    matrix = torch.cat([rows.T, ridge])
    right = torch.cat([-(found * weights[:, None]).flatten(), torch.zeros(len(parameters), dtype=torch.float64)])
    expected = torch.linalg.lstsq(matrix, right[:, None]).solution[:, 0] * scale
    slopes = [end.best.tunings[n.at].slope for n in parameters]
    assert slopes == pytest.approx(expected.tolist(), rel=0.02, abs=2e-3)


# Its progress


@pytest.mark.parametrize("backpropagate", [False, True], ids=["differences", "gradient"])
def test_progress_counts_the_runs_that_were_made(backpropagate):
    made = 0

    def counted(inner: Goal) -> Goal:
        def one_more(recipe):
            nonlocal made
            made += 1
            return inner.run(recipe)

        return Goal(one_more, inner.target)

    class Counted(DifferentiableGoal):
        def squares(self, *args):
            nonlocal made
            made += 1
            return super().squares(*args)

    differentiable = Counted(denoiser, *samples(1)) if backpropagate else None
    starts = [start("dpmpp_2m", 4), start("ipndm_v", 4)]
    steps = calibrate(
        starts,
        counted(goal(1, 4)),
        counted(goal(1)),
        counted(goal(2)),
        parameters=PARAMETERS,
        rounds=2,
        backpropagate=differentiable,
    )
    before = 0
    for progress in steps:
        assert progress.runs == made and before <= made <= progress.expected
        assert made <= before + 1  # heard of after each
        before = made
        assert progress.after <= progress.before and isinstance(progress.best, Recipe)
    assert progress.stage == "done" and progress.expected == progress.runs == made


def test_it_can_be_closed_at_any_time_with_a_best_that_samples():
    total = len(run([start(n=4)], rounds=1))
    for stop in (1, 2, 4, total // 2, total - 1):
        steps = calibrate([start(n=4)], goal(1, 4), goal(1), goal(2), parameters=PARAMETERS, rounds=1)
        *_, last = itertools.islice(steps, stop)
        steps.close()
        assert last.best.function(denoiser, 14 * X1, disable=True).isfinite().all()
        assert last.after <= last.before


def test_a_recipe_that_gives_nan_is_survived():
    """In a start, in trials and in differences: all whose second level is above 6.5 are broken."""
    x, target = samples(1)

    def result(recipe):
        found = recipe.function(denoiser, x, disable=True)
        return found * math.nan if recipe.sigmas[1] > 6.5 else found

    training = Goal(result, target)
    fine = Recipe("dpmpp_2m", (SIGMA_MAX, 6.4, 2.0, 0.6, 0.0))
    broken = Recipe("dpmpp_2m", (SIGMA_MAX, 7.0, 2.0, 0.6, 0.0))
    *_, end = run([broken, fine], training, training, rounds=2)
    assert math.isfinite(end.after) and end.after < end.before
    assert end.best.sigmas[1] <= 6.5
    with pytest.raises(ValueError, match="no plain sampler gave finite samples"):
        run([broken], training, training)


def test_errors():
    with pytest.raises(ValueError, match="parameters = 'nonsense': what can be fitted is level, slope"):
        calibrate([start()], goal(1), goal(1), goal(2), parameters="nonsense")
    with pytest.raises(ValueError, match="parameters = 'sharpness'"):
        calibrate([start()], goal(1), goal(1), goal(2), parameters=("level", "sharpness"))
    with pytest.raises(ValueError, match="no plain levels to start from: choose another base"):
        calibrate([], goal(1), goal(1), goal(2))


# Its parameters


def places(recipe, name):
    return [at for _, at in parameters_of(recipe, (name,))]


def test_which_parameters_there_are():
    assert places(start(), "level") == places(start(), "slope") == [1, 2, 3, 4]
    assert places(start(), "curvature") == [2, 3, 4]
    assert places(start(), "guidance") == [0, 1, 2, 3, 4]
    assert places(Recipe("dpmpp_2m", start().sigmas, afs=True), "guidance") == [1, 2, 3, 4]
    for base in ("amed", "amed_dpm_2s"):
        assert places(start(base, 4), "slope") == places(start(base, 4), "curvature") == [2, 3]  # two Euler steps
        inner = Recipe(base, levels(4).tolist())
        assert places(inner, "slope") == places(inner, "curvature") == []
        assert places(inner, "level") == places(inner, "scale_time") == [1, 2, 3]
    flow = Recipe("ipndm_v", (1.0, 0.8, 0.5, 0.2, 0.0), True)
    assert places(flow, "level") == [1, 2, 3]
    found = parameters_of(start(), ("slope", "level"), inserted=True)
    assert found == [Parameter("slope", 1), Parameter("slope", 3), Parameter("level", 1), Parameter("level", 3)]


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.parametrize("base", ["dpmpp_2m", "dpm_2m", "ipndm_v", "amed", "amed_dpm_2s"])
def test_every_parameter_can_be_moved_and_the_run_follows(base, flow):
    model = flow_denoiser if flow else denoiser
    recipe = Recipe(base, (1.0, 0.8, 0.5, 0.2, 0.0) if flow else start(base, 4).sigmas, flow)
    x = recipe.sigmas[0] * X1
    plain = recipe.function(model, x, disable=True)
    for parameter in parameters_of(recipe, (*PARAMETERS, "scale_dir")):
        changed = moved(recipe, [parameter], [FITTABLE[parameter.name].step]).function(model, x, disable=True)
        assert not torch.equal(changed, plain)
    assert moved(recipe, parameters_of(recipe, PARAMETERS), [0.0] * len(parameters_of(recipe, PARAMETERS))) == recipe


def test_moved_levels_are_in_lambda_and_do_not_cross():
    recipe = start()
    assert moved(recipe, [Parameter("level", 2)], [0.1]).sigmas[2] == pytest.approx(recipe.sigmas[2] * math.exp(-0.1))
    gap = math.log(recipe.sigmas[2] / recipe.sigmas[3])
    assert moved(recipe, [Parameter("level", 2)], [gap - 0.03]) is not None
    for by in (gap - 0.01, gap, gap + 0.1, 900.0, -900.0):
        assert moved(recipe, [Parameter("level", 2)], [by]) is None
    assert moved(recipe, [Parameter("slope", 2)], [11.0]) is None
    for name, most in (("scale_time", 0.5), ("scale_dir", 0.5), ("guidance", 0.9)):
        for sign in (1, -1):
            assert moved(recipe, [Parameter(name, 2)], [0.99 * sign * most]) is not None
            assert moved(recipe, [Parameter(name, 2)], [1.01 * sign * most]) is None


# Where it starts


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.parametrize("n", [2, 5, 10])
def test_plain_recipes(flow, n):
    ends = (FLOW_MIN, FLOW_MAX) if flow else (SIGMA_MIN, SIGMA_MAX)
    recipes = plain_recipes(["dpmpp_2m", "ipndm_v"], n, *ends, flow=flow)
    assert {recipe.base for recipe in recipes} == {"dpmpp_2m", "ipndm_v"}
    assert len(set(recipes.values())) == len(recipes) >= 10
    assert f"dpmpp_2m, {'time_uniform' if flow else 'karras'} without its last level" in recipes.values()
    for recipe in recipes:
        assert recipe.nfe == n and recipe.flow == flow and recipe.tunings == (Tuning(),) * n
        assert recipe.sigmas[0] == ends[1] and recipe.sigmas[-1] == 0
    # No recipe is of a sampler that evaluates twice a step. Where its one step to a level above 0 spans the range of a
    # model, which is too long for order 2, heun does not: such a run is that of euler, and may be followed as it is.
    for recipe in plain_recipes(["heun"], n, *ends, flow=flow):
        assert n == 2 and not flow
        heun, euler = (replace(recipe, base=base).plan() for base in ("heun", "euler"))
        assert [(stage.sigma, stage.update.terms) for stage in heun] == [(s.sigma, s.update.terms) for s in euler]


# With backpropagation


def objective(recipe, parameters, by, seed=1):
    """The mean of the logarithms of the squared errors."""
    return DifferentiableGoal(denoiser, *samples(seed)).squares(recipe, parameters, by).log().mean()


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@pytest.mark.parametrize("base", ["dpmpp_2m", "dpmpp_3m", "dpm_2m", "ipndm_v", "deis", "amed", "amed_dpm_2s"])
def test_the_gradient_is_that_of_the_objective(base):
    """At plain parameters, too, where a scale of 1 changes nothing and still has a derivative."""
    recipe = start(base, 4)
    parameters = parameters_of(recipe, (*PARAMETERS, "scale_dir"))
    assert len(parameters) >= 10
    for values in ([0.0] * len(parameters), [0.02 * math.sin(k) for k in range(len(parameters))]):
        by = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(objective(recipe, parameters, by.unbind()), by)
        for k in range(len(parameters)):
            h = torch.zeros_like(by).index_fill_(0, torch.tensor(k), 1e-5)
            up, down = (float(objective(recipe, parameters, (by.detach() + s * h).unbind())) for s in (1, -1))
            assert gradient[k] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-5)


def test_the_objective_is_that_of_the_recipe():
    recipe = start()
    parameters = parameters_of(recipe, PARAMETERS)
    by = [0.03 * math.cos(k) for k in range(len(parameters))]
    ours = objective(recipe, parameters, by)
    errors = rmse(goal(1).residuals(moved(recipe, parameters, by)))
    assert float(ours) / 2 == pytest.approx(math.log(geometric_mean(errors)), rel=1e-4)
    held, _ = placed(recipe, parameters, [0.0] * len(by))
    assert held.sigmas == recipe.sigmas


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@pytest.mark.parametrize(("base", "n"), [("dpmpp_2m", 4), ("dpmpp_2m", 5), ("ipndm_v", 4), ("ipndm_v", 5)])
@pytest.mark.slow
def test_backpropagation_reaches_what_differences_reach(base, n):
    *_, differences = run([start(base, n)], rounds=8)
    *_, gradient = run([start(base, n)], rounds=8, backpropagate=DifferentiableGoal(denoiser, *samples(1)))
    assert gradient.error < 1.2 * differences.error
    assert gradient.after < 0.1 * gradient.before


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
def test_checkpoints_keep_nothing_of_an_evaluation():
    """Each evaluation that parameters come before runs twice, in the backward order; and saved are samples alone."""
    told, inside, saved = [], False, []

    def model(x, sigma):
        nonlocal inside
        told.append(float(sigma[0]))
        inside = True
        result = denoiser(x, sigma)
        inside = False
        return result

    recipe = start()
    parameters = parameters_of(recipe, ("level", "scale_time"))
    by = torch.zeros(len(parameters), dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(inside) or t, lambda t: t):
        squares = DifferentiableGoal(model, *samples(1)).squares(recipe, parameters, by.unbind())
        forward = list(told)
        assert forward == pytest.approx(recipe.sigmas[:-1])
        assert saved and not any(saved)
        squares.sum().backward()
    assert told[5:] == pytest.approx(recipe.sigmas[4:0:-1])


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@pytest.mark.parametrize("afs", [False, True])
def test_guidance_by_backpropagation(afs):
    """The factor is set again when an evaluation is run again, and has its derivative."""
    scale = [1.0]

    def model(x, sigma):
        return x / (1 + sigma[0]) + scale[0] * (denoiser(x, sigma) - x / (1 + sigma[0]))

    recipe = Recipe("dpmpp_2m", start().sigmas, afs=afs)
    parameters = parameters_of(recipe, ("guidance",))
    set_guidance = functools.partial(scale.__setitem__, 0)
    guided = DifferentiableGoal(model, *samples(1), set_guidance=set_guidance)
    by = torch.linspace(-0.1, 0.2, len(parameters), dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(guided.squares(recipe, parameters, by.unbind()).mean(), by)
    for k in range(len(parameters)):
        h = torch.zeros_like(by).index_fill_(0, torch.tensor(k), 1e-5)
        up, down = (float(guided.squares(recipe, parameters, (by.detach() + s * h).tolist()).mean()) for s in (1, -1))
        assert gradient[k] == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-7)
    with pytest.raises(ValueError, match="guidance: there is no set_guidance"):
        DifferentiableGoal(model, *samples(1)).squares(recipe, parameters, by.unbind())


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
def test_parameters_of_the_network_get_no_gradient():
    weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    differentiable = DifferentiableGoal(lambda x, sigma: weight * denoiser(x, sigma), *samples(1))
    *_, end = run([start(n=4)], backpropagate=differentiable, rounds=1)
    assert weight.grad is None and end.after < end.before
