"""What a node shows while it works: its progress with a preview, a line of text, pictures."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import comfy.utils
import latent_preview
from comfy_api.latest import ui
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor


class Display:
    """The node's progress bar, the preview of a latent, and a line of text below.

    Args:
        patcher: the model that is sampled, whose latents can be shown; without one there are no previews.
    """

    def __init__(self, patcher: Any = None) -> None:
        self._bar = comfy.utils.ProgressBar(1)
        self._at = 0.0, 1.0
        self._previewer = None
        if patcher is not None:
            self._previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)

    def show(self, value: float, total: float, text: str = "", denoised: Tensor | None = None) -> None:
        """How much is done, in words of the node's own, and what the model sees now."""
        preview = None
        if self._previewer is not None and denoised is not None:
            preview = self._previewer.decode_latent_to_preview_image("JPEG", denoised)
        self._at = value, total
        self._bar.update_absolute(value, total, preview)
        if text:
            _write(work=text)

    def picture(self, image: Image.Image) -> None:
        """A picture in the place of the preview, until there is another."""
        self._bar.update_absolute(*self._at, ("JPEG", image, None))


def say(text: str) -> None:
    """Text on the node that is running, which stays there, with all else that the node says in this run."""
    _write(said=text)


def warn(warnings: Sequence[str], *, logged: bool = False) -> None:
    """In the log, unless they are `logged` by others, and on the node that is running."""
    for warning in () if logged else warnings:
        logging.warning(warning)
    if warnings:
        say("\n".join(f"Warning: {warning}." for warning in warnings))


class _Texts:
    """What the nodes of a prompt show: how far the work of each is, and below it what each has said, each text once."""

    def __init__(self, prompt: str):
        self.prompt = prompt
        self._work: dict[str, str] = {}
        self._said: dict[str, list[str]] = {}

    def written(self, node: str, work: str, said: str) -> str:
        """The whole text of a node, with a text that is new: that of its work takes the place of the one before."""
        self._work[node] = work or self._work.get(node, "")
        lines = self._said.setdefault(node, [])
        if said and said not in lines:
            lines.append(said)
        return "\n".join(filter(None, (self._work[node], *lines)))


_texts = _Texts("")


def _write(work: str = "", said: str = "") -> None:
    """Show a text on the node that is running: the front end shows the last message alone, so it holds the others."""
    global _texts
    host, context = server(), get_executing_context()
    if host is None or context is None:
        return
    if _texts.prompt != context.prompt_id:
        _texts = _Texts(context.prompt_id)
    host.send_progress_text(_texts.written(context.node_id, work, said), context.node_id)


def show(output: Mapping[str, Any]) -> None:
    """What a node shows when it is done (`ui.PreviewImage(...).as_dict()`), although it will not be."""
    host, context = server(), get_executing_context()
    if host is not None and context is not None:
        about = {"node": context.node_id, "display_node": context.node_id, "prompt_id": context.prompt_id}
        host.send_sync("executed", {**about, "output": output}, host.client_id)


def tell(event: str, content: Mapping[str, Any]) -> None:
    """A message for all front ends, whatever runs."""
    if (host := server()) is not None:
        host.send_sync(event, dict(content))


@contextlib.contextmanager
def telling(fault: str) -> Iterator[None]:
    """An error in what only shows is a line in the log: the work itself must not be lost by it."""
    try:
        yield
    except Exception as error:
        logging.warning("%s: %s", fault, error)


def preview_image(images: Tensor) -> ui.PreviewImage | None:
    """The images to be shown on a node; None, and a line in the log, where the host cannot write them."""
    with telling("the images cannot be shown on the node"):
        return ui.PreviewImage(images)
    return None


def server() -> Any:
    """The host's server, where there is one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
