"""How far long work is: its stage, what of it is done, and the time left. All that works for long says it by this."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from types import TracebackType

import comfy.model_management
from torch import Tensor

EVERY = 0.25
"""Seconds between what a node shows; a new stage and the first evaluation are shown at once."""

Show = Callable[[float, float, str, Tensor | None], None]
"""Called with the cost that is done, the cost in all, the text, and what the model sees, where that is known."""


class Progress:
    """Says how far some work is, as 'Reference images 3/32, about 6 min left'.

    Cost is counted in whatever takes the same time each: evaluations of the model for one image, or steps. The time
    left follows from the cost and from the time that evaluations took; the first one, slower than those that follow,
    counts only until there is another.

        with Progress(Display(model).show) as progress:
            progress.stage("Sampling", steps, cost=steps)
            ...
            progress.done()

    As a context it has the last word: that the work was stopped, or how long it took, unless `end` said something.

    Args:
        show: where it is shown.
        every: seconds between two times that it is, but for a new stage; `EVERY` if None.
        clock: gives seconds.
    """

    def __init__(
        self, show: Show | None = None, *, every: float | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self._show, self._clock, self._started = show, clock, clock()
        self._every = EVERY if every is None else every
        self._name, self._count, self._before, self._base = "", 0, 0, 0.0
        self._spent = self._end = self._after = 0.0
        self._began: float | None = None
        """When the first evaluation did."""

        self._first: tuple[float, float, float] | None = None
        """How long it took, its cost, and when it ended."""

        self._stages, self._what, self._note, self._ended = 0, "", "", False
        self._shown = -math.inf

    def estimate(self, what: str) -> None:
        """What is to be done, in words: during the first stage the time of it all is said with it."""
        self._what = what

    def stage(self, name: str, count: int = 0, cost: float = 0.0, *, done: int = 0, after: float = 0.0) -> None:
        """A stage that begins, or another account of the one that goes on.

        Args:
            count: how many things the stage has; none are shown where it is 0.
            cost: of what is left of the stage.
            done: how many of the things are done.
            after: the cost of the stages that follow.
        """
        new, self._name = name != self._name, name
        self._stages += new
        self._count, self._before, self._base = count, done, self._spent
        self._end, self._after = self._spent + cost, after
        if new:
            self._tell()

    def note(self, text: str) -> None:
        """What has come out so far, to be shown below."""
        self._note = text

    def begins(self) -> None:
        """An evaluation begins."""
        if self._began is None:
            self._began = self._clock()

    def done(self, cost: float = 1.0, denoised: Tensor | None = None) -> None:
        """So much was done."""
        first = self._first is None
        if first and denoised is not None:
            denoised.flatten()[:1].cpu()  # waits for the device: how long this one took is to be known
        now = self._clock()
        self._spent += cost
        self._end = max(self._end, self._spent)
        if self._first is None:
            self._first = now - (self._started if self._began is None else self._began), cost, now
        if first or now - self._shown >= self._every:
            self._tell(denoised)

    def end(self, text: str) -> None:
        """The last word."""
        self._ended = True
        self._call(text, None)

    @property
    def left(self) -> float | None:
        """Seconds that the work still takes; None where nothing was measured yet."""
        if self._first is None:
            return None
        took, cost, ended = self._first
        if self._spent > cost:
            took, cost = self._clock() - ended, self._spent - cost
        return took / cost * (self._end - self._spent + self._after) if cost else None

    @property
    def text(self) -> str:
        """Stage, count and time left in a line, and what has come out in another."""
        left, line = self.left, self._where
        if left:
            line = f"{line}, about {duration(left)} left"
        below = self._note
        if not below and left and self._what and self._stages == 1:
            whole = duration(self._clock() - self._started + left)
            below = f"{self._what}: {whole} at this model's speed"
        return f"{line}\n{below}" if below else line

    @property
    def _where(self) -> str:
        if not self._count:
            return self._name
        share = (self._spent - self._base) / (self._end - self._base) if self._end > self._base else 0.0
        return f"{self._name} {self._before + int((self._count - self._before) * share + 1e-9)}/{self._count}"

    def _tell(self, denoised: Tensor | None = None) -> None:
        self._shown = self._clock()
        self._call(self.text, denoised)

    def _call(self, text: str, denoised: Tensor | None) -> None:
        if self._show is not None:
            self._show(self._spent, max(self._end + self._after, 1.0), text, denoised)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ended:
            return
        if isinstance(error, comfy.model_management.InterruptProcessingException):
            with contextlib.suppress(Exception):  # the work is stopped already
                self.end(f"Stopped: {self._where}")
        elif error is None:
            self.end(f"Done in {duration(self._clock() - self._started)}")


def duration(seconds: float) -> str:
    """A time in words, as exact as an estimate can be."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"
