"""`samplers` is of use without ComfyUI."""

import ast
import subprocess
import sys

from host import ROOT

LAZY = {"tqdm", "scipy", "safetensors"}
"""Imported inside of functions only, by those who need them; they come with the host."""


def test_imports_torch_and_the_standard_library_alone():
    for path in (ROOT / "samplers").glob("*.py"):
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
sys.modules |= dict.fromkeys(["tqdm", "tqdm.auto", "scipy", "safetensors"])  # as if not installed
import torch
from samplers import SAMPLERS, SCHEDULES
sigmas = SCHEDULES["karras"].function(5, 0.03, 14.6)
out = SAMPLERS["dpmpp_2m"].function(lambda x, sigma: x * 0 + 1, torch.ones(1, 4, 8, 8) * sigmas[0], sigmas)
assert torch.equal(out, torch.ones_like(out)) and not [m for m in sys.modules if m.startswith("comfy")]
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
