"""The k-diffusion package itself, beside the copy of it that ComfyUI has."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

import pytest
from host import GIVEN

INSTALLED = importlib.machinery.PathFinder.find_spec("k_diffusion") is not None
"""By `make setup`, from tests/webui/requirements.txt. The Python of a given ComfyUI may lack it."""


def k_diffusion(module: str = "external") -> ModuleType:
    """A module of the package. Its own `__init__` is left out: it imports what is not installed here."""
    if "k_diffusion" not in sys.modules:
        if GIVEN and not INSTALLED:
            pytest.skip("the Python of the given ComfyUI has no k-diffusion (tests/webui/requirements.txt)")
        found = importlib.machinery.PathFinder.find_spec("k_diffusion")
        package = importlib.machinery.ModuleSpec("k_diffusion", None, is_package=True)
        package.submodule_search_locations = found.submodule_search_locations
        sys.modules["k_diffusion"] = importlib.util.module_from_spec(package)
    functional = "torchvision.transforms.functional"  # for images on disk
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torchvision", "torchvision.transforms", functional):
            patch.setitem(sys.modules, name, sys.modules.get(name, ModuleType(name)))
        patch.setattr(sys.modules["torchvision.transforms"], "functional", sys.modules[functional], raising=False)
        return importlib.import_module(f"k_diffusion.{module}")
