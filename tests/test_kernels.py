"""The tests that compare what networks give, once more on the plainest kernels of PyTorch and oneDNN.

Every make of processor has kernels of its own, which add up in another order. So what is green on these and on those of
this machine does not hang on how one of them rounds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from host import ROOT, environment

PLAIN = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="kernels are chosen already")
@pytest.mark.slow
def test_networks_on_the_plainest_kernels(tmp_path: Path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "network"]
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.network" in path.read_text()]
    command += ["--basetemp", str(tmp_path / "plain"), *map(str, files)]
    done = subprocess.run(command, env=environment() | PLAIN, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]


@pytest.mark.network
def test_kernels_are_those_that_were_asked_for():
    if os.environ.get("ATEN_CPU_CAPABILITY") == "default":
        assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
