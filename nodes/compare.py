"""The node that compares samplers and schedules on one prompt and seed."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..samplers import SAMPLERS, SamplerSpec, ScheduleSpec
from ..samplers.calibrated.objective import rmse
from ..samplers.checks import shortened
from ..samplers.levels import SAME_LEVEL
from .host.model import MANY_STEPS, fingerprint, is_flow, level_range, many_steps_schedule, sigmas_over
from .host.runs import resolve
from .host.session import Conditioning, Guider, fitting, sample
from .plans import text_table
from .sampling import CATEGORY
from .ui.names import SYNTAX, Named, checked_length, make_sampler, make_sigmas, read_samplers, read_schedules
from .ui.options import cfg_input, seed_input
from .ui.pictures import Tile, decode, sheet
from .ui.plots import Panel, line_plot
from .ui.progress import Display, preview_image, show, telling
from .ui.search import search_words

STOPPING = comfy.model_management.InterruptProcessingException, comfy.model_management.OOM_EXCEPTION
"""What ends a comparison, and is no fault of one sampler."""


class Cell(NamedTuple):
    """A place of the table."""

    sampler: Named[SamplerSpec]
    schedule: Named[ScheduleSpec]
    steps: int

    def __str__(self) -> str:
        return f"{self.sampler.label}, {self.schedule.label}, {self.steps} steps"


class Run(NamedTuple):
    """A sampler on its levels."""

    sampler: Named[SamplerSpec]
    sigmas: tuple[float, ...]
    published: bool = False
    """Whether it follows the published plan of the sampler, on any schedule."""


class Outcome(NamedTuple):
    """What a run gave."""

    latents: Tensor
    evaluations: int


# What is kept between two runs of the node


class Content:
    """What was connected, to be recognised: tensors and numbers by their content, all else by being the same object.

    Objects are not kept alive by it, but for the few that know no weak references.
    """

    def __init__(self, *inputs: Any):
        self._objects: list[Callable[[], Any]] = []
        self._met: dict[int, int] = {}
        self._kept: list[Any] = []  # an id is of use while its object is there
        digest = hashlib.sha256()
        for part in self._parts(inputs):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        self._digest = digest.digest()
        del self._met, self._kept

    def same(self, other: Content | None) -> bool:
        """Whether both were made from the same inputs."""
        if other is None or self._digest != other._digest:
            return False
        return all(reference() is not None for reference in other._objects)  # else an id may be another's now

    def _parts(self, inputs: Any) -> Iterator[bytes]:
        """What tells values from others, however deep they lie. What is met again is told by its number: it may hold
        itself."""
        waiting = [inputs]
        while waiting:
            value = waiting.pop()
            if id(value) in self._met:
                yield f"met {self._met[id(value)]}".encode()
                continue
            yield type(value).__name__.encode()
            if isinstance(value, int):
                yield hex(value).encode()  # decimal digits have a limit
            elif value is None or isinstance(value, float | complex | str | torch.dtype | torch.device):
                yield repr(value).encode()
            elif isinstance(value, bytes | bytearray):
                yield bytes(value)
            elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
                yield repr((value.shape, value.dtype)).encode()
                yield value.tobytes()
            elif isinstance(value, Tensor) and (content := _bytes_of(value)) is not None:
                yield repr((value.shape, value.dtype)).encode()
                yield content
            elif isinstance(value, Mapping | list | tuple):
                self._met[id(value)] = len(self._met)
                self._kept.append(value)
                yield str(len(value)).encode()
                waiting += reversed(list(value.items() if isinstance(value, Mapping) else value))
            else:
                self._objects.append(_weakly(value))
                yield str(id(value)).encode()


def _bytes_of(tensor: Tensor) -> bytes | None:
    """Its numbers; None for kinds that cannot be read so (sparse, quantised, without memory)."""
    try:
        return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    except (RuntimeError, NotImplementedError, TypeError):
        return None


def _weakly(value: Any) -> Callable[[], Any]:
    """A weak reference, or one that keeps what knows no weak ones: its id must not become another's."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


class Finished:
    """The runs of the last comparison."""

    def __init__(self) -> None:
        self._content: Content | None = None
        self._runs: dict[Run, Outcome] = {}

    def of(self, content: Content) -> dict[Run, Outcome]:
        """Those with these inputs; others are forgotten."""
        if not content.same(self._content):
            self._content, self._runs = content, {}
        return self._runs


FINISHED = Finished()


# The work


