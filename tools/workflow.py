"""Workflows as the front end saves them, turned into prompts as the host runs them.

The front end does the same when a workflow is queued: a node's widget values, kept by position, are given the
names that the host's `/object_info` lists, and links replace the inputs they feed.
"""

from __future__ import annotations

import dataclasses
import itertools
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

WIDTH, GAP, PAD = 320, 46, 12  # of a column; between columns; from a column to the edge of its group
APART, BADGE = 24, 16  # between nodes of a column; more over and in those of a pack, for what says so
TITLE, HEADING, TEXT = 30, 38, 70  # heights of titles of nodes and groups, and of text boxes
LANE, BEND = 6, 8  # between wires side by side; from them to what is above or below
LOWER = 30  # so far below their place beside groups, and a little less beside nodes, Vue nodes have the reroutes
FAR, NEAR = 150, 60  # a slot farther from the space between the rows has a reroute of its own, so near

NARROW, NARROWEST = 210, 190  # widths of a node with widgets and of one without, at least, as the front ends have them
NAMED, UNNAMED = 106, 64  # what else is in the row of a title: the arrow, room, and the name of the pack in Vue nodes
LETTER, LINE = 7.4, 19  # of notes, in the design with the larger letters
SCREEN, MARGIN = (1366, 768), 92  # a small one, and the height of what the front end shows at its top

FITTED = {
    "FewStepSampler": (338, 380),
    "FewStepScheduler": (400, 448),
    "FewStepPlanSampler": (262, 290),
    "FewStepAuto": (460, 470),
    "FewStepCompare": (522, 558),
    "FewStepGuidance": (424, 458),
}
"""Heights, on the canvas and made of elements, of nodes that are not as high as their widgets: with a plot, or without
the widgets of other choices."""
PICTURES = {"LoadImage": 225, "SaveImage": 160, "PreviewImage": 140, "MaskPreview": 50}
"""Room for a picture, at least."""
GROWING = {*PICTURES, "CLIPTextEncode", "FewStepCompare"}
"""Nodes that have use for all the room that a row has."""


@dataclasses.dataclass(eq=False)
class _Column:
    """Nodes below each other."""

    row: int
    least: float  # width
    group: int
    width: float = 0.0
    left: float = 0.0
    nodes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    rooms: list[float] = dataclasses.field(default_factory=list)  # height of each in the design that makes it higher

    def __post_init__(self) -> None:
        self.width = self.least

    def put(self, node: dict[str, Any], room: float, least: float) -> None:
        """At the bottom, with a height and a width that it needs."""
        self.nodes.append(node)
        self.rooms.append(math.ceil(room))
        self.width = self.least = max(self.least, least)

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def height(self) -> float:
        return sum(self.rooms) + TITLE * len(self.rooms) + sum(self.apart)

    @property
    def apart(self) -> list[float]:
        """The spaces between its nodes: more where a wire goes through."""
        spaces = []
        for i, node in enumerate(self.nodes[1:], 1):
            wired = any(_linked(above, node) or _linked(node, above) for above in self.nodes[:i])
            spaces.append(_badge(node) + (3 * BEND + LOWER if wired else APART))
        return spaces


