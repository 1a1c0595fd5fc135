"""What the graph of a run says about the inputs of a node: the words of a prompt, the name of a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from comfy_execution.utils import get_executing_context

Graph = Mapping[str, Any]
"""Of the host's API: by the id of a node {"class_type", "inputs": {name: a value or [id, output]}}."""

_WORDS = ("text", "prompt", "clip_g", "text_g", "clip_l", "text_l", "t5xxl", "llama", "string", "value")
"""Inputs that hold the words of a prompt, in the nodes of the host and of many packs."""

_FILES = (".safetensors", ".sft", ".ckpt", ".gguf", ".pt", ".pth", ".bin")
_FARTHEST = 200  # nodes that are looked at


def run_about(graph: Graph | None) -> dict[str, str]:
    """The model, the prompt and the negative prompt of the node that is running, as far as the graph tells."""
    context = get_executing_context()
    node = (graph or {}).get(str(context.node_id)) if context is not None else None
    return {} if graph is None or node is None else about(graph, node)


def about(graph: Graph, node: Mapping[str, Any]) -> dict[str, str]:
    """As `run_about`, of a node with inputs `model`, `positive` and `negative`."""
    found = {
        "model": model_name(graph, node),
        "prompt": prompt_text(graph, node, "positive"),
        "negative prompt": prompt_text(graph, node, "negative"),
    }
    return {name: text for name, text in found.items() if text}


def model_name(graph: Graph, node: Mapping[str, Any]) -> str:
    """The files that a model is made of, that of the loader first; without any the name of the node that gives it."""
    files: list[str] = []
    kind = ""
    for found in _along(graph, node, "model"):
        own = [value for value in found["inputs"].values() if isinstance(value, str) and value.lower().endswith(_FILES)]
        files += [PurePath(value.replace("\\", "/")).stem for value in own[:1]]
        kind = found.get("class_type", "")
    kind = getattr(sys.modules.get("nodes"), "NODE_DISPLAY_NAME_MAPPINGS", {}).get(kind, kind)
    return " + ".join(reversed(files)) or kind


def prompt_text(graph: Graph, node: Mapping[str, Any], input: str) -> str:
    """The words that a conditioning was made from; where several are put together, those of all."""
    texts: list[str] = []
    seen: set[str] = set()
    waiting = [node["inputs"].get(input)]
    while waiting and len(seen) < _FARTHEST:
        link = waiting.pop(0)
        found = _origin(graph, link)
        if found is None or (key := str(link)) in seen:
            continue
        seen.add(key)
        words = _words(graph, found, input)
        if words is not None:
            texts += [words] if words and words not in texts else []
            continue
        inputs = found["inputs"]
        waiting += (
            [inputs[input]] if input in inputs else [value for value in inputs.values() if isinstance(value, list)]
        )
    return " + ".join(texts)


def _words(graph: Graph, node: Mapping[str, Any], input: str) -> str | None:
    """What is written in a node; None if it has no place for words."""
    inputs = node["inputs"]
    for name in (input, f"{input}_prompt", *_WORDS):
        value = inputs.get(name)
        if isinstance(value, list) and name in _WORDS:  # another node gives the text
            value = next(
                (
                    word
                    for word in (_origin(graph, value) or {"inputs": {}})["inputs"].values()
                    if isinstance(word, str)
                ),
                None,
            )
        if isinstance(value, str):
            return " ".join(value.split())
    return None


def _along(graph: Graph, node: Mapping[str, Any], input: str) -> Iterator[Mapping[str, Any]]:
    """The nodes that an input comes through."""
    at: Mapping[str, Any] | None = node
    for _ in range(_FARTHEST):
        at = _origin(graph, at["inputs"].get(input)) if at is not None else None
        if at is None:
            return
        yield at


def _origin(graph: Graph, link: Any) -> Mapping[str, Any] | None:
    node = graph.get(str(link[0])) if isinstance(link, list) and link else None
    return node if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping) else None