class Comparison:
    """Samplers on schedules, each with several numbers of steps, from the same noise.

    Args:
        reference_steps: of the run that errors are measured from; 0: without errors.

    Raises:
        ValueError: naming the input at fault.
    """

    def __init__(
        self,
        patcher: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent: dict[str, Any],
        *,
        cfg: float,
        seed: int,
        samplers: Sequence[Named[SamplerSpec]],
        schedules: Sequence[Named[ScheduleSpec]],
        steps: Sequence[int],
        denoise: float = 1.0,
        reference_steps: int = 60,
    ):
        if not 0 < denoise <= 1:
            raise ValueError(f"denoise = {denoise:g} must be above 0 and at most 1: at 0 there is nothing to compare")
        fitting(patcher, latent)  # complains
        self.patcher, self.reference_steps = patcher, reference_steps
        self.rows = [(sampler, schedule) for sampler in samplers for schedule in schedules]
        self.columns = list(steps)
        self.faults: dict[Cell, str] = {}
        self._inputs = positive, negative, cfg, seed, latent
        self._runs: dict[Cell, Run] = {}
        self._references: dict[Cell, Run] = {}
        self._done = FINISHED.of(Content(patcher, *self._inputs))
        self._plan(denoise)

    @property
    def cells(self) -> list[Cell]:
        """Few steps first: a comparison that is stopped early has something of all samplers."""
        return [Cell(*row, steps) for steps in self.columns for row in self.rows]

    def outcome(self, cell: Cell) -> Outcome | None:
        """Of a cell that is finished."""
        return self._done.get(self._runs[cell]) if cell in self._runs else None

    def first(self, cell: Cell) -> Cell:
        """The first cell that is the same run: one image stands for all of them."""
        return next((other for other in self.cells if self._runs.get(other) == self._runs[cell]), cell)

    def published(self, cell: Cell) -> bool:
        """Whether the schedule makes no difference: the sampler follows its published plan."""
        return cell in self._runs and self._runs[cell].published

    def reference(self, cell: Cell) -> Outcome | None:
        """What a cell's error is measured from: for img2img it begins at the same level."""
        return self._done.get(self._references[cell]) if cell in self._references else None

    def error(self, cell: Cell) -> float | None:
        """Root mean square difference to the reference, in the units of latents: the mean over the images."""
        found, reference = self.outcome(cell), self.reference(cell)
        if found is None or reference is None:
            return None
        return float(rmse((found.latents - reference.latents).flatten(1)).mean())

    def run(self, display: Display) -> None:
        """Do what is not done yet.

        Raises:
            InterruptProcessingException: as the host does. What is finished is kept, also for the next comparison.
        """
        waiting: dict[Run, str] = {}
        for number, cell in enumerate(self.cells, 1):
            if cell in self._references:
                waiting.setdefault(self._references[cell], f"reference, {self.reference_steps} steps")
            if cell in self._runs:
                waiting.setdefault(self._runs[cell], f"{number} of {len(self.cells)}: {cell}")
        waiting = {run: text for run, text in waiting.items() if run not in self._done}
        total, past = sum(len(run.sigmas) - 1 for run in waiting), 0
        for run, text in waiting.items():
            try:
                self._done[run] = self._sample(
                    run, lambda i, x, past=past, text=text: display.show(past + i, total, text, x)
                )
            except STOPPING:
                raise
            except Exception as error:  # of one sampler: the others go on
                logging.warning("Few-Step Compare, %s: %s", text, error, exc_info=not isinstance(error, ValueError))
                for cell, its in (*self._runs.items(), *self._references.items()):
                    if its == run:
                        self.faults[cell] = str(error) or type(error).__name__
            past += len(run.sigmas) - 1

    def _plan(self, denoise: float) -> None:
        """Which runs the cells are, and which their references."""
        sampling = self.patcher.get_model_object("model_sampling")
        for cell in self.cells:
            try:
                sigmas = make_sigmas(*cell[:2], sampling, cell.steps, denoise)
                if self.reference_steps:
                    start = float(sampling.sigma_max if denoise > 0.9999 else sigmas[0])
                    self._references[cell] = _reference(sampling, self.reference_steps, start)
                self._runs[cell] = self._run(cell.sampler, sigmas)
            except Exception as error:  # of a schedule; the host's raise what they like
                self.faults[cell] = str(error) or type(error).__name__

    def _run(self, sampler: Named[SamplerSpec], sigmas: Tensor) -> Run:
        """A cell by what it does: all schedules from one level are one run where a published plan is followed."""
        given = tuple(sigmas.tolist())
        if sampler.spec is None:
            return Run(sampler, given)
        flow = is_flow(self.patcher.get_model_object("model_sampling"))
        found = resolve(sampler.spec, sampler.options, given, flow=flow, kind=fingerprint(self.patcher))
        if found.recipe is None:
            return Run(sampler, given)
        for run in self._runs.values():
            if run.sampler == sampler and run.published and math.isclose(run.sigmas[0], given[0], rel_tol=SAME_LEVEL):
                return run
        return Run(sampler, (given[0], *found.recipe.sigmas[1:]), published=True)

    def _sample(self, run: Run, step: Callable[[int, Tensor], None]) -> Outcome:
        positive, negative, cfg, seed, latent = self._inputs
        evaluations = 0

        def count(_: Tensor, __: Tensor) -> None:
            nonlocal evaluations
            evaluations += 1

        latents = sample(
            Guider(self.patcher, positive, negative, cfg, count), seed, make_sampler(run.sampler),
            torch.tensor(run.sigmas), latent, lambda i, denoised, x, total: step(i + 1, denoised),
        ).cpu()  # fmt: skip
        if not latents.isfinite().all():
            raise ValueError("the image holds NaN or infinity")
        return Outcome(latents, evaluations)


