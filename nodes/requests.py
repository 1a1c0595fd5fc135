"""Requests of the front end: read within limits, checked field by field, and answered by one thread beside the event
loop.

What the front end never sends is answered with status 400 and {"error": text}; a body that is too long with 413.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web
from comfy_api.latest import io

from ..samplers import UnknownIdError
from ..samplers.checks import read_number, shortened
from .auto import FewStepAuto
from .guidance import FewStepGuidance
from .ksampler import FewStepKSampler, FewStepKSamplerAdvanced
from .plans import FewStepLoadPlan, FewStepPlanSampler
from .sampling import FewStepSampler, FewStepScheduler
from .ui.names import checked_length

LIMIT = 2**20
"""Bytes of a body; a plan of a thousand levels as text takes a fifth of it."""

WAITING = 64
"""Requests that may wait for the one that is worked at."""

REST = 2.0
"""How long the thread rests after a request, as a multiple of the time it took: the lock of Python is then free for the
thread that samples."""

LONGEST_REST = 2.0  # seconds


class RequestError(ValueError):
    """A request that the front end does not make; the message says which field is at fault."""


class NotYet(ValueError):
    """Nothing is wrong, and nothing can be drawn yet; the message says what is missing."""


# From the body to the answer


def answer(draw: Callable[[Any], Mapping[str, Any]], *, changes: bool = False) -> Callable[[web.Request], Any]:
    """A handler of the host's server: `draw` makes the answer of what the body holds, in a thread of its own.

    Its ValueErrors are what is wrong with the widgets, which the node shows in place of its plot.

    Args:
        changes: whether it changes files. Such a request must say that it is JSON, which a page of another site cannot.
    """

    async def handler(request: web.Request) -> web.Response:
        if changes and request.content_type != "application/json":
            return _response(415, {"error": "the request must be of the type application/json"})
        try:
            body = await _body(request)
        except Exception as error:  # of a body that is compressed wrongly, or cut off
            return _response(400, {"error": f"the request could not be read ({type(error).__name__})"})
        if body is None:
            return _response(413, {"error": f"the request is longer than {LIMIT:,} bytes"})
        if _worker.waiting >= WAITING:
            return _response(503, {"error": "too many requests wait already"})
        status, text = await _worker.do(lambda: _answered(draw, body), request)
        return web.Response(status=status, text=text, content_type="application/json")

    return handler


async def _body(request: web.Request) -> bytes | None:
    """The body; None if it is too long, of which no more is read."""
    if (request.content_length or 0) > LIMIT:
        return None
    parts, size = [], 0
    async for part in request.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > LIMIT:
            return None
    return b"".join(parts)


def _answered(draw: Callable[[Any], Mapping[str, Any]], body: bytes) -> tuple[int, str]:
    """Status and JSON."""
    try:
        return 200, json.dumps(draw(_decoded(body)), allow_nan=False)
    except RequestError as error:
        return 400, json.dumps({"error": str(error)})
    except NotYet as error:
        return 200, json.dumps({"error": str(error), "not_yet": True})
    except (ValueError, UnknownIdError) as error:
        return 200, json.dumps({"error": str(error)})
    except RecursionError:
        return 400, json.dumps({"error": "the request is nested too deeply"})
    except Exception:
        logging.warning("a request for a plot could not be answered", exc_info=True)
        return 400, json.dumps({"error": "this cannot be drawn; the log of the server says why"})


def _decoded(body: bytes) -> Any:
    """The JSON of a body; None of an empty one."""

    def refuse(constant: str) -> Any:
        raise ValueError("it holds NaN or infinity")  # NaN and infinity, which Python reads

    try:
        return json.loads(body.decode(), parse_constant=refuse) if body else None
    except UnicodeDecodeError:
        raise RequestError("the request is not valid JSON: its text is not UTF-8") from None
    except ValueError as error:
        raise RequestError(f"the request is not valid JSON: {str(error)[:100]}") from None


def _response(status: int, answer: Mapping[str, Any]) -> web.Response:
    return web.json_response(answer, status=status)


class _Worker:
    """One thread, which answers one request after the other and rests in between."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fewstep-plots")
        self._rested = 0.0  # when it may go on
        self.waiting = 0

    async def do(self, work: Callable[[], tuple[int, str]], request: web.Request) -> tuple[int, str]:
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._do, work, request)
        finally:
            self.waiting -= 1

    def _do(self, work: Callable[[], tuple[int, str]], request: web.Request) -> tuple[int, str]:
        time.sleep(max(0.0, self._rested - time.monotonic()))
        if request.transport is None or request.transport.is_closing():
            return 400, "{}"  # nobody waits for it any more
        start = time.monotonic()
        try:
            return work()
        finally:
            end = time.monotonic()
            self._rested = end + min(REST * (end - start), LONGEST_REST)


