"""The ComfyUI entry point of Few-Step."""

from .nodes import comfy_entrypoint, register

register()

__all__ = ["comfy_entrypoint"]
