"""The node that chooses: a budget of evaluations in, sampler and levels out, with the reason."""

from __future__ import annotations

import bisect
import functools
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import comfy.samplers
import folder_paths
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..samplers import SAMPLERS, SCHEDULES, SamplerSpec
from ..samplers.calibrated import CalibratedPlan, FileError, load
from ..samplers.checks import counted, shortened
from ..samplers.distill import Student
from ..samplers.schedules.trained import either, of_flow, steps_in_words, steps_of, trained_models
from .host.display import say
from .host.families import (
    DISTILLED,
    DISTILLED_STEPS,
    Family,
    Settings,
    distilled_in,
    distilled_model,
    family_of,
    names_of,
    shift_node,
)
from .host.guider import same_guidance
from .host.model import LevelRange, check_plan, fingerprint, level_range, levels_ui
from .host.plan_files import BUILT_IN, FOLDER, find, is_unfinished
from .host.sampling import plan_sampler, sampler_function, sigmas_over
from .host.students import facts_of, student_in_facts, student_of, student_sigmas
from .host.students import why_not as why_not_student
from .ui.links import PLAN
from .ui.menu import CATEGORY, search_words
from .ui.plans import conditions, summary
from .ui.trained import student_notes, trained_notes

EXACT, VARIED = "exact seed", "more variety"

PICKS = Path(__file__).with_name("picks.json")
"""What is chosen for which budget. `tools/tables.py` makes it from docs/quality.csv."""


class Pick(NamedTuple):
    """A row of the table."""

    start: int
    """The budget from which it is chosen, up to that of the next row."""

    sampler: str
    options: Mapping[str, Any]
    schedule: str
    discard_penultimate: bool
    why: str

    def sigmas(self, levels: LevelRange, steps: int, denoise: float = 1.0) -> Tensor:
        """[steps + 1], over the levels of a model."""
        return sigmas_over(
            SCHEDULES[self.schedule],
            levels,
            steps,
            denoise=denoise,
            discard_penultimate=self.discard_penultimate,
        )

    def evaluations(self, levels: LevelRange, steps: int) -> int:
        """Of a run of so many steps."""
        return SAMPLERS[self.sampler].nfe(self.sigmas(levels, steps), flow=levels.flow, **self.options)

    def steps(self, levels: LevelRange, budget: int) -> int:
        """The most steps that the budget of evaluations allows, at least 1."""
        if self.evaluations(levels, budget) <= budget:
            return budget
        few_enough = bisect.bisect_right(
            range(1, budget + 1), budget, key=lambda steps: self.evaluations(levels, steps)
        )
        return max(few_enough, 1)


@functools.cache
def picks(flow: bool, variety: str) -> list[Pick]:
    """The table for a kind of model, by rising budget."""
    if variety not in (EXACT, VARIED):
        raise ValueError(f"variety = {shortened(variety)} must be {EXACT} or {VARIED}")
    table = json.loads(PICKS.read_text())["flow" if flow else "noise prediction"][variety]
    return [Pick(**row) for row in table]


def pick(flow: bool, variety: str, budget: int) -> Pick:
    """The last row that begins at the budget or below it."""
    rows = picks(bool(flow), variety)
    return rows[max(bisect.bisect_right(rows, budget, key=lambda row: row.start) - 1, 0)]


# Plans


def why_not(plan: CalibratedPlan, model: Mapping[str, Any], budget: int, cfg: float | None = None) -> str | None:
    """Why a plan cannot be followed by this model within the budget; None if it can.

    Args:
        cfg: the guidance of the run; None where it is not known.
    """
    try:
        check_plan(plan, model)
    except ValueError as error:
        return str(error)
    if plan.recipe.nfe > budget:
        return f"it makes {counted(plan.recipe.nfe, 'evaluation')} and evaluations = {budget}"
    if not same_guidance(plan, cfg):
        return f"it was made at guidance {plan.about.guidance:g} and cfg is {cfg:g}"
    return None


def saved_plans() -> Iterator[tuple[str, CalibratedPlan]]:
    """Plans that come with the pack and those in models/fewstep that can be read, by their entry of the list."""
    yield from BUILT_IN.items()
    for file in folder_paths.get_filename_list(FOLDER):
        try:
            yield file, load(find(file))
        except FileError as error:
            logging.warning("Few-Step Auto leaves out a plan: %s", error)


