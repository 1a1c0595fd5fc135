"""Calibration and training from the command line, in a folder of ComfyUI and without a server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from host import COMFYUI, ROOT, environment
from safetensors import safe_open
from safetensors.torch import load_file

from samplers import SCHEDULES, read_levels
from samplers.calibrated.plan import CalibratedPlan, load
from samplers.calibrated.predictor import Predictor
from samplers.calibrated.recipe import Recipe
from samplers.calibrated.tuning import Tuning

pytestmark = pytest.mark.slow

LOADER = f"""
import sys

sys.path.insert(0, {str(ROOT / "tests")!r})
from small_models import conditioning, small_model


def model():
    return small_model("EPS"), lambda text: conditioning(len(text))


def stopped():
    '''Ctrl-C comes in the 100th evaluation, in the middle of an `exec`.'''
    patcher, encode = model()
    evaluations = 0

    def evaluate(network, given):
        nonlocal evaluations
        evaluations += 1
        if evaluations == 100:
            exec("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
        return network(given["input"], given["timestep"], **given["c"])

    patcher.set_model_unet_function_wrapper(evaluate)
    return patcher, encode
"""
MANY = """
import importlib, json, sys

main = importlib.import_module("custom_nodes.few-step.tune").main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    for stream in (sys.stdout, sys.stderr):
        print("exit code", code, file=stream, flush=True)
"""
SMALL = ["--width", "64", "--height", "64", "--cfg", "2", "--evaluations", "4", "--samples", "4"]
SMALL += ["--teacher-steps", "12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With the pack in custom_nodes, under a name with a dash, a loader and prompts."""
    path = tmp_path_factory.mktemp("tune")
    (path / "custom_nodes").mkdir()
    (path / "custom_nodes" / "few-step").symlink_to(ROOT, target_is_directory=True)
    (path / "small_loader.py").write_text(LOADER)
    (path / "prompts.txt").write_text("a\n\nbb\nccc\ndddd\n")
    return path


def run(folder: Path, *command: str) -> tuple[int, str, str]:
    environ = environment() | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=COMFYUI, env=environ, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def arguments_of(folder: Path, command: str, out: str, *arguments: str, loader: str = "model") -> list[str]:
    places = [
        "--prompts",
        str(folder / "prompts.txt"),
        "--out",
        str(folder / out),
        "--loader",
        f"small_loader:{loader}",
    ]
    return [command, *places, *SMALL, *arguments]


def tune(folder: Path, *arguments: str, processes: int = 1, **options: str) -> tuple[int, str, str]:
    shared = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    return run(folder, "-m", *shared, "custom_nodes.few-step.tune", *arguments_of(folder, *arguments, **options))


START = CalibratedPlan(
    Recipe("ipndm_v", (14.6, 4.0, 1.5, 0.5, 0.0), tunings=tuple(Tuning(slope=0.1 * (k > 0)) for k in range(4)))
)
SHARED = ("--iterations", "2", "--batch", "5", "--base", "ipndm")
"""Of what one process does, and two."""
DISTILL = ("--evaluations", "2", "--rank", "4", "--iterations", "3", "--batch", "4", "--learning-rate", "0.002")


@pytest.fixture(scope="module")
def done(folder) -> dict[str, SimpleNamespace]:
    """What commands did, by the file that each is to write: all in one process, which takes seconds to start."""
    START.save(folder / "start.safetensors")
    (folder / "file").write_text("")
    start = ("--start", str(folder / "start.safetensors"))
    commands = [
        ("calibrate", "plan.safetensors", "--rounds", "1", "--base", "dpmpp_2m"),
        ("calibrate", "file/plan.safetensors", "--rounds", "1", "--base", "euler"),  # below a file is no folder
        ("train", "on.safetensors", *start, "--iterations", "1", "--out", "by_name"),
        ("train", "by1.safetensors", *SHARED),
        ("distill", "student1.safetensors", *DISTILL),
        (
            "distill",
            "on_student",
            *DISTILL,
            "--start",
            str(folder / "student1.safetensors"),
            "--out",
            "mine",
        ),
        ("distill", "rank", *DISTILL, "--rank", "0"),
        ("distill", "teacher", *DISTILL, "--teacher", str(folder / "prompts.txt")),
        ("train", "evaluations", "--evaluations", "0"),
        ("train", "base", "--base", "nonsense"),
        ("train", "cfg", "--cfg", "nan"),
        ("train", "out", "--out", "con"),
        ("train", "start", *start, "--evaluations", "5"),
    ]
    base = ("--base-directory", str(folder))
    code, *streams = run(folder, "-c", MANY, json.dumps([arguments_of(folder, *each, *base) for each in commands]))
    assert code == 0, streams
    printed, complaints = (re.split(r"^exit code (\d+)\n", stream, flags=re.MULTILINE) for stream in streams)
    assert len(printed) == len(complaints) == 2 * len(commands) + 1
    return {
        name: SimpleNamespace(code=int(printed[2 * k + 1]), printed=printed[2 * k], complaints=complaints[2 * k])
        for k, (_, name, *_) in enumerate(commands)
    }


def test_calibrate(folder, done):
    found = done["plan.safetensors"]
    assert found.code == 0, found.complaints
    plan = load(folder / "plan.safetensors")
    assert plan.about.prompts == 4 and plan.about.texts == ("a", "bb", "ccc", "dddd")
    assert plan.about.error_after < plan.about.error_before
    lines = found.printed.splitlines()
    assert lines[0] == "Reference images 0/8" and re.fullmatch(
        r"Reference images 0/8, about \d+ s left, about \d+ runs of 4 images: \d+ s at this model's speed", lines[1]
    )
    assert any(re.match(r"Plain samplers \d+/\d+, about \d+ s left", line) for line in lines)
    assert any(re.match(r"Fitting, round 1 of 1, about \d+ s left, error 0\.\d+", line) for line in lines)
    assert lines[-5].startswith("saved as") and re.match(r"error [\d.]+ -> [\d.]+ \(\d+ % less\)", lines[-3])


def test_train_begins_with_a_plan(folder, done):
    """Whose base and numbers are kept. What --out names without a path goes to models/fewstep."""
    assert done["on.safetensors"].code == 0, done["on.safetensors"].complaints
    found = load(folder / "models" / "fewstep" / "by_name_00001_.safetensors").recipe
    assert found.base == "ipndm_v" and [t.slope for t in found.tunings] == [t.slope for t in START.recipe.tunings]


def test_two_processes_learn_what_one_does(folder, done):
    """They lead the weights to the same place, compared with the way that these have gone.

    Not weight by weight: gradients that are added up in another order differ by rounding, and Adam divides each by its
    own size, so that a weight with a gradient near 0 may go by the learning rate either way. These are few, and the
    loss hardly depends on them. Two processes that did not share would be as far apart as they have gone.
    """
    assert done["by1.safetensors"].code == 0, done["by1.safetensors"].complaints
    code, _, complaints = tune(folder, "train", "by2.safetensors", *SHARED, processes=2)
    assert code == 0, complaints
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        levels = read_levels(SCHEDULES["karras"].function(4, 0.0292, 14.6146))
        untrained = Predictor.giving(levels, [Tuning()] * 4, 0.01, 0.2).state_dict()

    def weights(tensors: dict) -> torch.Tensor:
        return torch.cat([tensors[name].flatten() for name in untrained])

    one, two = (weights(load_file(folder / f"by{count}.safetensors")) for count in (1, 2))
    assert (two - one).norm() < 0.01 * (one - weights(untrained)).norm()


def test_distill(folder, done):
    """A LoRA with what it was trained for, and another that goes on from it, which --out names in models/loras."""
    found = done["student1.safetensors"]
    assert found.code == 0, found.complaints
    first = student_of(folder / "student1.safetensors")
    assert first["about"]["guidance"] == 2 and first["about"]["texts"] == ["a", "bb", "ccc", "dddd"]
    assert first["about"]["error_after"] < first["about"]["error_before"]
    lines = found.printed.splitlines()
    assert lines[0] == "Reference images 0/4"
    assert any(re.match(r"Training batches 0/3, about \d+ s left", line) for line in lines)
    assert "saved as" in found.printed and "2 evaluations at cfg 1; guidance 2 is in the student" in found.printed
    assert done["on_student"].code == 0, done["on_student"].complaints
    assert student_of(folder / "models" / "loras" / "mine_00001_.safetensors")["training"]["images"] == 24


def student_of(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["fewstep_student"])


def test_two_processes_distil_what_one_does(folder, done):
    """They lead the change of each weight, which is 0 at first, to the same place: see the test of AMED."""
    assert done["student1.safetensors"].code == 0, done["student1.safetensors"].complaints
    code, _, complaints = tune(folder, "distill", "student2.safetensors", *DISTILL, processes=2)
    assert code == 0, complaints

    def change(path: Path) -> torch.Tensor:
        tensors = load_file(path)
        names = [name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha")]
        parts = ((tensors[f"{n}.lora_up.weight"], tensors[f"{n}.lora_down.weight"]) for n in names)
        return torch.cat([(up.flatten(1).float() @ down.flatten(1).float()).flatten() for up, down in parts])

    one, two = (change(folder / f"student{count}.safetensors") for count in (1, 2))
    assert one.any() and (two - one).norm() < 0.01 * one.norm()


def test_a_batch_that_cannot_be_shared_is_said(folder):
    code, _, complaints = tune(folder, "distill", "odd.safetensors", *DISTILL, "--batch", "3", processes=2)
    assert code != 0 and "batch = 3 must be a multiple of the number of processes, 2" in complaints


@pytest.mark.parametrize("command", ["train", "distill"])
def test_torchrun_hands_on_every_option(command):
    """By one of its names. Torchrun looks for beginnings of its own options behind the name of the script, too."""
    from torch.distributed import run as torchrun

    import tune as cli

    def handed_on(name: str) -> bool:
        arguments = [command, name, "value"]
        try:
            return torchrun.parse_args(["--standalone", "-m", "tune", *arguments]).training_script_args == arguments
        except SystemExit:
            return False

    (commands,) = cli.parser()._subparsers._group_actions
    options = [option for option in commands.choices[command]._actions if option.dest != "help"]
    assert [option.dest for option in options if not any(map(handed_on, option.option_strings))] == []
    needed = ["--checkpoint", "a", "--prompts", "b", "--out", "c"]
    for name in ("--start", "--start-from"):
        assert cli.parser().parse_args([command, *needed, name, "plan"]).start == Path("plan")


def test_ctrl_c_keeps_the_best(folder):
    """It does not take the place of a file that is there."""
    START.save(folder / "stopped.safetensors")
    code, printed, complaints = tune(folder, "train", "stopped.safetensors", "--iterations", "1000", loader="stopped")
    assert code == 130, complaints
    kept = folder / "stopped_00001_.safetensors"
    assert f"Stopped. Best plan saved as {kept}; choose it in Load Plan" in printed
    assert 0 < load(kept).about.iterations < 1000
    assert load(folder / "stopped.safetensors").text() == START.text()


def test_ctrl_c_keeps_the_best_student(folder):
    long = (*DISTILL, "--iterations", "1000")
    code, printed, complaints = tune(folder, "distill", "left.safetensors", *long, loader="stopped")
    assert code == 130, complaints
    assert f"Stopped. Best student saved as {folder / 'left.safetensors'}; choose it in Load LoRA" in printed
    assert student_of(folder / "left.safetensors")["about"]["interrupted"]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("rank", r"rank = 0"),
        ("teacher", r"prompts\.txt is damaged"),
        ("evaluations", r"evaluations = 0"),
        ("base", r"(base = ')?nonsense"),
        ("cfg", r"cfg = nan"),
        ("out", r"filename = 'con' holds 'con', which cannot be the name of a file on Windows"),
        ("start", r"start is a plan of 4 evaluations, and evaluations = 5"),
    ],
)
def test_errors_are_said_in_a_line(folder, done, name, named):
    found = done[name]
    assert found.code == 1 and "Traceback" not in found.complaints, found.complaints
    (message,) = re.findall(r"error: (.*)", found.complaints)
    assert re.match(named, message)
    assert not (folder / name).exists()


def test_a_plan_that_cannot_be_written_is_not_lost(folder, done):
    """It goes to another folder, and the last line says where."""
    found = done["file/plan.safetensors"]
    assert found.code == 1 and "error: the plan could not be saved" in found.complaints
    (rescued,) = (folder / "models" / "fewstep").glob("rescued*")
    assert str(rescued) in found.complaints.splitlines()[-1] and load(rescued).text() in found.complaints
