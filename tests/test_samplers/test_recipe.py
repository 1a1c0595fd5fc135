"""A recipe: a base solver on levels of its own, with numbers."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle

import pytest
import torch
from mixture import X1, denoiser, flow_denoiser, pointwise, without_noise

from samplers import SAMPLERS, integrate, read_levels
from samplers.calibrated.recipe import Recipe
from samplers.calibrated.tuning import Tuning, tuned

SIGMAS = (14.0, 6.0, 2.5, 1.0, 0.4, 0.0)
FLOW = (1.0, 0.9, 0.6, 0.3, 0.1, 0.0)
BASES = [
    "dpmpp_2m",
    "dpmpp_3m",
    "dpm_2m",
    "dpm_3m",
    "euler",
    "ipndm",
    "ipndm_v",
    "ddim",
    "deis",
    "amed",
    "amed_dpm_2s",
    "amed_dpm_2m",
    "lms",
    "gradient_estimation",
    "res_multistep",
]
PAIRS = tuple(id for id in BASES if SAMPLERS[id].paired)
each_base = pytest.mark.parametrize("base", BASES)

TUNINGS = (
    Tuning(scale_time=1.02),
    Tuning(slope=0.3, scale_dir=0.98),
    Tuning(slope=-0.1, curvature=0.2),
    Tuning(curvature=-0.1, scale_time=0.97),
    Tuning(slope=0.2),
)
FIELDS = {"base": "dpmpp_2m", "sigmas": [9.0, 4.0, 1.0, 0.0]}


def plain(base, sigmas, flow=False, model=denoiser):
    """The base sampler's own samples."""
    spec = SAMPLERS[base]
    return spec.function(model, X1 * sigmas[0], sigmas, flow=flow, disable=True, **without_noise(spec))


def counted(model):
    """The model, and the sigmas that it was told."""
    told = []

    def evaluate(x, sigma):
        told.append(float(sigma[0]))
        return model(x, sigma)

    return evaluate, told


# What it samples


@each_base
@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
def test_a_plain_recipe_is_its_base_bit_for_bit(base, flow):
    sigmas, model = (FLOW, flow_denoiser) if flow else (SIGMAS, denoiser)
    recipe = Recipe(base, sigmas, flow)
    assert torch.equal(recipe.function(model, X1 * sigmas[0], disable=True), plain(base, sigmas, flow, model))
    assert recipe.nfe == 5


@pytest.mark.parametrize("base", SAMPLERS)
def test_a_base_evaluates_once_at_each_level_or_is_refused(base):
    if base in BASES:
        assert Recipe(base, SIGMAS).nfe == len(SIGMAS) - 1
    else:
        with pytest.raises(ValueError, match=f"base = '{base}' cannot follow a recipe: .* as dpmpp_2m or ipndm_v"):
            Recipe(base, SIGMAS)


@pytest.mark.parametrize("base", [base for base in BASES if base not in PAIRS])
def test_tunings_are_those_of_a_plan_made_by_hand(base):
    levels, spec = read_levels(SIGMAS), SAMPLERS[base]
    stages = tuned(spec.solver(levels, **without_noise(spec)), levels, TUNINGS)
    expected = integrate(denoiser, X1 * 14, list(stages), disable=True)
    found = Recipe(base, SIGMAS, tunings=TUNINGS).function(denoiser, X1 * 14, disable=True)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(found, plain(base, SIGMAS), rtol=1e-3)


def test_the_tuned_update_term_by_term():
    """dpmpp_2m by hand, with all of the numbers in its second step."""
    tuning = Tuning(scale_dir=0.9, scale_time=1.1, slope=0.3)
    made = []

    def model(x, sigma):
        made.append((x, float(sigma[0]), denoiser(x, sigma)))
        return made[-1][2]

    x = Recipe("dpmpp_2m", (9.0, 3.0, 1.0), tunings=(Tuning(), tuning), options={"lower_order_final": False}).function(
        model, X1 * 9, disable=True
    )
    (_, _, d_0), (x_1, told, d_1) = made
    assert told == pytest.approx(3.3)
    expected = x_1 / 3 + 0.9 * (2 / 3) * (d_1 + (0.5 + 0.3) * (d_1 - d_0))
    torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-11)


