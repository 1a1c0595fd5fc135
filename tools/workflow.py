"""Workflows as the front end saves them, turned into prompts as the host runs them.

The front end does the same when a workflow is queued: a node's widget values, kept by position, are given the
names that the host's `/object_info` lists, and links replace the inputs they feed.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

TYPES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
WIDGETS = {*TYPES, "COMBO"}
FILES = {"ckpt_name", "image", "file"}  # inputs whose choices are files of the user's
FRONT_END_ONLY = {"Note", "MarkdownNote"}
NEVER, BYPASS = 2, 4  # modes of a node that is switched off


class Input(NamedTuple):
    """An input of a node as `/object_info` lists it."""

    name: str
    kind: str
    options: dict[str, Any]
    optional: bool

    @property
    def is_widget(self) -> bool:
        """Whether the front end shows a widget for it, which has a place in the saved values."""
        return self.kind in WIDGETS and not self.options.get("forceInput")

    @property
    def follower(self) -> str | None:
        """What the front end saves after its value: that of a widget of its own, which the host does not know."""
        if self.options.get("control_after_generate", self.name in ("seed", "noise_seed")):
            return "fixed"  # or increment, decrement, randomize
        return "image" if self.options.get("image_upload") else None  # the label of its button

    @property
    def default(self) -> Any:
        """What the widget of a new node shows: numbers are rounded to its step, unless the node says otherwise."""
        if self.kind == "COMBO":
            return self.options.get("default", next(iter(self.options["options"]), None))
        value = self.options.get("default", {"STRING": "", "BOOLEAN": False}.get(self.kind, 0))
        digits = self.options.get("round")
        if self.kind == "FLOAT" and digits is not False:
            return round(value, max(0, -math.floor(math.log10(digits or self.options.get("step", 0.5)))))
        return value


def inputs(info: dict[str, Any]) -> Iterator[Input]:
    """The inputs of a node in the order of its definition, the old and the new style of dropdowns as one."""
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, *rest = info["input"][group][name]
            options = rest[0] if rest else {}
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            yield Input(name, kind, options, group == "optional")


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The API prompt of a saved workflow.

    Raises:
        ValueError: naming a node that the host does not know, that is switched off, or whose values do not fit.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in FRONT_END_ONLY:
            continue
        if kind not in object_info:
            raise ValueError(f"node {node['id']}: the host has no node {kind!r}; is its pack installed?")
        if node.get("mode") in (NEVER, BYPASS):
            raise ValueError(f"node {node['id']} ({kind}) is muted or bypassed, which is not supported here")
        values = _widget_values(node, object_info[kind])
        links = {slot["name"]: sources[slot["link"]] for slot in node.get("inputs", []) if slot.get("link")}
        prompt[str(node["id"])] = {"class_type": kind, "inputs": values | links}
    return prompt


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    values = list(node.get("widgets_values", []))
    named = {}
    for field in filter(lambda field: field.is_widget, inputs(info)):
        if values:
            named[field.name] = values.pop(0)
            if field.follower and values:
                values.pop(0)
        elif field.optional:
            named[field.name] = field.default  # an input that is newer than the workflow
        else:
            raise ValueError(f"node {node['id']} ({node['type']}): no value for {field.name}")
    if values:
        raise ValueError(f"node {node['id']} ({node['type']}): {len(values)} values too many")
    return named


def refusals(prompt: dict[str, Any], object_info: dict[str, Any]) -> list[str]:
    """Why a host with these nodes would not run a prompt, with a line for each reason; files of the user's aside."""
    wrong = []
    for node in prompt.values():
        kind, given = node["class_type"], dict(node["inputs"])
        if kind not in object_info:
            wrong.append(f"{kind}: no such node")
            continue
        for field in inputs(object_info[kind]):
            if field.name not in given:
                reasons = [] if field.optional else ["required, and not given"]
            elif isinstance(value := given.pop(field.name), list):
                source, slot = prompt[value[0]]["class_type"], value[1]
                types = object_info.get(source, {}).get("output", [])[slot:]
                reasons = [f"takes {field.kind}, and {source} does not give it"] if field.kind not in types[:1] else []
            else:
                reasons = list(_misfits(value, field))
            wrong += [f"{kind}.{field.name}: {reason}" for reason in reasons]
        wrong += [f"{kind}.{name}: no such input" for name in given]
    return wrong


def _misfits(value: Any, field: Input) -> Iterator[str]:
    least, most = (field.options.get(end, value) for end in ("min", "max"))
    if field.kind == "COMBO":
        if value not in field.options.get("options", []) and field.name not in FILES:
            yield f"{value!r} is no choice"
    elif not isinstance(value, TYPES.get(field.kind, object)):
        yield f"{value!r} is no {field.kind}"
    elif field.kind in ("INT", "FLOAT") and not least <= value <= most:
        yield f"{value!r} is out of range"


# Building


class Output(NamedTuple):
    """An output of a node, to be connected to inputs."""

    node: int
    slot: int
    type: str


Value = Output | str | int | float | bool

WIDTH, GAP = 360, 70  # of a node, and between the nodes of two groups
TITLE, SLOT, WIDGET, TEXT, LINE = 30, 20, 24, 110, 17  # heights
PICTURE, PLOT = 300, 174
ROOM = {"LoadImage": PICTURE, "SaveImage": PICTURE, "PreviewImage": PICTURE}
ROOM |= {"FewStepPlanSampler": PLOT, "FewStepAuto": PLOT + 120}  # and what it chose, in words
FITTED = {"FewStepSampler": 304, "FewStepScheduler": 400}  # with a plot, without the widgets of other choices


