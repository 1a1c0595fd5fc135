"""What is set in the accordion: widgets, what they write into images, and what it means for a sampler or schedule."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import re
import unicodedata
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modules import scripts

from ..samplers import Option, SamplerSpec, ScheduleSpec
from ..samplers.calibrated.plan import CalibratedPlan, parse
from ..samplers.calibrated.published import PUBLISHED
from ..samplers.checks import read_number, shortened
from ..samplers.guidance import SHAPES, Guidance
from ..samplers.schedule import END_STEP, START_STEP
from .names import PLAN, SAMPLER_NAMES, SCHEDULE_NAMES

log = logging.getLogger(__name__)

KEYS = {
    "sampler_options": "Few-Step options",
    "schedule_options": "Few-Step schedule options",
    "guidance": "Few-Step guidance",
    "cfg_end": "Few-Step guidance end",
    "sigma_start": "Few-Step guidance sigma start",
    "sigma_end": "Few-Step guidance sigma end",
    "power": "Few-Step guidance power",
    "plan": "Few-Step plan",
}
"""What the text that images carry calls the fields of `Settings`."""

GUIDANCES = tuple(shape for shape in SHAPES if shape != "list")
_GUIDANCE_FIELDS = ("guidance", "cfg_end", "sigma_start", "sigma_end", "power")
_SWITCH = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


@dataclass(frozen=True)
class Settings:
    """The values of the accordion, in the order of its widgets.

    Raises:
        ValueError: naming the field at fault.
    """

    sampler_options: str = ""
    schedule_options: str = ""
    guidance: str = "constant"
    cfg_end: float = 1.0
    sigma_start: float = 0.0
    sigma_end: float = 0.0
    power: float = 2.0
    plan: str = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            read = _text if isinstance(field.default, str) else _number
            value = field.default if value is None or value == "" else read(KEYS[field.name], value)
            object.__setattr__(self, field.name, value)

    def of_sampler(self, spec: SamplerSpec, tell: Callable[[str], None]) -> dict[str, Any]:
        """The options of a sampler that are set; `tell` is called with what is left out.

        Raises:
            ValueError: naming what is wrong.
        """
        return read_options(KEYS["sampler_options"], self.sampler_options, spec, SAMPLER_NAMES, tell)

    def of_schedule(self, spec: ScheduleSpec, tell: Callable[[str], None]) -> dict[str, Any]:
        """The same of a schedule."""
        return read_options(KEYS["schedule_options"], self.schedule_options, spec, SCHEDULE_NAMES, tell)

    def guided(self, cfg: float) -> Guidance:
        """The guidance of a run with this scale. Raises ValueError naming the field at fault."""
        if self.guidance not in GUIDANCES:
            raise ValueError(f"{KEYS['guidance']} = {shortened(self.guidance)} must be one of {', '.join(GUIDANCES)}")
        if self.guidance == "constant":
            return Guidance()  # whatever the scale is, the host applies it
        with naming(KEYS["guidance"]):
            return Guidance(self.guidance, cfg, self.cfg_end, self.sigma_start, self.sigma_end, self.power)

    def calibrated(self) -> CalibratedPlan:
        """The plan. Raises ValueError if there is none, or if it cannot be read."""
        if not self.plan:
            raise ValueError(
                f"the sampler {PLAN} follows a plan: paste one into Few-Step / Plan, or write {' or '.join(PUBLISHED)} "
                "there, the published one"
            )
        return PUBLISHED[self.plan] if self.plan in PUBLISHED else parse(self.plan)

    def fields_for(self, samplers: set[str], schedules: set[str]) -> set[str]:
        """The fields that count in a run with these samplers and schedules and are not at their default."""
        count = set()
        if samplers & SAMPLER_NAMES.keys():
            count |= {"sampler_options"}
        if schedules & SCHEDULE_NAMES.keys():
            count |= {"schedule_options"}
        if samplers & {PLAN, *SAMPLER_NAMES}:
            count |= {*_GUIDANCE_FIELDS} if self.guidance != "constant" else set()
        if PLAN in samplers | schedules:
            count |= {"plan"}
        return count & self.changed()

    def changed(self) -> set[str]:
        """The fields that are not at their default."""
        return {field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default}


@contextlib.contextmanager
def naming(field: str) -> Iterator[None]:
    """Put the name of the field before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} = {shortened(value)} must be a text")
    return value.strip()


