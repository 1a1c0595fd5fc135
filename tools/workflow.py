"""Workflows as the front end saves them, turned into prompts as the host runs them.

The front end does the same when a workflow is queued: a node's widget values, kept by position, are given the
names that the host's `/object_info` lists, and links replace the inputs they feed.
"""

from __future__ import annotations

from typing import Any

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
FRONT_END_ONLY = {"Note", "MarkdownNote"}
NEVER, BYPASS = 2, 4  # modes of a node that is switched off


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
        inputs = _widget_values(node, object_info[kind])
        inputs |= {slot["name"]: sources[slot["link"]] for slot in node.get("inputs", []) if slot.get("link")}
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    values = list(node.get("widgets_values", []))
    named = {}
    for name, kind, options in _inputs(info):
        if not (isinstance(kind, list) or kind in WIDGETS) or options.get("forceInput"):
            continue
        if not values:
            raise ValueError(f"node {node['id']} ({node['type']}): no value for {name}")
        named[name] = values.pop(0)
        if options.get("control_after_generate") or name in ("seed", "noise_seed"):
            values.pop(0)  # fixed, increment, decrement or randomize: the front end's own widget
    if values:
        raise ValueError(f"node {node['id']} ({node['type']}): {len(values)} values too many")
    return named


def _inputs(info: dict[str, Any]):
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, *options = info["input"][group][name]
            yield name, kind, options[0] if options else {}
