"""Demo nodes: a small text-to-emoji model, sampled by the host as any other. Not part of the pack."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
