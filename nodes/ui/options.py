"""Widgets for the options of samplers and schedules, and back again.

A node offers every option of every sampler it can choose. A number or switch on which they agree shows its default;
choices, and what they differ on, start at "default" (a number at -1), which means that of the chosen sampler; the
tooltip says what that is. Options that the chosen sampler does not have are ignored; a choice that it does not have is
an error.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ...samplers import SAMPLERS, SCHEDULES, Option
from ...samplers.distill import Student
from ...samplers.schedule import END_STEP, START_STEP
from ..host.model import LevelRange
from ..host.sampling import sigmas_over
from ..host.students import student_sigmas
from .families import grouped
from .theme import THEMES

DEFAULT = "default"
UNSET = -1  # "default" for a number: no option of any sampler can be -1
_SWITCH = {"on": True, "off": False}

ORDER = (
    "r", "solver_type", "lower_order_final", "r1", "r2", "corrected_start", "order", "prediction", "corrector", "eta",
    "s_noise", "noise_device", "ancestral_step", "s_churn", "s_tmin", "s_tmax", "start", "rtol", "atol", "h_init",
    "accept_safety", "pcoeff", "icoeff", "dcoeff", "gamma", "gamma_of", "middle", "afs",
    "rho", "discard_penultimate", "shift", "start_step", "end_step", "beta_d", "beta_min", "median", "scale", "alpha",
    "beta", "threshold_noise", "linear_steps", "table", "coeff",
    "ge_gamma", "c2", "c3",
    "noise_scaler", "predictor_order", "corrector_order", "pece", "sde_start", "sde_end", "restarts", "restart_max",
    "restart_min", "base",
    "width", "height", "base_shift", "max_shift", "distilled", "sigmas",
    "inner_points", "detail", "detail_start", "detail_end",
)  # fmt: skip
"""The names of all options, in the order of their widgets. Workflows save the values of widgets by position: a new name
goes to the end, and none is ever taken away."""

RARE = frozenset({
    "r", "r1", "r2", "corrected_start", "prediction", "ancestral_step", "s_tmin", "s_tmax", "start", "gamma_of",
    "middle", "rtol", "atol", "h_init", "accept_safety", "pcoeff", "icoeff", "dcoeff", "noise_device", "beta_d",
    "beta_min", "threshold_noise", "linear_steps", "c2", "c3", "sde_start", "sde_end", "base_shift", "max_shift",
    "inner_points", "detail_start", "detail_end",
})  # fmt: skip
"""Options that few will ever change. New hosts show them when asked for advanced inputs."""


def option_inputs(specs: Iterable[Any]) -> list[io.Input]:
    """One input per option name, in `ORDER`; names that are not there come last."""
    specs = list(specs)
    uses: dict[str, dict[str, Option]] = {}
    for spec in specs:
        for option in spec.options:
            uses.setdefault(option.name, {})[spec.id] = option
    names = sorted(uses, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    ids = [spec.id for spec in specs]
    return [_input(name, uses[name], ids) for name in names]


def _input(name: str, used: Mapping[str, Option], ids: Sequence[str]) -> io.Input:
    """The widget of an option, from those of its name by the sampler that has it, of all."""
    options = list(used.values())
    first = options[0]
    default = first.default if all(o.default == first.default for o in options) else None
    common = {"id": name, "tooltip": _tooltip(used, ids), "optional": True}
    if name in RARE:
        common |= advanced(io.Float.Input)
    if isinstance(first.default, bool):
        if default is None:
            return io.Combo.Input(options=[DEFAULT, *_SWITCH], default=DEFAULT, **common)
        return io.Boolean.Input(default=default, **common)
    if isinstance(first.default, str) and not first.choices:
        return io.String.Input(multiline=True, default=first.default, **common)
    if isinstance(first.default, str):
        choices = list(dict.fromkeys(choice for o in options for choice in o.choices))
        return io.Combo.Input(options=[DEFAULT, *choices], default=DEFAULT, **common)
    low = min(o.minimum for o in options if o.minimum is not None)
    high = max(o.maximum for o in options if o.maximum is not None)
    bounds: dict[str, Any] = {"min": low, "max": high, "default": default}
    if default is None:
        bounds |= {"min": UNSET, "default": UNSET}
    if isinstance(first.default, int):
        return io.Int.Input(**bounds, **common)
    return io.Float.Input(step=min(o.step for o in options), round=False, **bounds, **common)


def advanced(widget: type) -> dict[str, bool]:
    """The argument by which an input is shown with the advanced ones, for hosts whose inputs know it."""
    return {"advanced": True} if "advanced" in inspect.signature(widget).parameters else {}


def _tooltip(used: Mapping[str, Option], all_ids: Sequence[str]) -> str:
    """The help of the option, once for those that share it, and the defaults that the widget does not show."""
    helps: dict[str, list[str]] = {}
    defaults: dict[Any, list[str]] = {}
    for id, option in used.items():
        choices = f"{' or '.join(option.choices)}. " if option.choices else ""
        helps.setdefault(choices + option.help, []).append(id)
        defaults.setdefault(option.default, []).append(id)
    lines = [help + _owners(ids, all_ids) for help, ids in helps.items()]
    if len(defaults) > 1 or any(option.choices for option in used.values()):
        unset = "default" if isinstance(next(iter(defaults)), (str, bool)) else f"{UNSET}, the default"
        each = (f"{_written(default)}{_owners(ids, list(used))}" for default, ids in defaults.items())
        lines.append(f"{unset}: {', '.join(each)}.")
    return "\n".join(lines)


def _owners(ids: Sequence[str], all_ids: Sequence[str]) -> str:
    """Who has it, in brackets; nothing if all have."""
    others = [id for id in all_ids if id not in ids]
    if not others:
        return ""
    return f" (all but {', '.join(others)})" if len(others) < 4 < len(ids) else f" ({', '.join(ids)})"


def _written(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return default if isinstance(default, str) else f"{default:g}"


def chosen_options(spec: Any, widgets: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the widgets that are options of `spec`; those at their default are left to the spec.

    The front end rounds numbers to the step of the widget: 0.33 is the default 1/3 again. A default that the widget can
    show is taken as it is.
    """
    chosen = {}
    for option in spec.options:
        value = widgets.get(option.name, DEFAULT)
        if value in (DEFAULT, UNSET) or (
            isinstance(option.default, float) and value == round(option.default, -math.floor(math.log10(option.step)))
        ):
            continue
        chosen[option.name] = _SWITCH.get(value, value) if isinstance(option.default, bool) else value
    return chosen