_worker = _Worker()


# What may be asked

_NODES = {
    cls.__name__: cls
    for cls in (
        FewStepSampler, FewStepScheduler, FewStepKSampler, FewStepKSamplerAdvanced, FewStepAuto, FewStepGuidance,
        FewStepLoadPlan, FewStepPlanSampler,
    )
}  # fmt: skip
_NESTED = {
    "SplitSigmas": "sigmas",
    **dict.fromkeys(
        ("FewStepPlanSampler", "FewStepSampler", "FewStepAuto", "FewStepKSampler", "FewStepKSamplerAdvanced"), "plan"
    ),
}
_DEEPEST = 50  # nodes within each other
_LEVEL = (1e-6, 1e6)
_SCALE = (-1e6, 1e6)  # of guidance
_MOST_SCALES = 1000
_MOST_FACTS = 20
_LONGEST_LIST = 10_000  # letters: the host's pattern for numbers is quadratic in dots, and half a second for so many


def read_request(given: Any) -> dict[str, Any]:
    """The fields of a request, each None where it is left out: `node`, `levels`, `model`, `loader`, `sigmas` and
    `guidance`.

    Nodes have the values of all their widgets, the defaults of those that were left out, and no other inputs than the
    nodes that are looked at. Names that are not known are left out.

    Raises:
        RequestError: naming the field at fault.
        ValueError: if the value of a widget is out of its bounds.
    """
    fields = _object("the request", given)
    guidance = fields.get("guidance")
    if isinstance(guidance, dict):
        guidance = _node("guidance", guidance, "FewStepGuidance")
    elif isinstance(guidance, list):
        if not 1 <= len(guidance) <= _MOST_SCALES:
            raise RequestError(f"guidance: a list holds 1 to {_MOST_SCALES} scales, one for each step")
        guidance = [_number(f"guidance[{k}]", scale, *_SCALE) for k, scale in enumerate(guidance)]
    elif guidance is not None:
        guidance = _number("guidance", guidance, *_SCALE)
    return {
        "node": _node("node", fields.get("node")),
        "levels": _levels(fields.get("levels")),
        "model": _model(fields.get("model")),
        "loader": _loader(fields.get("loader")),
        "sigmas": None if fields.get("sigmas") is None else _node("sigmas", fields["sigmas"]),
        "guidance": guidance,
    }


def given_texts(given: Any, names: Iterable[str]) -> dict[str, str]:
    """The texts among the fields of a request.

    Raises:
        RequestError: naming the field at fault.
    """
    fields = _object("the request", given)
    for name in names:
        if not isinstance(fields.get(name, ""), str):
            raise RequestError(f"{name} = {shortened(fields[name])} must be a text")
    return {name: fields[name] for name in names if name in fields}


def read_texts(given: Any, *names: str) -> list[str]:
    """Fields of a request that are texts, all of them.

    Raises:
        RequestError: naming the field at fault.
    """
    found = given_texts(given, names)
    for name in names:
        if name not in found:
            raise RequestError(f"{name} is missing: it must be a text")
    return [found[name] for name in names]


def _levels(given: Any) -> dict[str, Any] | None:
    """The fields of a `LevelRange`."""
    if not given and given is not False:
        return None
    fields = _object("levels", given)
    flow = fields.get("flow", False)
    if not isinstance(flow, bool):
        raise RequestError(f"levels: flow = {shortened(flow)} must be true or false")
    low, high, shift = (
        _number(f"levels: {name}", fields.get(name, default), *_LEVEL)
        for name, default in (("sigma_min", None), ("sigma_max", None), ("shift", 1.0))
    )
    return {"sigma_min": low, "sigma_max": high, "flow": flow, "shift": shift}


def _model(given: Any) -> dict[str, Any] | None:
    """What a node has sent of its model (`host.model.fingerprint`): words and numbers by name."""
    if given is None:
        return None
    fields = _object("model", given)
    if len(fields) > _MOST_FACTS:
        raise RequestError(f"model: more than {_MOST_FACTS} fields")
    for name, fact in fields.items():
        if not isinstance(fact, str):
            _number(f"model: {shortened(name)}", fact, *_LEVEL)
    return fields