class Graph:
    """A workflow that grows to the right, group by group; in a group nodes lie below each other.

        graph = Graph("name", host.get("/object_info"), own={"cnr_id": "fewstep", "ver": "1.0"}, core={...})
        graph.group("Sampling")
        image = graph.add("VAEDecode", samples=samples, vae=vae)
        graph.add("SaveImage", images=image, filename_prefix="name")
        graph.saved()

    Args:
        object_info: what the host says of its nodes.
        own: properties of the nodes that come from a pack: its `cnr_id` and `ver`, by which ComfyUI and its Manager
            find a pack that is missing.
        core: those of the host's own nodes.
    """

    def __init__(self, name: str, object_info: dict[str, Any], own: dict[str, str], core: dict[str, str]):
        self._name, self._info, self._own, self._core = name, object_info, own, core
        self._nodes: list[dict[str, Any]] = []
        self._links: list[list[Any]] = []
        self._groups: list[dict[str, Any]] = []
        self._left, self._down = 0, 0  # of the next node

    def group(self, title: str) -> None:
        """Begin a group to the right of what is there."""
        self._left, self._down = len(self._groups) * (WIDTH + GAP), 0
        box = [self._left - 20, -TITLE - 50, WIDTH + 40, 0]
        group = {"id": len(self._groups) + 1, "title": title, "bounding": box, "color": "#3f789e", "font_size": 24}
        self._groups.append({**group, "flags": {}})

    def note(self, text: str, title: str = "Read me") -> None:
        """A note in Markdown, as high as its text."""
        height = 70 + LINE * sum(1 + len(line) // 50 for line in text.splitlines())
        node = {"type": "MarkdownNote", "inputs": [], "outputs": [], "title": title, "properties": {}}
        self._place(node | {"widgets_values": [text], "color": "#432", "bgcolor": "#653"}, height)

    def add(self, kind: str, title: str | None = None, models: list[dict[str, str]] | None = None, **given: Value):
        """A node; its output, or a tuple of them.

        Args:
            kind: the id of the node.
            title: in the place of its name.
            models: files that it loads, with the addresses from which ComfyUI offers to download them.
            given: by input, a value of its widget or an output of another node. Widgets else show their default.

        Raises:
            ValueError: naming an input that is unknown, is missing, or has a value that is no choice.
        """
        if kind not in self._info:
            raise ValueError(f"the host has no node {kind!r}")
        info = self._info[kind]
        id = len(self._nodes) + 1
        slots, values, widgets, height = [], [], 0, 0
        for field in inputs(info):
            value = given.pop(field.name, None)
            if isinstance(value, Output):
                link = len(self._links) + 1
                self._links.append([link, value.node, value.slot, id, len(slots), value.type])
                self._outputs(value.node)[value.slot]["links"].append(link)
                slots.append({"name": field.name, "type": field.kind, "link": link})
                if field.is_widget:
                    slots[-1]["widget"] = {"name": field.name}
            elif not field.is_widget and field.optional:
                slots.append({"name": field.name, "shape": 7, "type": field.kind, "link": None})
            elif not field.is_widget:
                raise ValueError(f"{kind}: nothing is connected to {field.name}")
            if field.is_widget:
                values.append(field.default if value is None or isinstance(value, Output) else value)
                self._check(kind, field, values[-1])
                values += [field.follower] if field.follower else []
                widgets += 2 if field.follower else 1
                height += TEXT if field.options.get("multiline") else 0
        if given:
            raise ValueError(f"{kind}: no input is called {', '.join(given)}")
        outputs = [
            {"name": name, "type": type, "links": []}
            for name, type in zip(info["output_name"], info["output"], strict=True)
        ]
        pack = self._own if info["python_module"].startswith("custom_nodes.") else self._core
        properties = {"Node name for S&R": kind, **pack} | ({"models": models} if models else {})
        node = {"type": kind, "inputs": slots, "outputs": outputs, "properties": properties, "widgets_values": values}
        rows = max(len(slots), len(outputs), 1)
        height += SLOT * rows + WIDGET * widgets + 14 + ROOM.get(kind, 0)
        self._place(node | ({"title": title} if title else {}), FITTED.get(kind, height))
        made = tuple(Output(id, slot, output["type"]) for slot, output in enumerate(outputs))
        return made[0] if len(made) == 1 else made

    def saved(self) -> dict[str, Any]:
        """The workflow as the front end exports it."""
        for node in self._nodes:
            for output in node["outputs"]:
                output["links"] = output["links"] or None
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"fewstep/{self._name}")),
            "revision": 0,
            "last_node_id": len(self._nodes),
            "last_link_id": len(self._links),
            "nodes": self._nodes,
            "links": self._links,
            "groups": self._groups,
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [80, 140]}},
            "version": 0.4,
        }

    def _place(self, node: dict[str, Any], height: int) -> None:
        """Below the last node of the group, which grows with it."""
        number = len(self._nodes)
        place = {"id": number + 1, "pos": [self._left, self._down], "size": [WIDTH, height]}
        self._nodes.append({**place, "flags": {}, "order": number, "mode": 0, **node})
        self._down += height + TITLE + 30
        box = self._groups[-1]["bounding"]
        box[3] = self._down - box[1] - TITLE - 10

    def _outputs(self, id: int) -> list[dict[str, Any]]:
        return self._nodes[id - 1]["outputs"]

    @staticmethod
    def _check(kind: str, field: Input, value: Any) -> None:
        """Choices that lie in the pack, not in files of the user's."""
        choices = field.options.get("options", [])
        if field.kind == "COMBO" and value not in choices and field.name not in FILES:
            raise ValueError(f"{kind}: {field.name} = {value!r} must be one of {', '.join(map(str, choices))}")