@each_base
def test_a_constant_stays_exact_under_all_but_scale_dir(base):
    """A model that always answers c: the solution is x_t = (sigma_t / sigma_s) x_s + (1 - sigma_t / sigma_s) c."""
    kept = [t._replace(scale_dir=1.0) for t in TUNINGS]
    if base in PAIRS:  # no slopes within a pair
        kept = [Tuning(scale_time=t.scale_time) for t in kept]
    sigmas = (*SIGMAS[:-1], 0.1)
    c = torch.full_like(X1, 0.7)
    exact = 0.1 / 14 * (14 * X1 - c) + c

    def error(tunings):
        x = Recipe(base, sigmas, tunings=tuple(tunings)).function(lambda x, sigma: c, 14 * X1, disable=True)
        return float((x - exact).abs().max())

    assert error(kept) < 1e-12
    scaled = [kept[0], *(t._replace(scale_dir=0.98) for t in kept[1:])]
    assert error(scaled) > 1e-3 or base in ("dpm_2m", "dpm_3m")


@pytest.mark.parametrize("base", BASES)
def test_numbers_at_pure_noise_of_a_flow(base):
    """There the predicted noise is the sample itself, and the step is one in terms of the denoised sample."""
    tunings = (Tuning(scale_dir=0.9, guidance=1.1), *[Tuning()] * 4)
    guided = Recipe(base, FLOW, True, tunings=(Tuning(guidance=1.1), *[Tuning()] * 4))
    ours = guided.function(flow_denoiser, X1, disable=True, set_guidance=lambda factor: None)
    assert torch.equal(ours, plain(base, FLOW, True, flow_denoiser))
    scaled = Recipe(base, FLOW, True, tunings=tunings)
    x = scaled.function(flow_denoiser, X1, disable=True, set_guidance=lambda factor: None)
    assert x.isfinite().all() and not torch.equal(x, ours)


# A part of the levels


@pytest.mark.parametrize("rounded", [False, True], ids=["exact", "float32"])
@pytest.mark.parametrize("base", ["dpmpp_2m", "dpmpp_3m", "ipndm_v", "dpm_2m", "amed_dpm_2m", "euler"])
def test_a_piece_is_the_base_on_those_levels(base, rounded):
    sigmas = tuple(sigma * 1.0123 for sigma in SIGMAS)
    recipe = Recipe(base, sigmas)
    for first in range(len(sigmas)):
        for last in range(first + 2, len(sigmas) + 1):
            part = torch.tensor(sigmas[first:last], dtype=torch.float32 if rounded else torch.float64)
            ours = recipe.function(denoiser, X1 * sigmas[first], part, disable=True)
            assert torch.equal(ours, plain(base, sigmas[first:last]))


@pytest.mark.parametrize(("base", "in_pairs"), [("amed", False), ("amed_dpm_2s", False), ("dpmpp_2m", True)])
def test_a_piece_does_not_begin_in_the_middle_of_a_step(base, in_pairs):
    recipe = Recipe(base, SIGMAS)
    with pytest.raises(ValueError, match="begins at its level 1, in the middle of a step"):
        recipe.piece(SIGMAS[1:], in_pairs=in_pairs)
    assert recipe.piece(SIGMAS[2:], in_pairs=in_pairs).sigmas == pytest.approx(SIGMAS[2:])


def test_a_piece_keeps_the_numbers_that_have_their_predictions():
    recipe = Recipe("dpmpp_2m", SIGMAS, tunings=TUNINGS, afs=True)
    assert recipe.piece(SIGMAS) is recipe
    later, earlier = recipe.piece(SIGMAS[2:]), recipe.piece(SIGMAS[:4])
    assert not later.afs and earlier.afs
    assert later.tunings == (
        TUNINGS[2]._replace(slope=0.0, curvature=0.0),
        TUNINGS[3]._replace(curvature=0),
        TUNINGS[4],
    )
    assert earlier.tunings == TUNINGS[:3]


@pytest.mark.parametrize(
    "sigmas", [[14.0, 6.0, 2.6, 1.0, 0.4, 0.0], [14.0, 2.5, 1.0], [20.0, 14.0, 6.0], [0.4, 1.0], [*SIGMAS, 0.0]]
)
def test_levels_of_another_run_are_an_error_that_says_what_to_do(sigmas):
    with pytest.raises(ValueError, match=r"sigmas: this run was given .* connect the sigmas that come with the plan"):
        Recipe("dpmpp_2m", SIGMAS).function(denoiser, X1, sigmas, disable=True)


