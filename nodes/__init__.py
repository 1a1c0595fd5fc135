"""ComfyUI nodes: thin wrappers around `samplers`."""

from comfy_api.latest import ComfyExtension, io

from ..demo.nodes import Demo
from .auto import FewStepAuto
from .compare import FewStepCompare
from .guidance import FewStepGuidance, FewStepGuidancePatch, FewStepGuider
from .inversion import FewStepDiffEditMask, FewStepInvert
from .plans import FewStepInspectPlan, FewStepLoadPlan, FewStepPlanSampler, FewStepSavePlan
from .registration import register
from .sampling import FewStepSampler, FewStepScheduler
from .trajectory import FewStepFilmStrip, FewStepTrajectory
from .tuning import FewStepCalibrate, FewStepTrainAMED

__all__ = ["comfy_entrypoint", "register"]


class FewStep(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            FewStepSampler,
            FewStepScheduler,
            FewStepGuidance,
            FewStepGuider,
            FewStepGuidancePatch,
            FewStepLoadPlan,
            FewStepSavePlan,
            FewStepPlanSampler,
            FewStepInspectPlan,
            FewStepInvert,
            FewStepDiffEditMask,
            FewStepAuto,
            FewStepCompare,
            FewStepFilmStrip,
            FewStepTrajectory,
            FewStepCalibrate,
            FewStepTrainAMED,
            *await Demo().get_node_list(),
        ]


async def comfy_entrypoint() -> FewStep:
    return FewStep()