def _reference(sampling: Any, steps: int, start: float) -> Run:
    """Many steps from a level: any sampler without noise comes near to it, the more its steps."""
    sigmas = sigmas_over(many_steps_schedule(sampling), level_range(sampling)._replace(sigma_max=start), steps)
    return Run(Named("reference", MANY_STEPS, SAMPLERS[MANY_STEPS]), tuple(sigmas.tolist()))


# What is shown

PUBLISHED_PLAN = "published plan"
_WHATEVER = "the sampler follows the plan that its authors published, whatever the schedule"


def _schedule(work: Comparison, cell: Cell) -> str:
    return f"{cell.schedule.label} ({PUBLISHED_PLAN})" if work.published(cell) else cell.schedule.label


def table(work: Comparison) -> str:
    """Every cell in a line."""
    rows = [["sampler", "schedule", "steps", "evaluations", "error"]]
    for row in work.rows:
        for steps in work.columns:
            cell = Cell(*row, steps)
            found, error = work.outcome(cell), work.error(cell)
            fault = work.faults.get(cell, "not finished")
            told = [str(found.evaluations), "" if error is None else f"{error:.4g}"] if found else ["", fault]
            rows.append([cell.sampler.label, _schedule(work, cell), str(steps), *told])
    lines = text_table(rows)
    if any(map(work.published, work.cells)):
        lines += ["", f"{PUBLISHED_PLAN}: {_WHATEVER}."]
    if work.reference_steps:
        lines += [
            "",
            f"error: root mean square difference of the latent from {work.reference_steps} steps of {MANY_STEPS}. With "
            "fresh noise an image is another one, and this says little.",
        ]
    return "\n".join([*lines, ""])


