"""What the front end draws in the nodes, from the code that a run uses, so that no run is needed.

    GET  /fewstep/words     the words by which the search box finds each node
    GET  /fewstep/options   which widgets belong to which choice, with their defaults
    POST /fewstep/sigmas    {node, levels}: the noise levels of a schedule node, and the host's karras beside them
    POST /fewstep/plan      {node, levels, model, loader, sigmas, guidance}: the evaluations of a sampler node
    GET  /fewstep/plans     the plans that can be loaded: what each says of itself
    POST /fewstep/plans/rename, /fewstep/plans/delete    {file, name}, {file}: of the plans in models/fewstep
    GET  /fewstep/names     the samplers and schedules that Few-Step Compare knows
    POST /fewstep/check     {samplers, schedules, steps}: what is wrong in which of its boxes

`levels` and `model` are what a node has sent of its model in the last run (`levels_ui`); `loader` is the node that
the model comes from, for what is known of it before a run. A node travels as {"type": its id, "inputs": {name: value,
or a node}}, the host's SplitSigmas with its "output" beside them. What cannot be drawn is answered with {"error":
text}, which the node shows in place of its plot, and "not_yet" where nothing is wrong. `requests` says what may be
asked.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import comfy.model_sampling
import comfy.samplers
from comfy.k_diffusion.sampling import get_sigmas_karras
from server import PromptServer

from ..samplers import SAMPLERS, SCHEDULES
from ..samplers.calibrated import CalibratedPlan, FileError, load
from ..samplers.checks import shortened
from ..samplers.guidance import RAMPS, Guidance, passes
from ..samplers.plan import DENOISED, Plan
from ..samplers.schedules.trained import of_flow, trained_models
from .auto import Choice, choose
from .guidance import read_values
from .host import plan_files
from .host.families import family_name, loaded_by
from .host.guider import with_factor
from .host.model import LevelRange, check_plan, percent_at
from .host.runs import NOT_KNOWN, Run, follow, resolve
from .host.sampling import PREFIX, sigmas_over
from .host.students import student_in_facts
from .ksampler import INSTEAD, FewStepKSampler, FewStepKSamplerAdvanced
from .plans import FewStepLoadPlan
from .requests import NotYet, RequestError, given_texts, read_request, read_texts
from .requests import answer as _answer
from .sampling import FewStepScheduler
from .ui.families import grouped
from .ui.menu import also_called, host_node, words_of
from .ui.names import READERS, faults, known_names
from .ui.options import chosen_options

Node = Mapping[str, Any]
Kind = Mapping[str, Any] | None

STABLE_DIFFUSION = LevelRange(0.029167158, 14.614641)
FLOW = LevelRange(0.001, 1.0, flow=True)
SD15 = {"family": "SD15", "sampling": "ModelSamplingDiscrete", "prediction": "EPS"}
"""Drawn for where no model is known yet: the levels of SD1.5, or of a flow model where the schedule is of one, and what
else is known of SD1.5."""

KSAMPLERS = {cls.__name__: cls for cls in (FewStepKSampler, FewStepKSamplerAdvanced)}
"""Nodes that have sampler and schedule in one."""

LONGEST = 1000
"""Steps of a run that is still drawn."""


def register_routes() -> None:
    """Make the routes known to the host's server, if there is one, once."""
    server = getattr(PromptServer, "instance", None)
    if server is None or any(getattr(route, "path", None) == "/fewstep/options" for route in server.routes):
        return
    server.routes.get("/fewstep/options")(_answer(lambda _: options()))
    server.routes.get("/fewstep/words")(_answer(lambda _: words()))
    server.routes.post("/fewstep/sigmas")(_answer(sigmas))
    server.routes.post("/fewstep/plan")(_answer(plan))
    server.routes.get("/fewstep/plans")(_answer(lambda _: plans()))
    server.routes.post("/fewstep/plans/rename")(_answer(rename_plan, changes=True))
    server.routes.post("/fewstep/plans/delete")(_answer(delete_plan, changes=True))
    server.routes.get("/fewstep/names")(_answer(lambda _: known_names()))
    server.routes.post("/fewstep/check")(_answer(check))


# Search


def words() -> dict[str, list[str]]:
    """By node. Hosts since 2026 tell the front end by themselves."""
    from . import loaded

    return {node.__name__: words_of(node) for node in loaded()}


# Widgets