def scheduled(
    levels: LevelRange,
    schedule: str,
    steps: int,
    denoise: float,
    widgets: Mapping[str, Any],
    student: Student | None = None,
) -> Tensor:
    """The noise levels of a schedule with the values of these widgets, over the levels of a model; as SIGMAS.

    Args:
        student: that the model is, whose own levels `trained` has.
    """
    if denoise <= 0:
        return torch.FloatTensor([])  # the host's sign for "leave the latent as it is"
    spec = SCHEDULES[schedule]
    if (followed := followed_student(schedule, widgets, student)) is not None:
        chosen = spec.check_options(chosen_options(spec, widgets))
        own = student_sigmas(followed, denoise)
        end = chosen[END_STEP.name]
        return own[chosen[START_STEP.name] : None if end == END_STEP.default else end + 1]
    return sigmas_over(spec, levels, steps, denoise=denoise, **chosen_options(spec, widgets))


def followed_student(schedule: str, widgets: Mapping[str, Any], student: Student | None) -> Student | None:
    """The student whose levels a schedule has: that of the model in `trained`, unless another model is chosen there."""
    spec = SCHEDULES[schedule]
    return student if schedule == "trained" and "distilled" not in chosen_options(spec, widgets) else None


# Widgets that several nodes have


def _choice(specs: Mapping[str, Any]) -> str:
    return "\n".join(f"{spec.id}: {spec.help}" for spec in specs.values())


def sampler_input(id: str = "sampler") -> io.Input:
    """The choice of a sampler of the registry, family by family."""
    return io.Combo.Input(id, options=list(grouped()), default="dpmpp_2m", tooltip=_choice(SAMPLERS))


def schedule_input(id: str = "schedule") -> io.Input:
    """The choice of a schedule of the registry."""
    return io.Combo.Input(id, options=list(SCHEDULES), default="karras", tooltip=_choice(SCHEDULES))


def steps_input(tooltip: str = "Number of steps.") -> io.Input:
    """How many steps, as Few-Step Scheduler has it."""
    return io.Int.Input("steps", default=10, min=1, max=10000, tooltip=tooltip)


def denoise_input() -> io.Input:
    """How much of the noise schedule is run, as Few-Step Scheduler has it."""
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="1 starts from pure noise. A lower value keeps more of the input latent (img2img): the "
        "schedule is made longer, and only its last steps are run. 0 does not change the latent.",
    )


def cfg_input(default: float, tooltip: str = "Guidance scale; 1 means no guidance.") -> io.Input:
    """The scale of guidance, as the host's sampler nodes have it."""
    return io.Float.Input("cfg", default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip)


def seed_input(tooltip: str, *, changes: bool = True, id: str = "seed") -> io.Input:
    """The seed of some noise, as the host's sampler nodes have it; whether it changes after each run."""
    most = 0xFFFFFFFFFFFFFFFF
    return io.Int.Input(id, default=0, min=0, max=most, control_after_generate=changes, tooltip=tooltip)


def theme_input(tooltip: str) -> io.Input:
    """Colours of a picture with words; last and optional, as workflows from before it have none."""
    return io.Combo.Input("theme", options=list(THEMES), default="light", tooltip=tooltip, optional=True)


def common_inputs(made: str, evaluations: str, use: str = "", *, most: int = 100, default: int = 6) -> list[io.Input]:
    """Those before a node's own.

    Args:
        made: what the node makes.
        evaluations: what it says of them; most, default: of their number.
        use: what it says of the guidance scale, where that is more than that of a plan.
    """
    return [
        io.Model.Input(
            "model", tooltip=f"The model that the {made} is made for, with its LoRAs and patches. It is not changed."
        ),
        io.Conditioning.Input(
            "positive",
            tooltip="One prompt or several, joined with Conditioning (Combine). With 4 or more prompts, a quarter of "
            f"them is used for validation only: they show whether the {made} is also good for prompts that it was not "
            "made with.",
        ),
        io.Conditioning.Input("negative", tooltip="The negative prompt. It is used with every prompt."),
        io.Latent.Input("latent_image", tooltip="An empty latent of the size of your images. Its content is not used."),
        io.Float.Input(
            "cfg",
            default=7.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip=use or f"The guidance scale that the {made} is made for. Use the {made} at this scale.",
        ),
        io.Int.Input("evaluations", default=default, min=1, max=most, tooltip=evaluations),
    ]