def chart(work: Comparison) -> Tensor:
    """Error against evaluations."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in work.rows:
        for cell in (Cell(*row, steps) for steps in work.columns):
            found, error = work.outcome(cell), work.error(cell)
            if found is not None and error is not None and not (work.published(cell) and work.first(cell) != cell):
                schedule = PUBLISHED_PLAN if work.published(cell) else cell.schedule.label
                series.setdefault(f"{cell.sampler.label}, {schedule}", []).append((float(found.evaluations), error))
    series = {name: sorted(points) for name, points in series.items()}
    title = f"Error against {work.reference_steps} steps" if work.reference_steps else "Without a reference"
    return line_plot([Panel(title, "evaluations", "error", series, log_y=True)])


def grid(work: Comparison, width: int, vae: Any = None) -> Tensor:
    """The images, a row for each sampler and schedule, a column for each number of steps; below, the reference."""
    rows = [[_tile(work, Cell(*row, steps), vae) for steps in work.columns] for row in work.rows]
    left = [f"{sampler.label}\n{schedule.label}" for sampler, schedule in work.rows]
    references = {id(found): found for cell in work.cells if (found := work.reference(cell)) is not None}
    if len(references) == 1:
        (found,) = references.values()
        picture = decode(work.patcher, found.latents[:1], vae)[0]
        rows.append([Tile(picture, f"NFE {found.evaluations}")])
        left.append(f"reference\n{MANY_STEPS}")
    return sheet(rows, width, top=[f"{steps} steps" for steps in work.columns], left=left)


def _tile(work: Comparison, cell: Cell, vae: Any) -> Tile:
    found, error = work.outcome(cell), work.error(cell)
    if found is None:
        return Tile(fault=work.faults.get(cell, ""), caption="failed" if cell in work.faults else "not finished")
    if (first := work.first(cell)) != cell:
        same = f"the same run as on {first.schedule.label}"
        return Tile(fault=f"{same}: {_WHATEVER}" if work.published(cell) else same, caption="same run")
    caption = f"NFE {found.evaluations}" + ("" if error is None else f", error {error:.2g}")
    caption += f", {PUBLISHED_PLAN}" if work.published(cell) else ""
    return Tile(decode(work.patcher, found.latents[:1], vae)[0], caption)


# The node


class FewStepCompare(io.ComfyNode):
    """Samplers and schedules side by side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepCompare",
            display_name="Few-Step Compare",
            category=CATEGORY,
            description="Every sampler on every schedule with every number of steps, from the same noise: the images "
            "in one sheet, and how far each is from the image of many steps. Stopping it loses nothing: what is "
            "finished is shown, and queued again with the same inputs it goes on from there. The same when you add "
            "a line: only what is new is run.",
            inputs=[
                io.Model.Input("model", tooltip="The model to be sampled."),
                io.Conditioning.Input("positive", tooltip="What the image shows."),
                io.Conditioning.Input("negative", tooltip="What it does not show."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent of your size, or an image to begin from with denoise."
                ),
                io.String.Input(
                    "samplers", multiline=True, default="dpmpp_2m\nfewstep_dpmpp_2m\nfewstep_ipndm_v", tooltip=SYNTAX
                ),
                io.String.Input(
                    "schedules",
                    multiline=True,
                    default="karras\nfewstep_karras*",
                    tooltip=f"{SYNTAX} A * after one of ours leaves out its last level above 0 (discard_penultimate).",
                ),
                io.String.Input("steps", default="5, 8, 12", tooltip="Numbers of steps, with commas between them."),
                cfg_input(7.0),
                seed_input("Of the noise that all begin from.", changes=False),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1 the images begin from latent_image (img2img), as in KSampler. Where a run begins "
                    "then depends on schedule and steps: each beginning has a reference of its own.",
                ),
                io.Int.Input(
                    "reference_steps",
                    default=60,
                    min=0,
                    max=1000,
                    tooltip=f"Steps of the image that the others are compared with ({MANY_STEPS}). 0: none, and no "
                    "errors.",
                ),
                io.Int.Input(
                    "tile", default=256, min=64, max=2048, tooltip="Width of an image on the sheet, in pixels."
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Makes the images. Without one they are previews of the latents in rough colours.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="The images with labels, evaluations (NFE) and errors."),
                io.Image.Output(display_name="chart", tooltip="Error against evaluations of the model."),
                io.String.Output(display_name="table", tooltip="Evaluations and errors as text."),
                io.Latent.Output(
                    display_name="latents",
                    tooltip="All images that came out, column by column, to be decoded at full size.",
                ),
            ],
            is_output_node=True,
            **search_words("xy plot", "compare samplers", "grid of samplers"),
        )

    @classmethod
    def validate_inputs(
        cls, samplers: str | None = None, schedules: str | None = None, steps: str | None = None
    ) -> bool | str:
        readers = (read_samplers, samplers), (read_schedules, schedules), (read_steps, steps)
        for read, text in readers:
            if text is not None:  # else another node gives it
                try:
                    read(text)
                except ValueError as error:
                    return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: dict[str, Any],
        samplers: str,
        schedules: str,
        steps: str,
        cfg: float,
        seed: int,
        denoise: float,
        reference_steps: int,
        tile: int,
        vae: Any = None,
    ) -> io.NodeOutput:
        work = Comparison(
            model,
            positive,
            negative,
            latent_image,
            cfg=cfg,
            seed=seed,
            samplers=read_samplers(samplers),
            schedules=read_schedules(schedules),
            steps=read_steps(steps),
            denoise=denoise,
            reference_steps=reference_steps,
        )
        try:
            work.run(Display(model))
        except comfy.model_management.InterruptProcessingException:
            with telling("the images that are finished cannot be shown"):
                show(ui.PreviewImage(grid(work, tile, vae)).as_dict())
            logging.info("Few-Step Compare was stopped: queue it again with the same inputs and it goes on from there")
            raise
        sheet = grid(work, tile, vae)
        images = [cell for cell in work.cells if work.outcome(cell) is not None and work.first(cell) == cell]
        latents = [found.latents for cell in images if (found := work.outcome(cell)) is not None]
        if not latents:
            raise ValueError("nothing came out: " + "; ".join(f"{cell}: {why}" for cell, why in work.faults.items()))
        out = {"samples": torch.cat(latents)}
        return io.NodeOutput(sheet, chart(work), table(work), out, ui=preview_image(sheet))


def read_steps(text: str) -> list[int]:
    """Numbers of steps.

    Raises:
        ValueError: naming the one at fault.
    """
    found = []
    for part in re.split(r"[\s,;]+", checked_length("steps", text).strip()):
        if not (part.isdecimal() and len(part) <= 9 and 1 <= int(part) <= 1000):
            raise ValueError(f"steps: {shortened(part)} must be a whole number from 1 to 1000; write them as 5, 8, 12")
        found.append(int(part))
    return list(dict.fromkeys(found))
