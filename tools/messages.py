"""Every message that the pack can show to a user, as an English template, read from the source.

A template is the text with {placeholders} for what is known at run time: `{1} = {2} must be at least 1`. It is one
line, since texts are translated line by line. There are three kinds:

* Python: strings of several words, the reasons in nodes/picks.json, and the notes in nodes/models.json. Their
  placeholders are numbered. Left out are docstrings, what is logged, and what the nodes themselves say (tooltips and
  such, which are in nodeDefs.json).
* The browser: `t("...", {...})`, and `counted("1 ...", "{n} ...", n)`.
* Workflows: notes, titles of nodes and of groups.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterator

from host import ROOT

SPEAKING = ("samplers", "nodes", "demo/nodes.py", "demo/model.py")
"""What runs in the host, of which these only write to its log, or are for who uses the library without it."""
SILENT = (
    "nodes/__init__.py", "nodes/needs.py", "nodes/registration.py", "samplers/denoisers.py", "samplers/processes.py",
    "samplers/calibrated/published.py",
)  # fmt: skip

WORDS = (
    "sampler", "schedule", "published", "predicted", "calibrated", "or", "option {1}", "{1} s",  # in messages
    "Inverting", "auto", "half", "all", "none", "multistep", "singlestep", "adaptive",  # sent alone
)  # fmt: skip
"""Single words that stand for a value of a message, or that Python sends to the browser alone."""

NAMES = (
    "exact seed", "more variety", "each step", "last sample", "noise prediction", "rectified flow", "published plan",
    "built-in: amed_dpm_2m (SD1.5, 10 evaluations)", "Stable Diffusion", "Few-Step demo", "float | torch.Tensor",
    "own number", "Wan 2.2 text to video: 0.875", "Wan 2.2 image to video: 0.9",  # of a list
    "noise schedule", "k sampler", "sampler with options", "dpm++ 2m karras",  # search words
)  # fmt: skip
"""What is the same in every language: values of widgets, and names."""

NODE_TEXTS = {"tooltip", "description", "help", "display_name", "category", "label", "paper", "options", "default"}
"""Arguments with texts of a node, and values of widgets."""
NOT_SHOWN = re.compile(
    r"logging\.\w+|(re\.\w+|re)|rearrange|repeat|einsum|reduce|sampler|schedule|search_words|Option|Panel|training_plot|telling"
    r"|common_inputs|_further_inputs|cfg_input|seed_input"
)
"""Functions whose arguments are not shown as text: logged, patterns, nodes, or drawn into a picture."""

_HOLE = "\0"


def messages() -> list[str]:
    """All of them."""
    files = {path for name in SPEAKING for path in (ROOT / name).rglob("*.py")}
    files |= {ROOT / name for name in SPEAKING if name.endswith(".py")}
    silent = {ROOT / name for name in SILENT}
    found = {text for path in files - silent for text in of_python(path.read_text(encoding="utf-8"))}
    found |= {text for path in (ROOT / "web").glob("*.js") for text in of_javascript(path.read_text(encoding="utf-8"))}
    for path in (ROOT / "workflows").glob("*.json"):
        found |= of_workflow(json.loads(path.read_text(encoding="utf-8")))
    picks = json.loads((ROOT / "nodes" / "picks.json").read_text(encoding="utf-8"))
    reasons = {row["why"] for kind in picks.values() for rows in kind.values() for row in rows}
    found |= {_numbered(re.sub(r"\d+(\.\d+)?", _HOLE, reason)) for reason in reasons}
    families = json.loads((ROOT / "nodes" / "models.json").read_text(encoding="utf-8"))["families"]
    found |= {family["note"] for family in families if "note" in family}
    models = {settings["model"] for family in families for settings in family.get("also", ())}
    found |= {model for model in models if ", " in model}  # the others are names
    return sorted((found | set(WORDS)) - set(NAMES))


# Workflows and the browser


def of_workflow(workflow: dict) -> set[str]:
    """The lines of its notes, and the titles of groups and nodes without their numbers."""
    nodes = [*workflow["nodes"]]
    for inner in workflow.get("definitions", {}).get("subgraphs", ()):
        nodes += inner["nodes"]
    notes = [text for node in nodes if "Note" in node["type"] for text in node.get("widgets_values", ())]
    titles = [part["title"] for part in [*nodes, *workflow.get("groups", ())] if part.get("title")]
    titles = [re.sub(r"^\d+\. ", "", title) for title in titles]
    return {line.strip() for text in [*notes, *titles] for line in text.split("\n") if _is_said(line)}


def of_javascript(source: str) -> set[str]:
    """The first argument of `t`, and the first two of `counted`."""
    text = r'("(?:[^"\\]|\\.)*")'
    found = re.findall(rf"\bt\(\s*{text}", source)
    found += [one for both in re.findall(rf"\bcounted\(\s*{text}\s*,\s*{text}", source) for one in both]
    return set(map(json.loads, found))


# Python


def of_python(source: str) -> set[str]:
    """The messages of a module."""
    found: set[str] = set()
    _collect(ast.parse(source), found)
    return found


def _collect(node: ast.AST, found: set[str]) -> None:
    texts = _texts(node)
    if texts is not None:
        lines = (line.strip() for text in texts for line in text.split("\n"))
        found.update(_numbered(line) for line in lines if " " in line and _is_said(line))
    for child in _spoken(node):
        _collect(child, found)


def _spoken(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node that may hold further messages."""
    if isinstance(node, ast.Call) and NOT_SHOWN.fullmatch(ast.unparse(node.func)):
        return
    skipped: list[ast.AST | None] = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    skipped += getattr(node, "decorator_list", [])
    if isinstance(node, ast.Call):
        skipped += [argument for argument in node.keywords if argument.arg in NODE_TEXTS]
    if _texts(node) is not None:  # its own parts are in it
        values = [part for part in ast.walk(node) if isinstance(part, ast.FormattedValue) and not _choices(part.value)]
        yield from (part.value for part in values)
        return
    if (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated") or _assigns(node, "SYNTAX"):
        return
    body = getattr(node, "body", [])
    skipped += [part for part in body if _is_docstring(part)] if isinstance(body, list) else []
    yield from (child for child in ast.iter_child_nodes(node) if child not in skipped)


def _assigns(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name


def _is_docstring(part: ast.AST) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)


def _texts(node: ast.AST) -> list[str] | None:
    """The texts that an expression can give, with a hole for each value; None for what is no text."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = [_choices(part.value) or [_HOLE] if isinstance(part, ast.FormattedValue) else [part.value]
                 for part in node.values]  # fmt: skip
        return ["".join(chosen) for chosen in itertools.product(*parts)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [_texts(side) or _choices(side) for side in (node.left, node.right)]
        if any(side is not None for side in sides):
            return ["".join(chosen) for chosen in itertools.product(*(side or [_HOLE] for side in sides))]
    return _choices(node) if isinstance(node, ast.Call) else None


def _choices(node: ast.AST) -> list[str] | None:
    """The texts of `a if condition else b`, of `"s" * condition`, and of `counted(n, one, many)`."""
    if isinstance(node, ast.IfExp):
        sides = [_texts(side) or _choices(side) for side in (node.body, node.orelse)]
        return None if None in sides else [text for side in sides for text in side or ()]
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "counted":
        one, many = (*map(ast.literal_eval, node.args[1:]), None)[:2]
        return [f"{_HOLE} {one}", f"{_HOLE} {many or one + 's'}"]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.left, ast.Constant):
        return ["", node.left.value] if isinstance(node.left.value, str) else None
    return None


def _numbered(line: str) -> str:
    count = itertools.count(1)
    return re.sub(_HOLE, lambda _: f"{{{next(count)}}}", line)


def _is_said(line: str) -> bool:
    """Whether there is a word in it, beside what is code."""
    return re.search(r"[A-Za-z]{2}", re.sub(r"`.*?`", "", line)) is not None
