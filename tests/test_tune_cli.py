"""Calibration and training from the command line, in a folder of ComfyUI and without a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from host import COMFYUI, ROOT, environment
from safetensors.torch import load_file

from samplers.learned import Learned, load
from samplers.recipe import Recipe
from samplers.tuned import Tuning

LOADER = f"""
import sys

sys.path.insert(0, {str(ROOT / "tests")!r})
from small_models import conditioning, small_model


def model():
    return small_model("EPS"), lambda text: conditioning(len(text))
"""
SMALL = ["--width", "64", "--height", "64", "--cfg", "2", "--evaluations", "4", "--samples", "4"]
SMALL += ["--teacher-steps", "12", "--loader", "small_loader:model"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With the pack in custom_nodes, under a name with a dash, a loader and prompts."""
    path = tmp_path_factory.mktemp("tune")
    (path / "custom_nodes").mkdir()
    (path / "custom_nodes" / "few-step").symlink_to(ROOT, target_is_directory=True)
    (path / "small_loader.py").write_text(LOADER)
    (path / "prompts.txt").write_text("a\n\nbb\nccc\ndddd\n")
    return path


def start(folder: Path, *arguments: str, processes: int = 1) -> subprocess.Popen:
    python = [sys.executable, "-m"]
    if processes > 1:
        python += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    command = [*python, "custom_nodes.few-step.tune", *arguments]
    env = environment() | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=COMFYUI, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tune(folder: Path, command: str, out: str, *arguments: str, processes: int = 1) -> tuple[int, str, str]:
    common = ["--prompts", str(folder / "prompts.txt"), "--out", str(folder / out), *SMALL]
    process = start(folder, command, *common, *arguments, processes=processes)
    printed, complaints = process.communicate(timeout=120)
    return process.returncode, printed, complaints


def test_calibrate(folder):
    code, printed, complaints = tune(folder, "calibrate", "plan.safetensors", "--rounds", "1", "--base", "dpmpp_2m")
    assert code == 0, complaints
    plan = load(folder / "plan.safetensors")
    assert plan.about["prompts"] == 4 and plan.about["texts"] == ["a", "bb", "ccc", "dddd"]
    assert plan.about["error_after"] < plan.about["error_before"]
    assert " left" in printed and "saved as" in printed


def test_train_begins_with_a_plan(folder):
    """Whose base and numbers are kept; one of another number of evaluations is refused."""
    tunings = tuple(Tuning(slope=0.1 * (k > 0)) for k in range(4))
    Learned(Recipe("ipndm_v", (14.6, 4.0, 1.5, 0.5, 0.0), tunings=tunings)).save(folder / "start.safetensors")
    arguments = ("--start", str(folder / "start.safetensors"), "--iterations", "1")
    code, _, complaints = tune(folder, "train", "on.safetensors", *arguments)
    assert code == 0, complaints
    found = load(folder / "on.safetensors").recipe
    assert found.base == "ipndm_v" and [t.slope for t in found.tunings] == [t.slope for t in tunings]
    code, _, complaints = tune(folder, "train", "none.safetensors", *arguments, "--evaluations", "5")
    assert code == 1 and "error: start is a plan of 4 evaluations, and evaluations = 5" in complaints


def test_two_processes_learn_what_one_does(folder):
    arguments = ("--iterations", "3", "--batch", "5", "--base", "ipndm")
    for count in (1, 2):
        code, _, complaints = tune(folder, "train", f"by{count}.safetensors", *arguments, processes=count)
        assert code == 0, complaints
    one, two = (load_file(folder / f"by{count}.safetensors") for count in (1, 2))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5)


def test_ctrl_c_keeps_the_best(folder):
    common = ["--prompts", str(folder / "prompts.txt"), "--out", str(folder / "stopped.safetensors"), *SMALL]
    process = start(folder, "train", *common, "--iterations", "100000")
    assert process.stdout is not None
    while "before" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    os.kill(process.pid, signal.SIGINT)
    printed, complaints = process.communicate(timeout=60)
    assert process.returncode == 130, complaints
    assert "stopped; the best so far is" in printed
    assert load(folder / "stopped.safetensors").about["iterations"] < 100000


def test_a_plan_that_cannot_be_written_is_not_lost(folder):
    """Below a file there can be no folder: it goes to another one, and the last line says where."""
    (folder / "file").write_text("")
    arguments = ("--rounds", "1", "--base", "euler", "--base-directory", str(folder))
    code, _, complaints = tune(folder, "calibrate", "file/plan.safetensors", *arguments)
    assert code == 1 and "error: the plan could not be saved" in complaints
    (rescued,) = (folder / "models" / "fewstep").glob("rescued*")
    assert str(rescued) in complaints.splitlines()[-1] and load(rescued).text() in complaints


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--evaluations", "0"], "evaluations = 0"),
        (["--base", "nonsense"], "nonsense"),
        (["--cfg", "nan"], "cfg = nan"),
    ],
    ids=["evaluations", "base", "cfg"],
)
def test_errors_are_said_in_a_line(folder, arguments, named):
    code, _, complaints = tune(folder, "train", "none.safetensors", *arguments)
    assert code == 1 and f"error: {named}" in complaints.replace("base = '", "") and "Traceback" not in complaints
    assert not (folder / "none.safetensors").exists()
