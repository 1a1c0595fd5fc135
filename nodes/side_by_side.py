"""The node that lays two pictures one over the other."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from .host.display import preview_image
from .ui.menu import COMPARING as CATEGORY
from .ui.menu import search_words


class FewStepSideBySide(io.ComfyNode):
    """Two pictures with a line between them that follows the pointer (web/slider.js). New hosts have such a node, too,
    which shows its pictures in Vue nodes only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepSideBySide",
            display_name="Few-Step Side by Side",
            category=CATEGORY,
            description="Shows two pictures in one place, with a line between them that follows the pointer: left of "
            "it is image_a, right of it image_b. If batches are connected, pictures with the same number are shown "
            "together.",
            inputs=[
                io.Image.Input("image_a", tooltip="The picture on the left."),
                io.Image.Input("image_b", tooltip="The picture on the right."),
            ],
            outputs=[],
            is_output_node=True,
            **search_words("compare images", "slider", "before and after", "a/b"),
        )

    @classmethod
    def execute(cls, image_a: Tensor, image_b: Tensor) -> io.NodeOutput:
        saved = {"a_images": preview_image(image_a), "b_images": preview_image(image_b)}
        return io.NodeOutput(ui={name: one.as_dict()["images"] for name, one in saved.items() if one is not None})


NODES = [FewStepSideBySide]