def options() -> dict[str, Any]:
    """By node: each widget that chooses, by choice the others that belong to it, with their defaults and, of numbers,
    their bounds, and the words for some values of widgets; for samplers the family of each."""

    def of(registry: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
        return {
            id: {option.name: option.default for option in spec.options if option.name not in without}
            for id, spec in registry.items()
        }

    def bounds(registry: Mapping[str, Any]) -> dict[str, Any]:
        return {
            id: {
                o.name: [o.minimum, o.maximum] for o in spec.options if o.minimum is not None and o.maximum is not None
            }
            for id, spec in registry.items()
        }

    ramp = dict.fromkeys(("cfg", "cfg_end", "sigma_start", "sigma_end"))
    shapes = {
        "constant": {"cfg": None},
        "interval": dict.fromkeys(("cfg", "sigma_start", "sigma_end")),
        **{name: ramp | ({"power": None} if name == "power" else {}) for name in RAMPS},
        "list": {"values": None},
    }
    words = {"shift": {"0": "auto"}, "linear_steps": {"0": "half"}, "end_step": {"10000": "all"}}

    def plain(**words: dict[str, str]) -> dict[str, Any]:
        """Words for values of widgets that no choice decides on."""
        return {"choice": None, "widgets": {}, "words": words}

    families = grouped()
    samplers = {
        "choice": "sampler",
        "widgets": of({id: SAMPLERS[id] for id in families}),
        "bounds": bounds(SAMPLERS),
        "families": families,
        "also": also_called(),
        "needs": {"detail_start": "detail", "detail_end": "detail"},
    }
    schedules = {"choice": "schedule", "widgets": of(SCHEDULES), "bounds": bounds(SCHEDULES), "words": words}
    both = [
        {**samplers, "choice": "sampler_name"},
        {**schedules, "choice": "scheduler", "widgets": of(SCHEDULES, INSTEAD)},
    ]
    return {
        "FewStepSampler": [samplers],
        "FewStepScheduler": [schedules],
        "FewStepKSampler": both,
        "FewStepKSamplerAdvanced": [*both, plain(end_at_step={"10000": "all"})],
        "FewStepGuidance": [
            {
                "choice": "schedule",
                "widgets": shapes,
                "words": {name: {"0": "auto"} for name in ("sigma_start", "sigma_end")},
            }
        ],
        "FewStepAuto": [plain(cfg={"0": "not known"})],
        "FewStepCalibrate": [plain(batch={"0": "all"})],
        "FewStepChain": [plain(sigma={"0": "not used"})],
        "FewStepCompare": [plain(reference_steps={"0": "none"})],
    }


def check(request: Any) -> dict[str, Any]:
    """What is wrong in which of the boxes of Few-Step Compare, while they are typed in."""
    return {"faults": faults(given_texts(request, READERS))}


# Schedules


def sigmas(request: Mapping[str, Any]) -> dict[str, Any]:
    """The levels of a schedule node and those of the host's karras in the same steps."""
    request = read_request(request)
    node, levels = request["node"], _levels(request)
    found = _sigmas(node, levels, request["model"])
    compared = _karras(node, levels, len(found)) if node["type"] == "FewStepScheduler" else []
    return {"sigmas": found, "karras": compared, "levels": _shown(request, levels)}


def _karras(node: Node, levels: LevelRange, count: int) -> list[float]:
    """So many levels of the host's karras, in the steps of a node with a schedule."""
    inputs = node["inputs"]
    steps, start = inputs["steps"], inputs.get("start_step", 0) or inputs.get("start_at_step", 0)
    whole = get_sigmas_karras(int(steps / inputs.get("denoise", 1.0)), levels.sigma_min, levels.sigma_max)
    return [float(level) for level in whole[-steps - 1 :][start : start + count]]


def _levels(request: Mapping[str, Any]) -> LevelRange:
    if request.get("levels"):
        return LevelRange(**request["levels"])
    return FLOW if any(map(_is_of_flow, (request["node"], request.get("sigmas")))) else STABLE_DIFFUSION


def _is_of_flow(node: Node | None) -> bool:
    """Whether the schedule of a node is that of a distilled flow model."""
    inputs = node["inputs"] if node else {}
    entry = trained_models().get(inputs.get("distilled", ""))
    trained = "trained" in (inputs.get("schedule"), inputs.get("scheduler"))
    return trained and entry is not None and of_flow(entry)


def _shown(request: Mapping[str, Any], levels: LevelRange) -> dict[str, Any]:
    return {**levels._asdict(), "known": bool(request.get("levels"))}


def _sigmas(node: Node, levels: LevelRange, model: Kind = None) -> list[float]:
    """The levels that a node of ours gives, or one of the host that needs no model.

    Raises:
        ValueError: if it gives none that can be drawn.
    """
    inputs = node["inputs"]
    if node["type"] == "FewStepPlanSampler":
        return list(_plan_of(inputs).recipe.sigmas)
    if node["type"] == "FewStepAuto":
        return _choice(inputs, levels, model).sigmas.tolist()
    if node["type"] == "SplitSigmas":
        whole, step = _sigmas(inputs["sigmas"], levels, model), inputs["step"]
        part = whole[step:] if node["output"] else whole[: step + 1]
        if len(part) < 2:
            raise ValueError("SplitSigmas leaves no step here")
        return part
    if node["type"] == "ManualSigmas" and (theirs := host_node("ManualSigmas")):  # of new hosts: what is typed in
        typed = theirs.execute(inputs["sigmas"]).result[0].tolist()
        _drawn(len(typed) - 1)
        return typed
    if node["type"] == "BasicScheduler":
        return _of_host(inputs, levels, model)
    if node["type"] != "FewStepScheduler":
        raise NotYet("the noise levels of this node are known when it runs")
    _drawn(inputs["steps"], inputs["denoise"])
    return FewStepScheduler.sigmas(levels, student=student_in_facts(model), **inputs).tolist()


def _of_host(inputs: Mapping[str, Any], levels: LevelRange, model: Kind) -> list[float]:
    """What the host's BasicScheduler gives.

    Raises:
        ValueError: if the host has no such scheduler, or the model's levels are not those of most models of its kind.
    """
    scheduler, steps, denoise = inputs["scheduler"], _drawn(inputs["steps"], inputs["denoise"]), inputs["denoise"]
    if scheduler not in comfy.samplers.KSampler.SCHEDULERS:
        raise ValueError(f"scheduler: there is no {shortened(scheduler)} here")
    if (own := SCHEDULES.get(scheduler.removeprefix(PREFIX))) and scheduler.startswith(PREFIX):
        return sigmas_over(own, levels, steps, denoise=denoise).tolist()
    sampling = _model_sampling(levels, model)
    if not math.isclose(float(sampling.sigma_max), levels.sigma_max, rel_tol=1e-3):
        raise NotYet("the noise levels of this node are known when it runs")
    whole = comfy.samplers.calculate_sigmas(sampling, scheduler, int(steps / denoise))
    return [float(level) for level in whole[-steps - 1 :]]


def _drawn(steps: int, denoise: float = 1.0) -> int:
    """The steps, if a schedule of so many is drawn."""
    if denoise <= 0:
        raise ValueError("denoise is 0: there are no steps")
    if steps > LONGEST * denoise:
        raise ValueError(f"more than {LONGEST} steps are not drawn")
    return steps


def _plan_of(inputs: Mapping[str, Any]) -> CalibratedPlan:
    """The plan on an input, if it comes from a file or a text."""
    source = inputs.get("plan") or {}
    if source.get("type") != "FewStepLoadPlan":
        raise NotYet("Connect a plan. A plan made in the same run is drawn after that run.")
    return FewStepLoadPlan.execute(**source["inputs"]).result[0]


def _choice(inputs: Mapping[str, Any], levels: LevelRange, model: Kind) -> Choice:
    """What FewStepAuto does. No plan is looked for where nothing but the levels is known of the model."""
    given = {name: inputs[name] for name in ("evaluations", "variety", "denoise", "use_plans", "cfg") if name in inputs}
    plan = _plan_of(inputs) if inputs.get("plan") else None
    _drawn(given["evaluations"], given["denoise"])
    if model is None:
        given["use_plans"] = False
    return choose(levels, model or {}, plan=plan, **given)


# Samplers


def plan(request: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluations of a sampler node.

    `sigmas` is the schedule node it is used with, if that is known; `guidance` a scale, a FewStepGuidance node, or a
    list of scales, one for each step.

    Each evaluation has its `step`, the `sigma` that the model is told of and the `level` that the sample is at (the two
    differ by the option `detail`), the `order` of the update after it, which is the number of predictions
    in it, whether `noise` is added, and its `guidance` if that is known. `passes` counts runs of the network:
    two with guidance and with CFG++, one at scale 1; `at_most` so many where guidance may end before.

    `published`: the published plan of the sampler is followed, whatever the schedule. `unknown`: a plan may be followed
    instead, by what the model is, which is not known.

    `schedule`, of a node with sampler and schedule in one: its levels as `sigmas` gives them. None of another.
    """
    request = read_request(request)
    levels, node = _levels(request), request["node"]
    known = _known_kind(request)
    model = request.get("model") if request.get("levels") else {**SD15, **known}
    run = _run(node, request.get("sigmas"), levels, model)
    if run.calibrated is not None and node["type"] != "FewStepAuto":  # which leaves out what does not fit
        check_plan(run.calibrated, known)
    scales = _scales(request.get("guidance"), run, levels, model)
    order = run.spec.order
    orders = (made for stage, made in zip(run.plan, _orders(run.plan), strict=True) if stage.sigma is not None)
    evaluated = (stage for stage in run.plan if stage.sigma is not None)
    return {
        "label": _label(run),
        "order": order,
        "evaluations": [
            {
                "step": stage.step,
                "sigma": sigma,
                "level": level,
                "order": min(made, order),
                "noise": noisy,
            }
            for stage, sigma, level, made, noisy in zip(
                evaluated, run.model_sigmas().tolist(), run.levels.tolist(), orders, _noisy(run.plan), strict=True
            )
        ],
        "guidance": scales,
        "passes": None if scales is None else 2 * len(scales) if run.spec.takes_apart else passes(scales),
        "at_most": _may_end(request.get("guidance")),
        "assumed": node["type"] == "FewStepSampler" and not request.get("sigmas"),
        "published": run.published,
        "unknown": model is None and (run.why == NOT_KNOWN or bool(node["inputs"].get("use_plans"))),
        "levels": _shown(request, levels) if run.calibrated is None or run.published else None,
        "schedule": _schedule(request, run, levels) if node["type"] in KSAMPLERS else None,
    }


def _schedule(request: Mapping[str, Any], run: Run, levels: LevelRange) -> dict[str, Any]:
    """The levels of a run as `sigmas` gives them; those of a plan are compared with nothing."""
    own = run.given if run.recipe is None else run.recipe.sigmas
    compared = _karras(request["node"], levels, len(own)) if run.recipe is None else []
    return {"sigmas": list(own), "karras": compared, "levels": _shown(request, levels)}


def _known_kind(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is known of the model of a run, by the last one or by its loader."""
    if request.get("levels"):
        return request.get("model") or {}
    return loaded_by(request["loader"]) if request.get("loader") else {}


def _label(run: Run) -> str:
    if run.calibrated is None:
        return run.spec.label
    how = "published" if run.published else "predicted" if run.calibrated.predictor is not None else "calibrated"
    return f"{run.spec.label}, {how}"


def _orders(plan: Plan) -> list[int]:
    """For each stage the number of predictions that its update builds on, since the start of its step."""
    orders: list[int] = []
    made = 0  # predictions so far
    used: set[int] = set()
    for i, stage in enumerate(plan):
        made += stage.remembers
        if i == 0 or plan[i - 1].completes:
            used = set()
        used |= {made - max(key, 0) for key in stage.update.terms if key >= 0 or key in DENOISED.terms}
        orders.append(len(used))
    return orders


def _noisy(plan: Plan) -> list[bool]:
    """For each evaluation whether noise is added with it: by its own stage, by one after it in its step, or by one that
    begins the step before it."""
    noisy: list[bool] = []
    step, waiting = None, False  # of the last evaluation; noise that begins a step
    for stage in plan:
        if stage.sigma is not None:
            noisy.append(waiting or stage.noise is not None)
            step, waiting = stage.step, False
        elif stage.noise is not None and stage.step == step:
            noisy[-1] = True
        elif stage.noise is not None:
            waiting = True
    return noisy


def _run(node: Node, schedule: Node | None, levels: LevelRange, model: Kind) -> Run:
    """What a sampler node will do, by what a run asks: `resolve` and `follow`."""
    inputs = dict(node["inputs"])
    found = _sigmas(schedule, levels, model) if schedule else None
    if node["type"] == "FewStepPlanSampler":
        return follow(_plan_of(inputs), found, predicts=inputs.get("see_bottleneck", True))
    if node["type"] == "FewStepAuto":
        choice = _choice(inputs, levels, model)
        spec, options, found = choice.spec, choice.options, found or choice.sigmas.tolist()
        if choice.plan is not None:
            return follow(choice.plan, found, predicts=True)
    elif node["type"] in KSAMPLERS:
        inputs["plan"] = _plan_of(inputs) if inputs.get("plan") else None
        _drawn(inputs["steps"], inputs.get("denoise", 1.0))
        found = KSAMPLERS[node["type"]].sigmas(levels, student=student_in_facts(model), **inputs).tolist()
        if not found:
            raise ValueError("no steps")
        if inputs["plan"] is not None:
            return follow(inputs["plan"], found, predicts=True)
        spec = SAMPLERS[inputs["sampler_name"]]
        options = chosen_options(spec, inputs)
    elif node["type"] != "FewStepSampler":
        raise RequestError(f"node: {shortened(node['type'])} is not a node that samples")
    else:
        spec = SAMPLERS[inputs.pop("sampler")]
        options = chosen_options(spec, inputs)
        found = found or sigmas_over(SCHEDULES["karras"], levels, 10).tolist()
    return resolve(spec, options, found, flow=levels.flow, shift=levels.shift, kind=model)


def _model_sampling(levels: LevelRange, model: Kind) -> Any:
    """Noise levels in time as the model has them, or most models of its kind: what ramps run along."""
    if levels.flow:
        sampling = comfy.model_sampling.ModelSamplingDiscreteFlow()
        sampling.set_parameters(shift=levels.shift)
    elif model and model.get("sampling") == "ModelSamplingContinuousEDM":
        sampling = comfy.model_sampling.ModelSamplingContinuousEDM()
        sampling.set_parameters(levels.sigma_min, levels.sigma_max, sampling.sigma_data)
    else:
        sampling = comfy.model_sampling.ModelSamplingDiscrete()
    return sampling


def _scales(given: Any, run: Run, levels: LevelRange, model: Kind) -> list[float] | None:
    """The guidance scale of each evaluation; None where it is not known."""
    if given is None:
        return None
    if isinstance(given, list):
        steps = (stage.step for stage in run.plan if stage.sigma is not None)
        scales = [float(given[min(step, len(given) - 1)]) for step in steps]
    else:
        percent = percent_at(_model_sampling(levels, model))
        scales = [
            *map(_guidance(given).over(run.steps, flow=levels.flow, elapsed=percent), run.model_sigmas().tolist())
        ]
    return [with_factor(scale, factor) for scale, factor in zip(scales, run.factors, strict=True)]


def _guidance(given: Any) -> Guidance:
    """A scale, or a FewStepGuidance node."""
    if isinstance(given, int | float):
        return Guidance(cfg=float(given))
    inputs = dict(given["inputs"])
    return Guidance(inputs.pop("schedule"), values=read_values(inputs.pop("values", "")), **inputs)


def _may_end(given: Any) -> bool:
    """Whether guidance may end before its time, so that fewer passes are made."""
    return isinstance(given, Mapping) and _guidance(given).agreement < 1


# Files of plans


def plans() -> dict[str, Any]:
    """What each plan that can be loaded says of itself: `fault` alone where it cannot be read."""
    return {"plans": [*map(_described, plan_files.entries())]}


def _described(file: str) -> dict[str, Any]:
    built_in = file in plan_files.BUILT_IN
    try:
        plan = plan_files.BUILT_IN[file] if built_in else load(plan_files.find(file))
    except FileError as error:
        return {"file": file, "fault": str(error)}
    about = plan.about
    return {
        "file": file,
        "built_in": built_in,
        "sampler": plan.recipe.base,
        "predictor": plan.predictor is not None,
        "evaluations": plan.recipe.nfe,
        "model": family_name(str(about.model.get("family", ""))[:80]),
        "guidance": about.guidance,
        "before": about.error_before,
        "after": about.error_after,
        "unfinished": plan_files.is_unfinished(file, plan),
    }


def rename_plan(request: Any) -> dict[str, Any]:
    """Give a plan another name."""
    file, name = read_texts(request, "file", "name")
    with _files():
        return {"file": plan_files.rename(file, name)}


def delete_plan(request: Any) -> dict[str, Any]:
    """Remove a plan."""
    (file,) = read_texts(request, "file")
    with _files():
        plan_files.delete(file)
    return {}


@contextlib.contextmanager
def _files() -> Iterator[None]:
    """What the system refuses is told as what is wrong, without its path."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"the system refuses it: {error.strerror or type(error).__name__}") from None