def best_plan(model: Mapping[str, Any], budget: int, cfg: float | None = None) -> tuple[str, CalibratedPlan] | None:
    """The best saved plan for this kind of model that makes as many evaluations as the budget, or one less.

    With fewer, a plain sampler at the whole budget is better (docs/QUALITY.md). Of plans with as many evaluations it
    is the one that gained most where it was made. One that was not finished, or gained nothing, is no better than a
    plain sampler.

    Args:
        cfg: the guidance of the run; None where it is not known.
    """
    fitting = [
        (name, plan)
        for name, plan in saved_plans()
        if plan.about.model
        and plan.about.improved is not False
        and not is_unfinished(name, plan)
        and (plan.gain < 1 or plan.about.error_after is None)
        and plan.recipe.nfe >= budget - 1
        and why_not(plan, model, budget, cfg) is None
    ]
    return min(fitting, key=lambda found: (-found[1].recipe.nfe, found[1].gain), default=None)


# The choice


class Choice(NamedTuple):
    """What is done with a budget: a sampler with options, or a plan."""

    spec: SamplerSpec
    options: Mapping[str, Any]
    plan: CalibratedPlan | None
    sigmas: Tensor
    text: str
    """What was chosen and why."""


def choose(
    levels: LevelRange,
    model: Mapping[str, Any],
    *,
    evaluations: int,
    variety: str,
    denoise: float,
    use_plans: bool = True,
    plan: CalibratedPlan | None = None,
    cfg: float = 0.0,
) -> Choice:
    """From the inputs of the node and what is known of the model: its range of levels, its `fingerprint`, and beside it
    what `distilled_in` found."""
    if denoise <= 0:
        return Choice(SAMPLERS["euler"], {}, None, torch.FloatTensor([]), "denoise is 0: the latent is not changed.")
    notes: list[str] = []
    family = family_of(model)
    distilled = model.get(DISTILLED) or (family and family.distilled)
    if distilled not in trained_models() or of_flow(trained_models()[distilled]) != levels.flow:
        distilled = None
    student = student_in_facts(model)
    if student is not None and (why := why_not_student(student, model)):
        notes.append(f"The connected student is left out: {why}.")
        student = None
    search = use_plans and distilled is None and student is None  # plans do not say whether their model was distilled
    found = _plan(model, evaluations, variety, denoise, search, plan, cfg or None, notes)
    if found is not None:
        name, chosen = found
        spec, options = SAMPLERS[chosen.recipe.base], chosen.recipe.options
        sigmas = torch.tensor(chosen.recipe.sigmas, dtype=torch.float32)
        text = f"{name}: {summary(chosen)}.\nA plan made for this kind of model is better than a plain sampler."
        text = " ".join([text, *conditions(chosen, known=bool(cfg))])
        return Choice(spec, options, chosen, sigmas, "\n".join([text, *notes]))
    if variety == VARIED and (student or distilled):
        notes.append(f"{VARIED} is left out: a distilled model is sampled as it was trained to be.")
    if student is not None and (choice := _as_student(student, evaluations, denoise, cfg or None, notes)):
        return choice
    if distilled is not None and (
        choice := _as_trained(distilled, levels, evaluations, denoise, model.get(DISTILLED_STEPS), cfg or None, notes)
    ):
        return choice
    row = _recommended(family, variety) or pick(levels.flow, variety, evaluations)
    steps = row.steps(levels, evaluations)
    costs = counted(row.evaluations(levels, steps), "evaluation")
    text = f"{described(row)}: {counted(steps, 'step')}, {costs}.\n{row.why}"
    if family is not None and distilled is None:
        notes = [*_advice(family, model.get("family"), levels, cfg or None, variety), *notes]
    sigmas = row.sigmas(levels, steps, denoise)
    return Choice(SAMPLERS[row.sampler], row.options, None, sigmas, "\n".join([text, *notes]))


def _recommended(family: Family | None, variety: str) -> Pick | None:
    """What is recommended for a family that is of another kind than the models that were measured."""
    sampler = None if family is None or family.measured else family.varied if variety == VARIED else family.sampler
    if family is None or sampler is None:
        return None
    why = f"Recommended for {family.name}; our measurements are of another kind of model (docs/MODELS.md)."
    return Pick(1, sampler, {}, family.schedule, False, why)


def _advice(family: Family, name: Any, levels: LevelRange, cfg: float | None, variety: str) -> list[str]:
    """What else is recommended for a family, and where the run differs from it.

    Args:
        name: the class of the model in the host.
    """
    sampler = family.varied if variety == VARIED and family.varied else family.sampler
    lines = [
        f"Recommended for {one.model}: {sampler} on {family.schedule}, {_numbers(one)}." for one in family.settings
    ]
    lines.insert(0, f"This model: {family.name}.")
    if family.note:
        lines.append(family.note)
    fitting = [one for one in family.settings if one.bears(cfg)]
    if not fitting:
        lines.append(f"cfg is {cfg:g}, outside of what is recommended.")
    shifts = list(dict.fromkeys(one.shift for one in fitting or family.settings if one.shift is not None))
    if levels.flow and shifts and not any(math.isclose(shift, levels.shift, rel_tol=0.05) for shift in shifts):
        lines.append(
            f"The shift of the connected model is {levels.shift:.4g}: set it to {either(shifts)} with "
            f"{shift_node(name)}."
        )
    return lines