# The analytical first step


@pytest.mark.parametrize("base", ["dpmpp_2m", "ipndm_v", "amed", "dpm_2m"])
def test_afs_is_one_evaluation_less(base):
    model, told = counted(denoiser)
    recipe = Recipe(base, SIGMAS, afs=True)
    recipe.function(model, X1 * 14, disable=True)
    assert recipe.nfe == len(told) == 4 and told == pytest.approx(SIGMAS[1:-1])
    told.clear()
    recipe.function(model, X1 * 2.5, SIGMAS[2:], disable=True)
    assert told == pytest.approx(SIGMAS[2:-1])


# Guidance


GUIDANCE = (1.1, 0.9, 1.2, 0.8, 1.05)


@pytest.mark.parametrize("base", ["dpmpp_2m", "amed"])
@pytest.mark.parametrize("afs", [False, True])
def test_guidance_is_told_before_each_evaluation(base, afs):
    recipe = Recipe(base, SIGMAS, tunings=tuple(Tuning(guidance=g) for g in GUIDANCE), afs=afs)
    events = []

    def model(x, sigma):
        events.append(float(sigma[0]))
        return denoiser(x, sigma)

    def run(*sigmas):
        events.clear()
        recipe.function(model, X1 * 14, *sigmas, disable=True, set_guidance=events.append)
        return events

    def expected(first, last):
        return [e for k in range(first, last) for e in (GUIDANCE[k], SIGMAS[k])]

    assert run() == pytest.approx(expected(int(afs), 5))
    assert run(SIGMAS[2:]) == pytest.approx(expected(2, 5))
    assert run(SIGMAS[:4]) == pytest.approx(expected(int(afs), 3))


def test_guidance_without_a_scale_to_set_is_an_error():
    recipe = Recipe("dpmpp_2m", SIGMAS, tunings=tuple(Tuning(guidance=g) for g in GUIDANCE))
    with pytest.raises(ValueError, match="changes the guidance of single evaluations, and this run has no"):
        recipe.function(denoiser, X1 * 14, disable=True)
    assert not Recipe("dpmpp_2m", SIGMAS).guides


# As text


each_recipe = pytest.mark.parametrize(
    "recipe",
    [
        Recipe("dpmpp_2m", SIGMAS),
        Recipe("ipndm_v", tuple(sigma / 3 for sigma in SIGMAS), tunings=TUNINGS, options={"order": 3}),
        Recipe("amed", FLOW, True, afs=True),
        Recipe("deis", SIGMAS, tunings=tuple(Tuning(guidance=g / 3) for g in GUIDANCE)),
    ],
    ids=lambda recipe: recipe.base,
)


@each_recipe
def test_text_and_back_is_the_same_recipe(recipe):
    back = Recipe.from_dict(json.loads(json.dumps(recipe.as_dict())))
    assert back == recipe and hash(back) == hash(recipe)
    assert back.as_dict() == recipe.as_dict()


