"""ComfyUI nodes: thin wrappers around `samplers`."""

from comfy_api.latest import ComfyExtension, io

from .registration import register
from .sampling import FewStepSampler, FewStepScheduler

__all__ = ["comfy_entrypoint", "register"]


class FewStep(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [FewStepSampler, FewStepScheduler]


async def comfy_entrypoint() -> FewStep:
    return FewStep()