def _number(name: str, value: Any) -> float:
    """From a widget, or as images keep it in their text."""
    try:
        return read_number(name, float(value) if isinstance(value, str) else value)
    except ValueError:
        raise ValueError(f"{name} = {shortened(value)} must be a finite number") from None


def read_options(
    where: str, text: str, spec: SamplerSpec | ScheduleSpec, others: Mapping[str, Any], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Options as `eta=0.5, solver_type=heun`. What only others in the host's list have is left out, as in the nodes.

    Full-width signs, as Chinese and Japanese keyboards write them, are read as well.

    Raises:
        ValueError: naming the option at fault.
    """
    known = {option.name for other in others.values() for option in usable(other)}
    own = {option.name: option for option in usable(spec)}
    options: dict[str, Any] = {}
    named = set()
    plain = " ".join(unicodedata.normalize("NFKC", text).split())
    for part in re.split(r"[\s,;\u3001]+", re.sub(" ?= ?", "=", plain)):
        name, equals, word = part.partition("=")
        if not part:
            continue
        if not equals:
            raise ValueError(
                f"{where}: {shortened(part)} is not an option: write it as option=value, with commas between them"
            )
        if name not in known:
            near = difflib.get_close_matches(name[:60], known, n=1, cutoff=0.65)
            hint = f"did you mean {near[0]}?" if near else f"{spec.id} has {', '.join(own) or 'none'}"
            raise ValueError(f"{where}: there is no option {shortened(name)}; {hint}")
        if name in named:
            raise ValueError(f"{where}: option {name} is given twice: remove one of them")
        named.add(name)
        if name in own:
            options[name] = own[name].check(f"{where}: {spec.id}", _value(own[name], word))
        else:
            tell(f"{where}: {spec.id} has no option {name}: it is left out")
    return options


def usable(spec: SamplerSpec | ScheduleSpec) -> list[Option]:
    """The options that make sense here: the host itself cuts schedules, for img2img."""
    return [option for option in spec.options if option not in (START_STEP, END_STEP)]


def _value(option: Option, word: str) -> Any:
    """The word as the type of the option, if it can be read as such; `Option.check` says what is wrong."""
    if isinstance(option.default, bool):
        return _SWITCH.get(word.lower(), word)
    if isinstance(option.default, int) and re.fullmatch(r"[+-]?\d{1,18}", word):
        return int(word)
    return word


# Settings on their way to a run


_ATTRIBUTE = "fewstep_values"


def _nothing() -> None:
    """In place of a weak reference."""


_current: Callable[[], Any] = _nothing
"""The processing that runs, weakly: a schedule is not given it."""


def begin(p: Any, values: Sequence[Any]) -> None:
    """Keep the values for the run of `p`, as they are: what is wrong with them the sampler says, and the host shows.

    An error in a script would only be logged.
    """
    global _current
    setattr(p, _ATTRIBUTE, tuple(values))
    _current = weakref.ref(p)


def end() -> None:
    """The images of a batch are sampled. Scripts that work on them may run a processing of their own, without ours."""
    global _current
    _current = _nothing


def settings_of(p: Any) -> Settings:
    """Those of a run; raises ValueError as `Settings`."""
    return Settings(*getattr(p, _ATTRIBUTE, ()))


def running() -> Any:
    """The processing that runs; None outside of one."""
    return _current()


def tell(p: Any, message: str) -> None:
    """Have the host show it below the images of `p`, and write it to the log."""
    log.warning(message)
    if hasattr(p, "comment"):
        p.comment(message)


class FewStepScript(scripts.Script):
    """The accordion."""

    def title(self) -> str:
        return "Few-Step"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        import gradio as gr

        with gr.Accordion("Few-Step", open=False, elem_id=self.elem_id("accordion")):
            with gr.Row():
                sampler_options = gr.Textbox(
                    label="Options of the sampler",
                    value="",  # not None, by whose type the host would read what is pasted
                    placeholder="eta=0.5, solver_type=heun",
                    elem_id=self.elem_id("sampler_options"),
                )
                schedule_options = gr.Textbox(
                    label="Options of the schedule",
                    value="",
                    placeholder="rho=5, discard_penultimate=on",
                    elem_id=self.elem_id("schedule_options"),
                )
            with gr.Row():
                guidance = gr.Dropdown(
                    label="Guidance along the run",
                    choices=list(GUIDANCES),
                    value="constant",
                    elem_id=self.elem_id("guidance"),
                )
                cfg_end = gr.Number(label="Ramp ends at CFG", value=1.0, elem_id=self.elem_id("cfg_end"))
                sigma_start = gr.Number(label="From sigma (0: auto)", value=0.0, elem_id=self.elem_id("sigma_start"))
                sigma_end = gr.Number(label="To sigma (0: auto)", value=0.0, elem_id=self.elem_id("sigma_end"))
                power = gr.Number(label="Exponent of power", value=2.0, elem_id=self.elem_id("power"))
            plan = gr.Textbox(
                label=f"Plan, for the sampler {PLAN}",
                value="",
                placeholder=f"the text of a plan, or {', '.join(PUBLISHED)}",
                elem_id=self.elem_id("plan"),
            )
            with gr.Accordion("List of all options", open=False):
                gr.Markdown(options_table())
        widgets = [sampler_options, schedule_options, guidance, cfg_end, sigma_start, sigma_end, power, plan]
        self.infotext_fields = list(zip(widgets, KEYS.values(), strict=True))
        self.paste_field_names = list(KEYS.values())
        return widgets

    def process(self, p: Any, *values: Any) -> None:
        """Before a run: keep the settings, and write those that count into the images."""
        begin(p, values)
        for key in KEYS.values():  # an x/y/z plot shares these among its cells
            p.extra_generation_params.pop(key, None)
        settings = settings_of(p)
        samplers = {getattr(p, name, None) or "" for name in ("sampler_name", "hr_sampler_name")}
        schedules = {getattr(p, name, None) or "" for name in ("scheduler", "hr_scheduler")}
        count = settings.fields_for(samplers, schedules)
        for field in sorted(settings.changed() - count):
            tell(p, f"{KEYS[field]} is left out: neither sampler nor schedule of this run uses it")
        p.extra_generation_params.update({KEYS[field]: getattr(settings, field) for field in KEYS if field in count})

    def process_batch(self, p: Any, *values: Any, **batch: Any) -> None:
        """Before each batch: another processing may have run within this one."""
        begin(p, values)

    def before_hr(self, p: Any, *values: Any) -> None:
        """Before the second pass of hires fix."""
        begin(p, values)

    def postprocess_batch(self, p: Any, *values: Any, **batch: Any) -> None:
        """After each batch."""
        end()


def reset_pasted(infotext: str, params: dict[str, Any]) -> None:
    """Where the text of an image says nothing of a field, it was at its default: set it so as the text is pasted."""
    for field in dataclasses.fields(Settings):
        params.setdefault(KEYS[field.name], field.default)


def options_table() -> str:
    """The options of what is in the lists, in Markdown."""
    lines = []
    for names in (SAMPLER_NAMES, SCHEDULE_NAMES):
        uses: dict[Option, list[str]] = {}
        for name, spec in names.items():
            for option in usable(spec):
                uses.setdefault(option, []).append(name)
        lines += ["| option | default | of | what it does |", "| --- | --- | --- | --- |"]
        for option, owners in uses.items():
            of = "all" if len(owners) == len(names) else ", ".join(owners)
            lines.append(f"| `{option.name}` | {_shown(option)} | {of} | {option.help} |")
        lines.append("")
    return "\n".join(lines)


def _shown(option: Option) -> str:
    if isinstance(option.default, bool):
        return "on" if option.default else "off"
    others = [choice for choice in option.choices if choice != option.default]
    return " or ".join([f"{option.default}" if others else f"{option.default:g}", *others])
