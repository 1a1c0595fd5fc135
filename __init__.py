"""The ComfyUI entry point of Few-Step."""

import sys

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

WEB_DIRECTORY = "./web"

if "comfy" in sys.modules:  # else `tune` is run, which has to set the host up before it is imported
    from .nodes import comfy_entrypoint, register

    register()