class Graph:
    """A workflow in one or two rows of groups. A group has columns, and nodes lie below each other in a column.

        graph = Graph("name", host.get("/object_info"), own={"cnr_id": "fewstep", "ver": "1.0"}, core={...})
        graph.group("Sampling")
        samples = graph.add("KSampler", ...)
        graph.column(140)
        image = graph.add("VAEDecode", samples=samples, vae=vae)
        graph.saved()

    Wires never pass behind a node: one that does not lead to the next column goes through reroutes in the space between
    columns and in that below the first row.

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
        self._columns: list[_Column] = []
        self._groups: list[str] = []
        self._row = 0

    @property
    def width(self) -> float:
        """Of this column."""
        return self._current.least

    def below(self) -> None:
        """Begin the lower row."""
        self._row = 1

    def group(self, title: str, width: float = WIDTH) -> None:
        """Begin a group to the right of what is in the row, with a column of this width."""
        self._groups.append(title)
        self.column(width)

    def column(self, width: float = WIDTH) -> None:
        """Begin a column to the right of what is in the group."""
        self._current = _Column(self._row, width, len(self._groups) - 1)
        self._columns.append(self._current)

    def under(self, output: Output) -> None:
        """Go on in the column of the node that has this output."""
        self._current = self._column(output.node)

    def note(self, title: str, text: str) -> None:
        """A note in Markdown, as large as its text."""
        node = {"type": "MarkdownNote", "inputs": [], "outputs": [], "title": title, "properties": {}}
        self._put(node | {"widgets_values": [text], "color": "#432", "bgcolor": "#653"}, 0, 0, NARROW)

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
        slots, values, widgets, texts = [], [], 0, 0
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
                texts += bool(field.options.get("multiline"))
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
        more = TEXT * texts + PICTURES.get(kind, 0)
        size = 14 + 20 * rows + 24 * widgets + more
        shown = widgets - values.count("fixed")  # in nodes made of elements
        badge = 1.5 * BADGE if pack is self._own else 0
        size, room = FITTED.get(kind, (size, max(size, 15 + 20 * rows + 28.4 * shown + more + badge)))
        words = [max((len(slot["name"]) for slot in side), default=0) for side in (slots, outputs)]
        least = max(
            8 * sum(words) + 14,
            8 * len(title or info["display_name"] or kind) + (NAMED if pack is self._own else UNNAMED),
            NARROW if widgets else NARROWEST,
        )
        self._put(node | ({"title": title} if title else {}), size, room, math.ceil(least))
        made = tuple(Output(id, slot, output["type"]) for slot, output in enumerate(outputs))
        return made[0] if len(made) == 1 else made

    def move(self, output: Output) -> None:
        """Take the node of an output to the bottom of this column."""
        column, node = self._column(output.node), self._nodes[output.node - 1]
        place = column.nodes.index(node)
        del column.nodes[place]
        self._current.put(node, column.rooms.pop(place), NARROW)

    def saved(self) -> dict[str, Any]:
        """The workflow as the front end exports it, seen as a whole on a small screen.

        `fewstep_fit` has web/view.js show the whole on any screen, the first time that it is opened.
        """
        for node in self._nodes:
            for output in node["outputs"]:
                output["links"] = output["links"] or None
        reroutes, extensions = self._route(self._place())
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"fewstep/{self._name}")),
            "revision": 0,
            "last_node_id": len(self._nodes),
            "last_link_id": len(self._links),
            "nodes": self._nodes,
            "links": self._links,
            "groups": self._boxes(),
            "config": {},
            "extra": {
                "ds": self._view(),
                "reroutes": reroutes,
                "linkExtensions": extensions,
                "fewstep_fit": True,
            },
            "version": 0.4,
        }

    def _put(self, node: dict[str, Any], height: float, room: float, least: float) -> None:
        """A node as high as the classic design has it, in a column that has room for any, and is as wide at least."""
        number = len(self._nodes)
        place = {"id": number + 1, "pos": [0, 0], "size": [0, height], "flags": {}, "order": number, "mode": 0}
        self._nodes.append(place | node)
        self._current.put(self._nodes[-1], room, least)

    # Places

    def _place(self) -> float:
        """Gives nodes their places; where the first wire goes in the space below the first row.

        Both rows become so wide that what the front end shows of the whole, three quarters of the screen, leaves room
        for its own things at the top. The note takes what its text needs; then the others of the upper row, and the
        last picture of the lower one.
        """
        rows = [[column for column in self._columns if column.row == row] for row in range(self._row + 1)]
        lanes = len({self._way(link) for link in self._links if self._is_long(link)})
        between = PAD + 2 * BEND + LOWER + LANE * max(0, lanes - 1) + (HEADING if len(rows) > 1 else 0)
        widths = [sum(column.width for column in row) + GAP * (len(row) - 1) for row in rows]
        for wide in itertools.count(max(widths), 10):  # a wider note is less high
            for row, width in zip(rows[1:], widths[1:], strict=True):
                row[-1].width = row[-1].least + wide - width
            note, *others = rows[0]
            text, spare = note.nodes[0]["widgets_values"][0], wide - widths[0]
            free = max(column.height for column in others) - (note.height - note.rooms[0])
            more = next((w for w in range(0, int(spare), 10) if _note_height(text, note.least + w) <= free), spare)
            note.width, note.rooms[0] = note.least + more, _note_height(text, note.least + more)
            for column in others:
                column.width = column.least + (spare - more) / len(others)
            heights = [max(column.height for column in row) for row in rows]
            scale = (SCREEN[1] - 2 * MARGIN) / (sum(heights) + between + len(rows) * HEADING)
            if wide >= 0.75 * SCREEN[0] / scale - 20:  # which the front end adds
                break
        note.nodes[0]["size"][1] = note.rooms[0]
        tops = (0.0, heights[0] + between)[: len(rows)]
        for row, top, height in zip(rows, tops, heights, strict=True):
            left = 0.0
            for column in row:
                column.left, left = left, left + column.width + GAP
                if column.nodes[-1]["type"] in GROWING:
                    column.rooms[-1] += height - column.height
                    column.nodes[-1]["size"][1] = column.rooms[-1]
                y = top
                for node, room, apart in zip(column.nodes, column.rooms, [*column.apart, 0], strict=True):
                    node["pos"], node["size"][0] = [column.left, y], column.width
                    y += room + TITLE + apart
        return heights[0] - TITLE + PAD + BEND / 2  # nearer to what is above: below are the titles of groups

    def _view(self) -> dict[str, Any]:
        """Scale and offset as the front end's own command to show the whole sets them."""
        ends = [
            (min(node["pos"][k] for node in self._nodes), max(node["pos"][k] + node["size"][k] for node in self._nodes))
            for k in (0, 1)
        ]
        ends[1] = ends[1][0] - TITLE, ends[1][1]
        scale = min(0.75 * side / (high - low + 20) for side, (low, high) in zip(SCREEN, ends, strict=True))
        offset = [(side / scale - low - high) / 2 for side, (low, high) in zip(SCREEN, ends, strict=True)]
        return {"scale": round(scale, 3), "offset": [round(value) for value in offset]}

    def _boxes(self) -> list[dict[str, Any]]:
        """The groups; those of a row have the same height."""
        boxes = []
        for number, title in enumerate(self._groups):
            own = [column for column in self._columns if column.group == number]
            row = [column for column in self._columns if column.row == own[0].row]
            left, right = own[0].left - PAD, own[-1].right + PAD
            top = min(node["pos"][1] for column in row for node in column.nodes) - TITLE - HEADING
            height = HEADING + max(column.height for column in row) + PAD
            box = [left, top, right - left, height]
            boxes.append({"id": number + 1, "title": title, "bounding": box, "color": "#3f789e", "font_size": 24})
        return [box | {"flags": {}} for box in boxes]

    # Wires

    def _column(self, id: int) -> _Column:
        return next(column for column in self._columns if any(node["id"] == id for node in column.nodes))

    def _is_long(self, link: list[Any]) -> bool:
        """Whether a link goes through the space between the rows: neither to the next column nor to its own."""
        start, end = self._column(link[1]), self._column(link[3])
        row = [column for column in self._columns if column.row == start.row]
        return start.row != end.row or row.index(end) - row.index(start) not in (0, 1)

    def _route(self, top: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Reroutes: where a wire leaves the space beside its node, and where it enters that beside the other node.

        Wires of one output share the first. They are in such an order that few cross.
        """
        reroutes: list[dict[str, Any]] = []
        extensions: list[dict[str, Any]] = []

        def through(link: list[Any], *places: tuple[float, float]) -> None:
            parent = None
            for place in places:
                same = next((r for r in reroutes if r["pos"] == list(place) and r.get("parentId") == parent), None)
                if same is None:
                    same = {"id": len(reroutes) + 1, "pos": list(place), "linkIds": []}
                    reroutes.append(same | ({} if parent is None else {"parentId": parent}))
                    same = reroutes[-1]
                same["linkIds"].append(link[0])
                parent = same["id"]
            extensions.append({"id": link[0], "parentId": parent})

        long = [link for link in self._links if self._is_long(link)]
        ways = sorted({self._way(link) for link in long}, key=self._order)
        leaving: dict[tuple[_Column, bool], list[tuple[int, int, bool]]] = {}  # ways by column and direction
        entering: dict[tuple[_Column, bool], list[int]] = {}  # links
        for way in ways:
            leaving.setdefault((self._column(way[0]), way[2]), []).append(way)
        for link in sorted(long, key=lambda link: link[4]):
            entering.setdefault((self._column(link[3]), self._way(link)[2]), []).append(link[0])
        for link in self._links:
            start, end = self._column(link[1]), self._column(link[3])
            if link in long:
                way = self._way(link)
                y = top + LANE * ways.index(way)
                a = start.right + _share(way, leaving[start, way[2]], way[2])
                b = end.left - _share(link[0], entering[end, way[2]], way[2])
                beside = start.row < end.row and end.left - GAP < a < end.left
                places = [(a, y)] if beside else [(a, y), (b, y)]
                through(link, *self._near(link, *places))
            elif start is end:
                lower = max((self._nodes[id - 1] for id in (link[1], link[3])), key=lambda node: node["pos"][1])
                y = lower["pos"][1] - TITLE - LOWER - BEND / 2
                through(link, *self._near(link, (start.right + GAP / 3, y), (start.left - GAP / 3, y)))
        return reroutes, extensions

    def _near(self, link: list[Any], *places: tuple[float, float]) -> list[tuple[float, float]]:
        """These places, and one near each end of the wire that is far from them: long curves swing out wide."""
        found = list(places)
        for (id, slot), at, (x, y) in ((link[1:3], 0, places[0]), (link[3:5], len(places), places[-1])):
            end = self._nodes[id - 1]["pos"][1] + 20 * (slot + 0.7)
            if abs(y - end) > FAR:
                found.insert(at and len(found), (x, end + math.copysign(NEAR, y - end)))
        return found

    def _way(self, link: list[Any]) -> tuple[int, int, bool]:
        """What its wire has in common with others up to where they turn to the right, or to the left."""
        return link[1], link[2], self._column(link[3]).left < self._column(link[1]).right + GAP

    def _order(self, way: tuple[int, int, bool]) -> tuple[float, ...]:
        """Where it goes among others: those to the right above, of these the ones that begin last highest."""
        node, slot, leftward = way
        start = self._column(node)
        return start.row, leftward, start.left if leftward else -start.left, self._nodes[node - 1]["pos"][1], slot

    def _outputs(self, id: int) -> list[dict[str, Any]]:
        return self._nodes[id - 1]["outputs"]

    @staticmethod
    def _check(kind: str, field: Input, value: Any) -> None:
        """Choices that lie in the pack, not in files of the user's."""
        choices = field.options.get("options", [])
        if field.kind == "COMBO" and value not in choices and field.name not in FILES:
            raise ValueError(f"{kind}: {field.name} = {value!r} must be one of {', '.join(map(str, choices))}")


def _badge(node: dict[str, Any]) -> int:
    """The height of what the front end draws over a node of a pack."""
    return BADGE if node["type"].startswith("FewStep") else 0


def _linked(node: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a wire leads from one to the other."""
    given = {slot["link"] for slot in other["inputs"]} - {None}
    return any(given & {*(output["links"] or [])} for output in node["outputs"])


def _note_height(text: str, width: float) -> float:
    """Of the text of a note, as the front end draws it."""
    letters = (width - 40) / LETTER
    lines = [math.ceil(len(line) / letters) for line in text.splitlines() if line]
    return 46 + LINE * sum(lines) + 8 * len(lines)


def _share(one: Any, all: list[Any], leftward: bool) -> float:
    """How far from a column one of the wires beside it goes up or down.

    Those to or from the left swing out to the other column, and are nearer.
    """
    first, last = (0.35, 0.1) if leftward else (0.75, 0.5)
    return GAP * (first + (last - first) * all.index(one) / max(1, len(all) - 1))