def _given(options: Mapping[str, Any]) -> str:
    """Options in words, in brackets."""
    return f" ({', '.join(f'{name} = {value}' for name, value in options.items())})" if options else ""


def _numbers(settings: Settings) -> str:
    """Steps, guidance and shift in words."""
    shift = "" if settings.shift is None else f", shift {settings.shift:g}"
    return f"{counted(_between(*settings.steps), 'step')}, cfg {_between(*settings.cfg)}{shift}"


def _between(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _as_student(student: Student, budget: int, denoise: float, cfg: float | None, notes: list[str]) -> Choice | None:
    """The levels that a student was trained at; None, with a note, if the budget does not allow them."""
    sigmas = student_sigmas(student, denoise)
    steps = len(sigmas) - 1
    if steps > budget:
        notes.append(f"The connected student was trained for steps = {student.steps}: set evaluations to that number.")
        return None
    part = "" if steps == student.steps else f", the last {steps} of {student.steps}"
    text = f"{student.sampler} on trained: steps = {steps}{part}."
    if budget > steps:
        notes.append("The student was not trained for more: train one for each number of evaluations.")
    lines = [text, *student_notes(student, cfg=cfg), *notes]
    return Choice(SAMPLERS[student.sampler], {}, None, sigmas, "\n".join(lines))


def _as_trained(
    distilled: str,
    levels: LevelRange,
    budget: int,
    denoise: float,
    wanted: int | None,
    cfg: float | None,
    notes: list[str],
) -> Choice | None:
    """The levels that a distilled model was trained on; None, with a note, if the budget allows none of its numbers of
    steps.

    Args:
        wanted: the number of steps that the name of its file says, if it does.
    """
    entry, model = trained_models()[distilled], distilled_model(distilled)
    known = [n for n in steps_of(entry) if n == wanted] or model.steps or steps_of(entry)
    kept = {n: max(1, round(n * denoise)) for n in known}
    fits = [n for n in known if kept[n] <= budget]
    if not fits:
        numbers = steps_in_words(entry) if known == steps_of(entry) else either(known)
        notes.append(f"{entry['name']} was trained for {counted(numbers, 'step')}: set evaluations to match.")
        return None
    steps = max(fits) if wanted is None else min(fits, key=lambda n: (abs(n - wanted), -n))
    sigmas = sigmas_over(SCHEDULES["trained"], levels, steps, distilled=distilled)[-kept[steps] - 1 :]
    part = "" if kept[steps] == steps else f", the last {kept[steps]} of {steps}"
    lines = [
        f"{model.sampler}{_given(model.options)} on trained (distilled = {distilled}): "
        f"{counted(kept[steps], 'step')}{part}, "
        f"{counted(kept[steps], 'evaluation')}.",
        f"{entry['name']}: these are the noise levels that it was trained on.",
    ]
    if wanted not in (None, steps):
        lines.append(
            f"The name of the file says {counted(wanted, 'step')}. The levels of {entry['name']} are known for "
            f"{counted(steps_in_words(entry), 'step')}: those for {steps} are taken."
        )
    elif wanted is None and model.one_number and len(known) > 1:
        lines.append(
            f"Each file of {entry['name']} was trained for one number of steps, which the name of this one does not "
            f"say: {steps} are taken. If it was made for another number, set evaluations to that number."
        )
    lines += trained_notes(levels, distilled, steps, cfg)
    return Choice(SAMPLERS[model.sampler], model.options, None, sigmas, "\n".join([*lines, *notes]))


# The node


class FewStepAuto(io.ComfyNode):
    """Sampler and levels for a budget of evaluations, by what was measured."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepAuto",
            display_name="Few-Step Auto",
            category=CATEGORY,
            description="Say how many evaluations of the model you want to spend. The node chooses the sampler, the "
            "schedule and the steps, or a calibrated plan that fits, and says what it chose and why. The choice "
            "follows docs/QUALITY.md, which was measured at guidance 3, and for distilled and other special models "
            "what their makers recommend (docs/MODELS.md). If strong guidance breaks the image, use dpmpp_2m in "
            "Few-Step Sampler.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that will be sampled. The choice depends on its kind and its noise levels.",
                ),
                io.Int.Input(
                    "evaluations",
                    default=8,
                    min=1,
                    max=1000,
                    tooltip="How many times the model may run; with guidance, both prompts together count as one. "
                    "This number decides how long an image takes. A sampler with several evaluations in a step makes "
                    "fewer steps.",
                ),
                io.Combo.Input(
                    "variety",
                    options=[EXACT, VARIED],
                    default=EXACT,
                    tooltip=f"{EXACT}: a sampler without added noise. The image hardly changes with the number of "
                    f"evaluations. {VARIED}: a sampler with added noise. The image is livelier, and differs for "
                    "each number of evaluations.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="1 starts from pure noise. A lower value keeps more of the input latent (img2img), with "
                    "the same number of evaluations. 0 does not change the latent.",
                ),
                io.Boolean.Input(
                    "use_plans",
                    default=True,
                    tooltip=f"Look in models/{FOLDER} for a plan for this kind of model that makes as many "
                    "evaluations, or one less. Off: only a connected plan is used.",
                ),
                PLAN.Input(
                    "plan",
                    optional=True,
                    tooltip="A calibrated plan that is used if it fits the model and the number of evaluations. If it "
                    "does not fit, the text says why.",
                ),
                io.Float.Input(
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="The guidance scale of the node that samples. Plans that were made at another scale are "
                    "left out, because they would burn or fade the image. 0: the scale is not known, and the text "
                    "says at which scale the plan was made.",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="For SamplerCustom or SamplerCustomAdvanced, with the sigmas beside it."),
                io.Sigmas.Output(tooltip="Noise levels for that sampler."),
                io.String.Output(display_name="choice", tooltip="What was chosen and why."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **search_words("auto sampler", "number of evaluations", "which sampler", "fast"),
        )

    @classmethod
    def fingerprint_inputs(cls, use_plans: bool = True, **_: Any) -> Any:
        """Another when plans come, change or go."""
        if not use_plans:
            return None
        return tuple((file, _changed(file)) for file in folder_paths.get_filename_list(FOLDER))

    @classmethod
    def execute(
        cls,
        model: Any,
        evaluations: int,
        variety: str,
        denoise: float,
        use_plans: bool = True,
        plan: CalibratedPlan | None = None,
        cfg: float = 0.0,
    ) -> io.NodeOutput:
        asked = getattr(cls, "hidden", None)
        facts = fingerprint(model)
        prompt, node = (None, None) if asked is None else (asked.prompt, asked.unique_id)
        facts |= distilled_in(names_of(prompt, node))
        facts |= facts_of(student_of(model, prompt, node))
        choice = choose(
            level_range(model.get_model_object("model_sampling")), facts, evaluations=evaluations,
            variety=variety, denoise=denoise, use_plans=use_plans, plan=plan, cfg=cfg,
        )  # fmt: skip
        if choice.plan is None:
            sampler = comfy.samplers.KSAMPLER(sampler_function(choice.spec), dict(choice.options))
        else:
            sampler = plan_sampler(choice.plan)
        say(choice.text)
        drawn = {
            **levels_ui(model),
            "fewstep_model": [facts],
            "fewstep_plan": ["" if choice.plan is None else choice.plan.text()],
        }
        return io.NodeOutput(sampler, choice.sigmas, choice.text, ui=ui.PreviewText(choice.text).as_dict() | drawn)


def _changed(file: str) -> int | None:
    """When a plan was written; None if it is gone since the list was made."""
    path = folder_paths.get_full_path(FOLDER, file)
    try:
        return Path(path).stat().st_mtime_ns if path else None
    except OSError:
        return None


def described(row: Pick) -> str:
    """Sampler and schedule by the names of our nodes."""
    options = ", ".join(f"{name} = {value}" for name, value in row.options.items())
    schedule = f"{row.schedule}{' with discard_penultimate' if row.discard_penultimate else ''}"
    return f"{row.sampler}{f' ({options})' if options else ''} on {schedule}"


def _plan(
    model: Mapping[str, Any],
    budget: int,
    variety: str,
    denoise: float,
    search: bool,
    given: CalibratedPlan | None,
    cfg: float | None,
    notes: list[str],
) -> tuple[str, CalibratedPlan] | None:
    """The plan to be followed and where it comes from, if there is one; what speaks against one goes to the notes."""
    against = None
    if variety != EXACT:
        against = "plans add no noise"
    elif denoise < 1:
        against = "its levels start at pure noise, and denoise is below 1"
    if given is not None:
        against = against or why_not(given, model, budget, cfg)
        if against is None:
            return "The connected plan", given
        notes.append(f"The connected plan is left out: {against}.")
    return best_plan(model, budget, cfg) if search and variety == EXACT and denoise == 1 else None


NODES = [FewStepAuto]
