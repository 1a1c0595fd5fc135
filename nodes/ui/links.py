"""What our nodes hand to each other that ComfyUI has no type for."""

from comfy_api.latest import io

PLAN = io.Custom("FEWSTEP_PLAN")
"""A `CalibratedPlan`."""

GUIDANCE = io.Custom("FEWSTEP_GUIDANCE")
"""A `Guidance`."""
