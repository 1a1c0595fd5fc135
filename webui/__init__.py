"""The extension for AUTOMATIC1111, Forge and reForge: thin wrappers around `samplers`."""

from .options import FewStepScript
from .registration import register

__all__ = ["FewStepScript", "register"]
