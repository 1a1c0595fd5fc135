"""What the front end draws in the nodes, from the code that a run uses, so that no run is needed.

    GET  /fewstep/options   which widgets belong to which choice, with their defaults
    POST /fewstep/sigmas    {node, levels}: the noise levels of a schedule node, and the host's karras beside them
    POST /fewstep/plan      {node, levels, sigmas, guidance}: the evaluations of a sampler node

A node travels as {"type": its id, "inputs": {name: value, or a node}}, the host's SplitSigmas with its "output" beside
them. What cannot be drawn is answered with {"error": text}, which the node shows in the place of its plot. What may be
asked, and within which limits, is in `requests`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.model_sampling
from comfy.k_diffusion.sampling import get_sigmas_karras
from server import PromptServer

from ..samplers import SAMPLERS, SCHEDULES
from ..samplers.checks import shortened
from ..samplers.guidance import RAMPS, Guidance, passes
from ..samplers.learned import Learned
from ..samplers.plan import DENOISED, Plan
from .auto import pick
from .guidance import read_values
from .host import LevelRange, partial_options, progress, sigmas_over
from .options import chosen_options
from .plans import FewStepLoadPlan
from .requests import RequestError, read_request
from .requests import answer as _answer
from .sampling import FewStepScheduler

Node = Mapping[str, Any]

STABLE_DIFFUSION = LevelRange(0.029167158, 14.614641)
"""Drawn over where no model is known yet."""

LONGEST = 1000
"""Steps of a run that is still drawn."""


def register_routes() -> None:
    """Make the routes known to the host's server, if there is one."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return
    server.routes.get("/fewstep/options")(_answer(lambda _: options()))
    server.routes.post("/fewstep/sigmas")(_answer(sigmas))
    server.routes.post("/fewstep/plan")(_answer(plan))


# Widgets


def options() -> dict[str, Any]:
    """By node: the widget that chooses, for each choice the others that belong to it, with their defaults, and those in
    which 0 is automatic."""

    def of(registry: Mapping[str, Any]) -> dict[str, Any]:
        return {id: {option.name: option.default for option in spec.options} for id, spec in registry.items()}

    ramp = dict.fromkeys(("cfg", "cfg_end", "sigma_start", "sigma_end"))
    shapes = {
        "constant": {"cfg": None},
        "interval": dict.fromkeys(("cfg", "sigma_start", "sigma_end")),
        **{name: ramp | ({"power": None} if name == "power" else {}) for name in RAMPS},
        "list": {"values": None},
    }
    return {
        "FewStepSampler": {"choice": "sampler", "widgets": of(SAMPLERS)},
        "FewStepScheduler": {"choice": "schedule", "widgets": of(SCHEDULES), "automatic": ["shift"]},
        "FewStepGuidance": {"choice": "schedule", "widgets": shapes, "automatic": ["sigma_start", "sigma_end"]},
    }


# Schedules


def sigmas(request: Mapping[str, Any]) -> dict[str, Any]:
    """The levels of a schedule node and those of the host's karras in the same steps."""
    request = read_request(request)
    node, levels = request["node"], _levels(request)
    found = _sigmas(node, levels)
    compared: list[float] = []
    if node["type"] == "FewStepScheduler":
        inputs = node["inputs"]
        steps, start = inputs["steps"], inputs.get("start_step", 0)
        whole = get_sigmas_karras(int(steps / inputs["denoise"]), levels.sigma_min, levels.sigma_max)
        compared = whole[-steps - 1 :][start : start + len(found)].tolist()
    return {"sigmas": found, "karras": compared, "levels": _shown(request, levels)}


def _levels(request: Mapping[str, Any]) -> LevelRange:
    return LevelRange(**request["levels"]) if request.get("levels") else STABLE_DIFFUSION


def _shown(request: Mapping[str, Any], levels: LevelRange) -> dict[str, Any]:
    return {**levels._asdict(), "known": bool(request.get("levels"))}


def _sigmas(node: Node, levels: LevelRange) -> list[float]:
    """The levels that a node of ours gives.

    Raises:
        ValueError: if it gives none that can be drawn.
    """
    inputs = node["inputs"]
    if node["type"] == "FewStepPlanSampler":
        return list(_learned(inputs).recipe.sigmas)
    if node["type"] == "SplitSigmas":
        whole, step = _sigmas(inputs["sigmas"], levels), inputs["step"]
        part = whole[step:] if node["output"] else whole[: step + 1]
        if len(part) < 2:
            raise ValueError("SplitSigmas leaves no step here")
        return part
    if node["type"] != "FewStepScheduler":
        raise ValueError("the noise levels of this node are known when it runs")
    _drawn(inputs["steps"], inputs["denoise"])
    return FewStepScheduler.sigmas(levels, **inputs).tolist()


