"""What is said of samplers and schedules where they are declared, and what is found out by running them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from typing import Annotated, Literal

import pytest
import torch

from samplers import SAMPLERS, SCHEDULES, Levels
from samplers.options import Bounds, options_of
from samplers.sampler import SamplerSpec
from samplers.spec import Registry, declare


def a_spec(id: str) -> SamplerSpec:
    return dataclasses.replace(SAMPLERS["euler"], id=id)


# The lists of ids


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a"], "sampler 'b' is declared and stands 0 times in the list"),
        (["a", "b", "c"], "sampler 'c' is listed and not declared"),
        (["a", "b", "a"], "sampler 'a' is declared and stands 2 times in the list"),
    ],
)
def test_what_is_declared_is_listed_once_and_what_is_listed_is_declared(ids, message):
    with pytest.raises(ValueError, match=message):
        Registry("sampler", ids, {"a": a_spec("a"), "b": a_spec("b")})


def test_an_id_is_declared_once():
    with pytest.raises(ValueError, match="euler is declared twice"):
        declare(a_spec("euler"), {"euler": a_spec("euler")})


def test_nothing_is_curated_that_does_not_say_so():
    assert not next(field for field in dataclasses.fields(SamplerSpec) if field.name == "curated").default


@pytest.mark.parametrize("spec", [*SAMPLERS.values(), *SCHEDULES.values()], ids=[*SAMPLERS, *SCHEDULES])
def test_an_id_is_the_name_of_its_function(spec):
    assert spec.id == getattr(spec, "solver", None or getattr(spec, "levels", None)).__name__


# Options from signatures


def test_an_option_is_what_the_signature_says():
    def solver(
        levels: Levels,
        *,
        r: Annotated[float, Bounds(0.05, 1.0, step=0.1), "Where."] = 0.5,
        form: Annotated[Literal["one", "two"], "Which."] = "two",
        final: Annotated[bool, "Whether."] = True,
        flow: bool = False,
    ) -> None: ...

    r, form, final = options_of(solver, filled_in=("flow",))
    assert (r.name, r.default, r.minimum, r.maximum, r.step, r.help) == ("r", 0.5, 0.05, 1.0, 0.1, "Where.")
    assert (form.name, form.default, form.choices, form.help) == ("form", "two", ("one", "two"), "Which.")
    assert (final.name, final.default, final.choices, final.minimum) == ("final", True, (), None)
    with pytest.raises(TypeError, match="solver: option flow must be Annotated with its help text"):
        options_of(solver)


@pytest.mark.parametrize(
    ("hint", "default", "error", "message"),
    [
        (float, 0.5, TypeError, "option given must be Annotated with its help text"),
        (Annotated[float, Bounds(0.0, 1.0)], 0.5, TypeError, "must be Annotated with its help text"),
        (Annotated[float, "How much."], 0.5, TypeError, "if it is a number, with its Bounds"),
        (Annotated[float, Bounds(0.0, 1.0), "How much."], 1, TypeError, "needs a default of its type, and has 1"),
        (Annotated[bool, "Whether."], None, TypeError, "needs a default of its type, and has None"),
        (Annotated[float, Bounds(0.0, 1.0), "How much."], 2.0, ValueError, "given = 2.0 must lie between 0 and 1"),
        (Annotated[Literal["a", "b"], "Which."], "c", ValueError, "given = 'c' must be one of a, b"),
    ],
)
def test_an_option_that_is_not_described_is_named(hint, default, error, message):
    def solver(levels, *, given): ...

    solver.__annotations__ = {"given": hint}
    solver.__kwdefaults__ = {"given": default}
    with pytest.raises(error, match=message):
        options_of(solver)


# What is found out by running


def test_which_option_makes_noise():
    amounts = {id: spec.noise_option.name for id, spec in SAMPLERS.items() if spec.noise_option}
    eta = {"ddim", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "dpmpp_2s_ancestral", "euler_ancestral"}
    eta |= {"er_sde", "sa_solver", "res_multistep_ancestral"}
    eta |= {"dpm_2_ancestral", "seeds_2", "seeds_3", "exp_heun_2_x0_sde"}
    assert amounts == dict.fromkeys(eta, "eta") | {"edm": "s_churn", "consistency": "gamma", "restart": "restarts"}
    assert {id for id, spec in SAMPLERS.items() if spec.stochastic} == {*amounts, "ddpm"}


def test_which_samplers_have_no_plan():
    assert [id for id, spec in SAMPLERS.items() if spec.adaptive] == ["dpm_adaptive"]


def test_which_samplers_step_by_pairs_or_look_back_and_which_move_levels():
    assert [id for id, spec in SAMPLERS.items() if spec.paired] == ["amed", "amed_dpm_2s"]
    multistep = {"unipc", "ipndm", "ipndm_v", "deis", "plms", "dpmpp_2m_sde", "dpmpp_3m_sde", "amed_dpm_2m"}
    multistep |= {"lms", "gradient_estimation", "res_multistep", "res_multistep_ancestral", "er_sde", "sa_solver"}
    multistep |= {"dpmpp_2m_cfg_pp"}
    multistep |= {f"{family}_{order}m" for family in ("dpm", "dpmpp") for order in (2, 3)}
    assert {id for id, spec in SAMPLERS.items() if not spec.singlestep} == multistep
    moving = {id: dict(spec.at_given_levels) for id, spec in SAMPLERS.items() if spec.at_given_levels}
    assert moving == {id: {"middle": "given"} for id in ("amed", "amed_dpm_2s", "amed_dpm_2m")}


# The way of a run


@pytest.mark.parametrize("id", ["dpmpp_2m", "dpm_adaptive", "ddpm"])
def test_options_are_checked_once_and_sigmas_read_once(id, monkeypatch):
    calls = []

    def counted(name, function):
        def count(*arguments):
            calls.append(name)
            return function(*arguments)

        return count

    monkeypatch.setattr(SamplerSpec, "check_options", counted("options", SamplerSpec.check_options))
    for module in ("sampler", "levels"):
        module = importlib.import_module(f"samplers.{module}")
        monkeypatch.setattr(module, "read_sigmas", counted("sigmas", module.read_sigmas))
    SAMPLERS[id].function(lambda x, sigma: 0.5 * x, torch.ones(1, 1, 4, 4), torch.tensor([5.0, 2.0, 0.7]), disable=True)
    assert calls == ["options", "sigmas"]


# Widgets are saved by position


def with_one_more(function):
    """The function with one more option, before all others."""

    @functools.wraps(function)
    def wider(*arguments, newest: float = 0.5, **options):
        return function(*arguments, **options)

    signature = inspect.signature(function)
    first, *rest = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    positional = [p for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    newest = first.replace(name="newest", default=0.5)
    wider.__signature__ = signature.replace(parameters=[*positional, newest, first, *rest])
    wider.__annotations__ = function.__annotations__ | {"newest": Annotated[float, Bounds(0.0, 1.0), "The newest."]}
    return wider


@pytest.mark.parametrize(
    ("node", "specs", "field", "id"),
    [("FewStepSampler", SAMPLERS, "solver", "dpmpp_2m"), ("FewStepScheduler", SCHEDULES, "levels", "karras")],
)
def test_a_new_option_leaves_the_widgets_of_saved_workflows_where_they_are(comfyui, node, specs, field, id):
    """Also if it is the first option of a sampler in the middle of the list."""
    options = importlib.import_module(f"{comfyui.nodes[node].__module__.rpartition('.')[0]}.ui.options")
    grown = dict(specs)
    grown[id] = dataclasses.replace(specs[id], **{field: with_one_more(getattr(specs[id], field))})
    assert grown[id].options[0].name == "newest"
    before, after = ([i.id for i in options.option_inputs(of.values())] for of in (specs, grown))
    assert after == [*before, "newest"]
    inputs = [i.id for i in comfyui.nodes[node].define_schema().inputs]
    assert inputs[-len(before) :] == before, "options are the last widgets of the node"


def test_every_option_has_its_place(comfyui):
    """A name that is not in the order comes last, but among several such names only as they are declared."""
    module = comfyui.nodes["FewStepSampler"].__module__.rpartition(".")[0]
    order = importlib.import_module(f"{module}.ui.options").ORDER
    named = {option.name for spec in [*SAMPLERS.values(), *SCHEDULES.values()] for option in spec.options}
    assert len(order) == len(set(order)) and named == set(order), "append a new name to ORDER in nodes/ui/options.py"