@each_recipe
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda recipe: pickle.loads(pickle.dumps(recipe))])
def test_copies_are_the_same_recipe(recipe, copied):
    """In memory and between processes; files are never pickles."""
    back = copied(recipe)
    assert back == recipe and hash(back) == hash(recipe)
    with pytest.raises(TypeError):
        back.options["order"] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": None}, "base = 'None'"),
        ({"base": "dpmpp2m"}, "base = 'dpmpp2m' is not a sampler of this version"),
        ({"base": ["dpmpp_2m"]}, "base = "),
        ({"base": "heun"}, "base = 'heun' cannot follow a recipe"),
        ({"base": "dpmpp_2m_sde"}, "base = 'dpmpp_2m_sde' cannot follow a recipe"),
        ({"base": "dpm_adaptive"}, "base = 'dpm_adaptive' cannot follow a recipe"),
        ({"sigmas": None}, "sigmas must be a list of numbers"),
        ({"sigmas": "9, 4, 1, 0"}, "sigmas must be a list of numbers"),
        ({"sigmas": [9.0, "4", 1.0, 0.0]}, "sigmas must be a list of numbers"),
        ({"sigmas": [9.0, True, 0.0]}, "sigmas must be a list of numbers"),
        ({"sigmas": [10**400, 4.0, 1.0, 0.0]}, "sigmas holds a number that is too large"),
        ({"sigmas": [9.0, math.nan, 1.0, 0.0]}, r"sigmas\[1\] = nan"),
        ({"sigmas": [math.inf, 4.0, 1.0, 0.0]}, r"sigmas\[0\] = inf"),
        ({"sigmas": [9.0, 4.0, -1.0]}, r"sigmas\[2\] = -1"),
        ({"sigmas": [1.0, 4.0, 9.0]}, "sigmas must descend"),
        ({"sigmas": [9.0, 4.0, 5.0]}, "sigmas: .*one direction"),
        ({"sigmas": [9.0, 4.0, 4.0]}, r"sigmas\[1\] and sigmas\[2\] are equal"),
        ({"sigmas": [9.0]}, "sigmas must hold at least two"),
        ({"sigmas": []}, "sigmas must hold at least two"),
        ({"flow": True}, r"sigmas\[0\] = 9"),
        ({"flow": 1}, "flow = 1 must be true or false"),
        ({"afs": "no"}, "afs = 'no' must be true or false"),
        ({"options": []}, r"options = \[\] must be an object"),
        ({"options": {"order": 2}}, "options: dpmpp_2m has no option 'order'"),
        ({"options": {"solver_type": "x"}}, "options: dpmpp_2m: option solver_type = 'x'"),
        ({"slope": [0.0, 0.1]}, "slope has 2 numbers for 4 sigmas"),
        ({"slope": [0.0, 0.1, 0.2, 0.3]}, "slope has 4 numbers for 4 sigmas"),
        ({"slope": 0.1}, "slope must be a list of numbers"),
        ({"slope": [0.0, False, 0.0]}, "slope must be a list of numbers"),
        ({"slope": [0.0, None, 0.0]}, "slope must be a list of numbers"),
        ({"slope": [0.0, math.nan, 0.0]}, r"slope\[1\] = nan must lie between"),
        ({"slope": [0.1, 0.0, 0.0]}, "level 0 has no slope"),
        ({"curvature": [0.0, 0.1, 0.0]}, "level 1 has no curvature"),
        ({"scale_time": [1.0, math.inf, 1.0]}, r"scale_time\[1\] = inf must lie between"),
        ({"scale_dir": [1.0, 1.0, 0.0]}, r"scale_dir\[2\] = 0.0 must lie between"),
        ({"guidance": [1.0, -1.0, 1.0]}, r"guidance\[1\] = -1.0 must lie between"),
        ({"sharpness": 1}, "unknown field 'sharpness'; this version knows afs, base"),
    ],
    ids=str,
)
def test_a_bad_field_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict(FIELDS | change)


@pytest.mark.parametrize("missing", FIELDS)
def test_a_missing_field_is_named(missing):
    with pytest.raises(ValueError, match=f"field '{missing}' is missing"):
        Recipe.from_dict({name: field for name, field in FIELDS.items() if name != missing})


@pytest.mark.parametrize("fields", [None, 3, [FIELDS], "dpmpp_2m"], ids=repr)
def test_what_is_no_object_is_an_error(fields):
    with pytest.raises(ValueError, match="a plan is an object"):
        Recipe.from_dict(fields)


# As a value


def test_a_recipe_does_not_change():
    options = {"lower_order_final": True}
    recipe = Recipe("dpmpp_2m", SIGMAS, options=options)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.base = "euler"
    with pytest.raises(TypeError):
        recipe.options["lower_order_final"] = False
    options["lower_order_final"] = False
    assert recipe.options == {"lower_order_final": True}
    assert isinstance(recipe.sigmas, tuple) and isinstance(recipe.tunings, tuple)


def test_equal_recipes_are_one_key():
    one, other = Recipe("dpmpp_2m", SIGMAS), Recipe("dpmpp_2m", list(SIGMAS), tunings=[Tuning()] * 5)
    assert one == other and {one: 1}[other] == 1
    assert one != Recipe("dpmpp_2m", SIGMAS, afs=True) != Recipe("dpmpp_2m", SIGMAS, options={"corrected_start": True})


def test_any_model_and_dtype():
    recipe = Recipe("ipndm_v", SIGMAS, tunings=TUNINGS)
    for shape, dtype in (((2, 4, 8), torch.float32), ((1, 4, 3, 8, 8), torch.bfloat16), ((2, 4, 8, 8), torch.float16)):
        x = recipe.function(pointwise, torch.ones(shape, dtype=dtype), disable=True)
        assert x.shape == shape and x.dtype == dtype and x.isfinite().all()