def _loader(given: Any) -> dict[str, Any] | None:
    """The node that a model comes from, with its texts."""
    if given is None:
        return None
    fields = _object("loader", given)
    kind, inputs = fields.get("type"), _object("loader: inputs", fields.get("inputs"))
    if not isinstance(kind, str) or len(inputs) > _MOST_FACTS:
        raise RequestError(f"loader: it has a type, and at most {_MOST_FACTS} inputs")
    return {"type": kind, "inputs": {name: text for name, text in inputs.items() if isinstance(text, str)}}


def _node(name: str, given: Any, wanted: str | None = None, left: int = _DEEPEST) -> dict[str, Any]:
    """A node as the front end describes it: {"type": its id, "inputs": {name: value, or a node}}."""
    fields = _object(name, given)
    kind = fields.get("type")
    if not isinstance(kind, str) or (wanted and kind != wanted):
        raise RequestError(f"{name}: type = {shortened(kind)} must be {wanted or 'the id of a node'}")
    inputs = _object(f"{name}: inputs", fields.get("inputs"))
    if left == 0:
        raise RequestError(f"{name}: more than {_DEEPEST} nodes within each other")
    found = {id: _value(id, widget, inputs) for id, widget in _widgets(kind).items()}
    nested = _NESTED.get(kind)
    if nested is not None and inputs.get(nested) is not None:
        found[nested] = _node(nested, inputs[nested], left=left - 1)
    checked: dict[str, Any] = {"type": kind, "inputs": found}
    if kind == "SplitSigmas":
        if nested not in found:
            raise RequestError(f"{name}: SplitSigmas has the node of its sigmas as an input")
        found["step"] = _whole("step", inputs.get("step"), 0, 10_000)
        checked["output"] = _whole("output", fields.get("output"), 0, 1)
    if kind == "BasicScheduler":  # the host's, also for what KSampler does
        scheduler = inputs.get("scheduler")
        if not isinstance(scheduler, str):
            raise RequestError(f"{name}: scheduler = {shortened(scheduler)} must be a text")
        found["scheduler"] = scheduler
        found["steps"] = _whole("steps", inputs.get("steps"), 1, 10_000)
        found["denoise"] = _number(f"{name}: denoise", inputs.get("denoise", 1.0), 0.0, 1.0)
    if kind == "ManualSigmas":  # of new hosts: levels that are typed in
        typed = inputs.get("sigmas")
        if not isinstance(typed, str):
            raise RequestError(f"{name}: sigmas = {shortened(typed)} must be a text")
        found["sigmas"] = checked_length("sigmas", typed, _LONGEST_LIST)
    return checked


def _widgets(kind: str) -> Mapping[str, io.Input]:
    """The inputs of a node of ours that have a value of their own."""
    return _widgets_of(kind) if kind in _NODES else {}


@functools.cache
def _widgets_of(kind: str) -> Mapping[str, io.Input]:
    inputs = _NODES[kind].define_schema().inputs
    kinds = (io.Int.Input, io.Float.Input, io.Boolean.Input, io.String.Input, io.Combo.Input)
    return {widget.id: widget for widget in inputs if isinstance(widget, kinds)}


def _value(name: str, widget: io.Input, inputs: Mapping[str, Any]) -> Any:
    """The value of a widget; its default if there is none."""
    value = inputs.get(name)
    if value is None:
        return widget.default
    if isinstance(widget, io.Int.Input):
        return _whole(name, value, widget.min, widget.max)
    if isinstance(widget, io.Float.Input):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RequestError(f"{name} = {shortened(value)} must be a number")
        return read_number(name, value, widget.min, widget.max)
    wanted = bool if isinstance(widget, io.Boolean.Input) else str
    if not isinstance(value, wanted):
        raise RequestError(f"{name} = {shortened(value)} must be {'a text' if wanted is str else 'true or false'}")
    return value


def _whole(name: str, given: Any, low: int, high: int) -> int:
    if not isinstance(given, int) or isinstance(given, bool):
        raise RequestError(f"{name} = {shortened(given)} must be a whole number")
    if not low <= given <= high:
        raise ValueError(f"{name} = {shortened(given)} must lie between {low} and {high}")
    return given


def _number(name: str, given: Any, *bounds: float) -> float:
    try:
        return read_number(name, given, *bounds)
    except ValueError as error:
        raise RequestError(str(error)) from None


def _object(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise RequestError(f"{name} = {shortened(given)} must be an object")
    return given