def _drawn(steps: int, denoise: float = 1.0) -> int:
    """The steps, if a schedule of so many is drawn."""
    if denoise <= 0:
        raise ValueError("denoise 0: no steps")
    if steps > LONGEST * denoise:
        raise ValueError(f"more than {LONGEST} steps are not drawn")
    return steps


def _learned(inputs: Mapping[str, Any]) -> Learned:
    """The plan on an input, if it comes from a file or a text."""
    source = inputs.get("plan") or {}
    if source.get("type") != "FewStepLoadPlan":
        raise ValueError("connect a plan; one that is made in this run is drawn after it")
    return FewStepLoadPlan.execute(**source["inputs"]).result[0]


# Samplers


class _Run(NamedTuple):
    """What a sampler node will do."""

    label: str
    order: int
    sigmas: list[float]
    plan: Plan
    factors: list[float]
    """Of the guidance scale, one for each evaluation."""

    over_model: bool = True
    """Whether the levels are the model's range; a learned plan has levels of its own."""


def plan(request: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluations of a sampler node.

    `sigmas` is the schedule node it is used with, if that is known; `guidance` a scale, a FewStepGuidance node, or a
    list of scales, one for each step.

    Each evaluation has its `step`, its `sigma`, the `order` of the update after it, which is the number of predictions
    in it, whether fresh `noise` is added, and its `guidance` if that is known. `passes` counts runs of the network:
    two with guidance, one at scale 1.
    """
    request = read_request(request)
    levels = _levels(request)
    run = _run(request["node"], request.get("sigmas"), levels)
    scales = _scales(request.get("guidance"), run, levels)
    return {
        "label": run.label,
        "order": run.order,
        "evaluations": [
            {
                "step": stage.step,
                "sigma": float(stage.sigma),
                "order": min(order, run.order),
                "noise": stage.noise is not None,
            }
            for stage, order in zip(run.plan, _orders(run.plan), strict=True)
            if stage.sigma is not None
        ],
        "guidance": scales,
        "passes": None if scales is None else passes(scales),
        "assumed": request["node"]["type"] == "FewStepSampler" and not request.get("sigmas"),
        "levels": _shown(request, levels) if run.over_model else None,
    }


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


def _run(node: Node, schedule: Node | None, levels: LevelRange) -> _Run:
    inputs = dict(node["inputs"])
    if node["type"] == "FewStepPlanSampler" or inputs.get("plan"):
        return _run_of_plan(_learned(inputs))
    if node["type"] == "FewStepAuto":
        row = pick(levels.flow, inputs["variety"], _drawn(inputs["evaluations"]))
        steps = row.steps(levels, inputs["evaluations"])
        spec, options = SAMPLERS[row.sampler], dict(row.options)
        found = row.sigmas(levels, _drawn(steps, inputs["denoise"]), inputs["denoise"]).tolist()
    elif node["type"] != "FewStepSampler":
        raise RequestError(f"node: {shortened(node['type'])} is no node that samples")
    else:
        spec = SAMPLERS[inputs.pop("sampler")]
        options = chosen_options(spec, inputs)
        found = _sigmas(schedule, levels) if schedule else sigmas_over(SCHEDULES["karras"], levels, 10).tolist()
    stages = spec.plan(found, flow=levels.flow, **partial_options(spec, found, options))
    return _Run(spec.label, spec.order, found, stages, [1.0] * len(stages))


def _run_of_plan(learned: Learned) -> _Run:
    recipe = learned.recipe
    base = SAMPLERS[recipe.base]
    label = f"{base.label}, {'predicted' if learned.predictor is not None else 'learned'}"
    factors = [tuning.guidance for tuning in recipe.tunings[recipe.afs :]]
    return _Run(label, base.order, list(recipe.sigmas), recipe.plan(), factors, over_model=False)


def _model_sampling(levels: LevelRange) -> Any:
    """Noise levels in time as most models of this kind have them: what ramps run along."""
    if not levels.flow:
        return comfy.model_sampling.ModelSamplingDiscrete()
    sampling = comfy.model_sampling.ModelSamplingDiscreteFlow()
    sampling.set_parameters(shift=levels.shift)
    return sampling


def _scales(given: Any, run: _Run, levels: LevelRange) -> list[float] | None:
    """The guidance scale of each evaluation; None where it is not known."""
    if given is None:
        return None
    steps = [stage.step for stage in run.plan if stage.sigma is not None]
    if isinstance(given, int | float):
        by_step = [float(given)]
    elif isinstance(given, list):
        by_step = [float(scale) for scale in given]
    else:
        inputs = dict(given["inputs"])
        shape, values = inputs.pop("schedule"), read_values(inputs.pop("values", ""))
        guidance = Guidance(shape, values=values, **inputs)
        by_step = guidance.scales(run.sigmas, flow=levels.flow, progress=progress(_model_sampling(levels)))
    return [by_step[min(step, len(by_step) - 1)] * run.factors[i] for i, step in enumerate(steps)]
