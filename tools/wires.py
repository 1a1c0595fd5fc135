"""Where the front end draws the wires of a workflow: splines through reroutes, as LiteGraph makes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

Point = tuple[float, float]

SLOT, INSIDE = 20.0, 10.0  # height of a slot; how far inside a node its dot lies
SWING = 80.0  # how far the control point of a reroute is away from it, at most
TITLE = 30.0


def wires(workflow: dict[str, Any], points: int = 24) -> Iterator[tuple[list[Any], list[Point]]]:
    """Each link of a saved workflow, and points along its wire."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    reroutes = {reroute["id"]: reroute for reroute in workflow["extra"].get("reroutes", [])}
    last = {each["id"]: each["parentId"] for each in workflow["extra"].get("linkExtensions", [])}
    ways = {}
    for link in workflow["links"]:
        _, source, slot, target, place, _ = link
        (x, y), (width, _) = nodes[source]["pos"], nodes[source]["size"]
        way = [(link[4], (nodes[target]["pos"][0] + INSIDE, nodes[target]["pos"][1] + SLOT * (place + 0.7)))]
        reroute = reroutes.get(last.get(link[0]))
        while reroute:
            way.append((reroute["id"], tuple(reroute["pos"])))
            reroute = reroutes.get(reroute.get("parentId"))
        way.append((None, (x + width - INSIDE + 1, y + SLOT * (slot + 0.7))))
        ways[link[0]] = [point for _, point in reversed(way)], [id for id, _ in reversed(way)][1:-1]
    following: dict[int, list[Point]] = {}
    for places, ids in ways.values():
        for id, after in zip(ids, places[2:], strict=True):
            following.setdefault(id, []).append(after)
    for link in workflow["links"]:
        places, ids = ways[link[0]]
        yield link, [*_spline(places, [following[id] for id in ids], points)]


def _spline(places: list[Point], following: list[list[Point]], points: int) -> Iterator[Point]:
    leaving: Point | None = None  # from the last reroute to the control point after it
    for number, (a, b) in enumerate(itertools.pairwise(places)):
        far = math.dist(a, b) / 4
        start = (a[0] + far, a[1]) if leaving is None else (a[0] + leaving[0], a[1] + leaving[1])
        if number < len(following):
            cos, sin = _direction(a, b, following[number])
            near = min(SWING, far)
            end = b[0] - near * cos, b[1] - near * sin
            near = min(SWING, math.dist(b, places[number + 2]) / 4)
            leaving = near * cos, near * sin
        else:
            end = b[0] - far, b[1]
        for k in range(points + 1):
            t = k / points
            weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
            yield tuple(sum(w * p[i] for w, p in zip(weights, (a, start, end, b), strict=True)) for i in (0, 1))


def _direction(before: Point, place: Point, following: list[Point]) -> Point:
    """Of a wire at a reroute: half-way between where it comes from and, on average, goes to."""
    to = sum(math.atan2(y - place[1], x - place[0]) for x, y in following) / len(following)
    came = math.atan2(place[1] - before[1], place[0] - before[0])
    turn = (came - to) / 2
    turn += math.pi if abs(turn) > math.pi / 2 else 0
    return math.cos(came - turn), math.sin(came - turn)


def hidden(workflow: dict[str, Any], boxes: dict[int, tuple[float, float, float, float]]) -> list[str]:
    """The wires that pass behind a node, given the box of each node: left, top, width and height, with its title."""
    found = []
    for link, way in wires(workflow):
        for id, (left, top, width, height) in boxes.items():
            edge = 1.5 * INSIDE if id in (link[1], link[3]) else 0.0  # where it begins and ends it is inside
            if any(left + edge < x < left + width - edge and top < y < top + height for x, y in way):
                found.append(f"the wire from node {link[1]} to node {link[3]} ({link[5]}) behind node {id}")
    return found
