"""`samplers` is of use without ComfyUI."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from host import ROOT

LAZY = {"tqdm", "scipy", "safetensors", "einops"}
"""Imported inside of functions only, by those who need them; they come with the host."""


def test_imports_torch_and_the_standard_library_alone():
    for path in (ROOT / "samplers").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for module in modules:
                top = module.split(".")[0]
                lazy = LAZY if node not in tree.body else set()
                assert top in {"torch", *lazy, *sys.stdlib_module_names}, f"{path.name} imports {module}"


def test_runs_in_a_process_without_comfyui_and_what_comes_with_it():
    script = """
import sys
sys.modules |= dict.fromkeys(["tqdm", "tqdm.auto", "scipy", "safetensors", "einops"])  # as if not installed
import torch
from samplers import SAMPLERS, SCHEDULES
sigmas = SCHEDULES["karras"].function(5, 0.03, 14.6)
out = SAMPLERS["dpmpp_2m"].function(lambda x, sigma: x * 0 + 1, torch.ones(1, 4, 8, 8) * sigmas[0], sigmas)
assert torch.equal(out, torch.ones_like(out)) and not [m for m in sys.modules if m.startswith("comfy")]
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def interpreter(version: str) -> str | None:
    """A Python of a version, on the path or among those of pyenv, if one runs here."""
    places = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for place in filter(None, places):
        if subprocess.run([place, "-c", ""], capture_output=True).returncode == 0:
            return str(place)
    return None


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_compiles_on_other_versions_of_python(version):
    """Without a warning, and with every module of the standard library that is imported; .ci/run checks the types."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    script = """
import ast, importlib, pathlib, sys, warnings
warnings.simplefilter("error")
for path in pathlib.Path("samplers").rglob("*.py"):
    tree = ast.parse(path.read_text(), path)
    compile(tree, path, "exec")
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            if name.split(".")[0] in sys.stdlib_module_names or name.split(".")[0] not in %r:
                importlib.import_module(name)
""" % {"torch", *LAZY}
    subprocess.run([python, "-c", script], cwd=ROOT, check=True)
