"""Calibration, the training of AMED and distillation without a graph or a server.

In the folder of ComfyUI, with the pack in custom_nodes/few-step:

    python -m custom_nodes.few-step.tune calibrate --checkpoint sd15.safetensors --prompts prompts.txt --out portraits
    torchrun --nproc_per_node=2 -m custom_nodes.few-step.tune train --checkpoint sd15.safetensors ...
    python -m custom_nodes.few-step.tune distill --checkpoint sd15.safetensors --prompts prompts.txt --out student

With torchrun, write --start-from instead of --start, which torchrun takes for one of its own options.

The file of prompts has one prompt on each line. A plan is written to models/fewstep, the LoRA of a student to
models/loras, or either to --out if that is a path. After Ctrl-C the best so far is kept. Exit codes: 0 done, 1 failed,
2 wrong arguments, 130 stopped.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

EVERY = 2.0  # seconds between lines


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    rank, processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if processes > 1 and options.command == "calibrate":
        print("calibrate runs in one process: start it without torchrun", file=sys.stderr)
        return 2
    try:
        prompts = read_prompts(options.prompts)
        set_up_host(options)
        if processes > 1:
            join_processes()
        work, save = begin(options, prompts, quiet=rank > 0)
    except (OSError, ValueError, ImportError, AttributeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    code = carry_out(work, save, quiet=rank > 0)
    if processes > 1:
        leave_processes(code)
    return code


def _common(made: str, *, evaluations: int, samples: int, teacher_steps: int, fit: str) -> argparse.ArgumentParser:
    """The options of all commands, with what is said of what is made, and defaults."""
    common = argparse.ArgumentParser(add_help=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = common.add_argument
    model = common.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", metavar="NAME", help="a file in models/checkpoints")
    model.add_argument(
        "--loader",
        metavar="MODULE:FUNCTION",
        help="for models that are not in a checkpoint: a function that returns the MODEL of ComfyUI, and a function "
        "that makes a CONDITIONING of a text",
    )
    add(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help="a text file with one prompt on each line",
    )
    add(
        "--out",
        required=True,
        metavar="NAME",
        help=f"name of the {made}, or a path, where a finished one replaces what is there",
    )
    add("--negative", default="", metavar="TEXT", help="the negative prompt")
    add("--width", type=int, default=512, help="width of the images, in pixels (%(default)s)")
    add("--height", type=int, default=512, help="height of the images, in pixels (%(default)s)")
    add(
        "--downscale",
        type=int,
        default=0,
        help="width in pixels of one element of the latent (default: as the model says, else 8)",
    )
    add("--cfg", type=float, default=7.0, help="guidance scale that it is made for (%(default)s)")
    add("--evaluations", type=int, default=evaluations, help="evaluations of the model for an image (%(default)s)")
    add("--seed", type=int, default=0, help="seed of the first image; each other image has the next one (%(default)s)")
    add("--samples", type=int, default=samples, help=f"{fit} (%(default)s)")
    add(
        "--teacher-steps",
        type=int,
        default=teacher_steps,
        help="steps of the run that is to be matched (%(default)s)",
    )
    add("--cpu", action="store_true", help="run on the CPU")
    add("--base-directory", metavar="DIR", help="as for ComfyUI: the folder that contains models")
    return common


def parser() -> argparse.ArgumentParser:
    fit = "images for the fit, and as many others for validation"
    common = _common("plan in models/fewstep", evaluations=6, samples=16, teacher_steps=50, fit=fit)
    whole = argparse.ArgumentParser(prog="tune", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = whole.add_subparsers(dest="command", required=True)
    calibrate = commands.add_parser("calibrate", parents=[common], help="fit noise levels and solver coefficients")
    calibrate.add_argument(
        "--base", default="auto", help="the sampler to start from (%(default)s: the better of dpmpp_2m and ipndm_v)"
    )
    calibrate.add_argument(
        "--rounds", type=int, default=4, help="the largest number of rounds of the fit (%(default)s)"
    )
    calibrate.add_argument(
        "--batch",
        type=int,
        default=0,
        help="the largest number of images at once (default: as many as fit into memory)",
    )
    calibrate.add_argument(
        "--derivatives",
        choices=("differences", "backpropagation"),
        default="differences",
        help="how the derivatives of the error are taken (%(default)s, which works with every model and is nearly "
        "always better)",
    )
    train = commands.add_parser("train", parents=[common], help="train the network of AMED")
    train.add_argument("--base", default="amed_dpm_2m", help="the solver that the network is trained for (%(default)s)")
    train.add_argument(
        "--schedule", default="karras", help="noise levels at the start; every second one is learned (%(default)s)"
    )
    train.add_argument("--afs", action="store_true", help="leave out the first evaluation")
    train.add_argument("--iterations", type=int, default=60, help="number of batches for training (%(default)s)")
    train.add_argument(
        "--batch", type=int, default=8, help="images in a batch, in all processes together (%(default)s)"
    )
    train.add_argument(
        "--scale-dir", type=float, default=0.01, help="how far the factor of the direction may be from 1 (%(default)s)"
    )
    train.add_argument(
        "--scale-time",
        type=float,
        default=0.2,
        help="how far the factor of the sigma passed to the model may be from 1 (%(default)s)",
    )
    train.add_argument(
        "--teacher-extra", type=int, default=3, help="how many more levels the teacher has in each step (%(default)s)"
    )
    train.add_argument(
        "--learning-rate", type=float, default=0.005, help="learning rate of the optimiser Adam (%(default)s)"
    )
    train.add_argument(
        "--goal",
        choices=("last sample", "each step"),
        default="last sample",
        help="what is matched with the teacher (%(default)s)",
    )
    train.add_argument(
        "--start",
        "--start-from",  # the former is a beginning of torchrun's --start-method
        type=Path,
        metavar="FILE",
        help="a plan or predictor to begin with; --base, --schedule and --afs are then its own",
    )
    _add_distill(commands)
    return whole


def _add_distill(commands: Any) -> None:
    """The options of `distill`."""
    common = _common("LoRA in models/loras", evaluations=4, samples=8, teacher_steps=24, fit="images for validation")
    add = commands.add_parser("distill", parents=[common], help="train a student, as a LoRA").add_argument
    add("--rank", type=int, default=32, help="rank of the LoRA (%(default)s)")
    add("--iterations", type=int, default=500, help="number of batches for training (%(default)s)")
    add("--batch", type=int, default=8, help="images in a batch, in all processes together (%(default)s)")
    add("--learning-rate", type=float, default=0.0002, help="learning rate of the optimiser AdamW (%(default)s)")
    add("--teacher", type=Path, metavar="FILE", help="a calibrated plan that is the teacher, in the place of a sampler")
    add("--teacher-sampler", default="dpmpp_2m", help="the sampler that is followed (%(default)s)")
    add(
        "--teacher-schedule",
        default="auto",
        help="its noise levels (%(default)s: karras, and time_uniform for flow models)",
    )
    add(
        "--start",
        "--start-from",
        type=Path,
        metavar="FILE",
        help="a student of this model to go on with; --rank is then its own",
    )


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not empty."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts: {path} cannot be read as a text ({error})") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts: {path} holds no prompt")
    return prompts


# The host


def set_up_host(options: argparse.Namespace) -> None:
    """What its own start script does before anything of it is imported: choose the device and the folders."""
    visible, local = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("LOCAL_RANK")
    if local is not None and visible != "":  # each process its own
        devices = visible.split(",") if visible else None
        if devices and int(local) >= len(devices):
            raise ValueError(f"there are more processes than GPUs in CUDA_VISIBLE_DEVICES = {visible}")
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(local)] if devices else local
    sys.path.insert(0, os.getcwd())
    try:
        from comfy.cli_args import args
    except ImportError:
        raise ImportError("run this in the folder of ComfyUI, where main.py is") from None
    import torch

    args.cpu = args.cpu or options.cpu or not (torch.cuda.is_available() or _has_other_device(torch))
    args.base_directory = options.base_directory or args.base_directory
    import utils.extra_config  # before the host's `nodes`, which hides it behind another `utils`

    extra = Path("extra_model_paths.yaml")
    if extra.is_file():
        utils.extra_config.load_extra_path_config(str(extra))


def _has_other_device(torch: Any) -> bool:
    return any(
        (module := getattr(torch, name, None)) is not None and module.is_available() for name in ("xpu", "mps", "npu")
    )


def join_processes() -> None:
    """Join the other processes. The gradients are small and lie on the CPU: gloo."""
    import torch

    torch.distributed.init_process_group("gloo", timeout=timedelta(hours=6))  # the first one checks, the others wait


def leave_processes(code: int) -> None:
    """Leave the other processes, all at the same time unless something went wrong: one that goes early aborts."""
    import torch

    if code == 0:
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def load_checkpoint(name: str) -> tuple[Any, Callable[[str], Any]]:
    import folder_paths

    import nodes

    known = folder_paths.get_filename_list("checkpoints")
    if name not in known:
        raise ValueError(
            f"--checkpoint: {name!r} is not in models/checkpoints; there are: {', '.join(known) or 'none'}"
        )
    patcher, clip, _ = nodes.CheckpointLoaderSimple().load_checkpoint(name)
    return patcher, lambda text: nodes.CLIPTextEncode().encode(clip, text)[0]


def load_model(options: argparse.Namespace) -> tuple[Any, Callable[[str], Any]]:
    """The MODEL, and what makes a CONDITIONING of a text."""
    if options.checkpoint:
        return load_checkpoint(options.checkpoint)
    module, _, function = options.loader.partition(":")
    return getattr(importlib.import_module(module), function)()


def begin(
    options: argparse.Namespace, prompts: list[str], *, quiet: bool = False
) -> tuple[Any, Callable[[Any, bool], Path]]:
    """The work that is asked for, and what saves its plan or student and says where."""
    import torch

    package = __package__ or _import_package()
    calibration, training, distillation, session_, progress_, files, read = (
        importlib.import_module(f"{package}.{name}")
        for name in (
            "nodes.host.calibration", "nodes.host.training", "nodes.host.distillation", "nodes.host.session",
            "nodes.host.progress", "nodes.host.plan_files", "samplers.calibrated",
        )
    )  # fmt: skip
    files.register_folder()
    is_path = len(Path(options.out).parts) > 1 or options.out.endswith(files.EXTENSION)
    path = Path(options.out.removesuffix(files.EXTENSION) + files.EXTENSION).resolve()
    kind = "loras" if options.command == "distill" else files.FOLDER
    if not is_path:
        files.free_paths(options.out, kind=kind)  # complains now, not after the work

    place = (path.stem, str(path.parent)) if is_path else (options.out,)

    def save(found: Any, finished: bool) -> Path:
        """A file of that path is replaced by what is finished alone; all else gets a name with a number."""
        there = is_path and (finished or not path.exists())
        if options.command == "distill":
            return found.keep(lambda: found.write(path) if there else found.save(*place))
        return files.keep(found, lambda: found.save(path) if there else files.save(found, *place))

    with torch.inference_mode():
        patcher, encode = load_model(options)
        positive = [entry for prompt in prompts for entry in encode(prompt)]
        negative = encode(options.negative)
        format = patcher.get_model_object("latent_format")
        cell = options.downscale or getattr(format, "spacial_downscale_ratio", 8)
        shape = 1, format.latent_channels, options.height // cell, options.width // cell
        if min(shape) < 1:
            raise ValueError(f"--width {options.width} and --height {options.height} are too small")
        batch = options.batch if options.command == "calibrate" else 0
        latent = {"samples": torch.zeros(shape)}
        progress = progress_.Progress(None if quiet else print_line, every=EVERY)
        session = session_.Session(
            patcher, positive, negative, options.cfg, latent, batch=batch, texts=prompts, progress=progress
        )
        common = {name: getattr(options, name) for name in ("evaluations", "seed", "samples", "teacher_steps")}
        if options.command == "calibrate":
            bases = calibration.DEFAULT_BASES if options.base == "auto" else (options.base,)
            own = {"bases": bases, "rounds": options.rounds, "derivatives": options.derivatives}
            return calibration.Calibration(session, **common, **own), save
        if options.command == "distill":
            names = ("rank", "iterations", "learning_rate", "batch", "teacher_sampler", "teacher_schedule", "start")
            own = {name: getattr(options, name) for name in names}
            teacher = read.load(options.teacher) if options.teacher else None
            return distillation.Distillation(session, teacher=teacher, **common, **own), save
        names = ("base", "schedule", "afs", "iterations", "batch", "scale_dir", "scale_time")
        names += ("teacher_extra", "learning_rate", "goal")
        own = {name: getattr(options, name) for name in names}
        start = read.load(options.start) if options.start else None
        return training.Training(session, start=start, **common, **own), save


def _import_package() -> str:
    """The pack under its folder's name, where this file is run as a script."""
    folder = Path(__file__).resolve().parent
    sys.path.insert(0, str(folder.parent))
    importlib.import_module(folder.name)
    return folder.name


# The work


class Stopped(KeyboardInterrupt):
    """By Ctrl-C or a scheduler. Not a plain KeyboardInterrupt: where one has come through `exec` or `eval` of a text,
    Python ends itself by the signal, even if it was caught and there is an exit code."""


def _stop(*_: Any) -> None:
    raise Stopped


def carry_out(work: Any, save: Callable[[Any, bool], Path], *, quiet: bool = False) -> int:
    """Do it, and write what comes out; also what there is when it is stopped. Gives the exit code."""
    import torch

    nodes = type(work).__module__.rpartition(".host.")[0]
    texts, said = (importlib.import_module(f"{nodes}.{name}") for name in ("ui.plans", "ui.works"))
    for stop in (signal.SIGINT, signal.SIGTERM):  # a scheduler's stop keeps the best, too, and so in the background
        signal.signal(stop, _stop)
    code = 0
    with torch.inference_mode():
        try:
            for progress in work:
                work.session.progress.note(texts.so_far(progress))
        except Stopped:
            code = 130
        except Exception as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
        for stop in (signal.SIGINT, signal.SIGTERM):  # a second one must not stop the writing
            signal.signal(stop, signal.SIG_IGN)
        try:
            found = None if quiet else said.result(work)
            if found is not None:
                path = save(said.unfinished(found) if code else found, not code)
                print(said.stopped(work, path) if code else f"saved as {path}", flush=True)
                print(said.outcome(found), flush=True)
            elif code == 130 and not quiet:
                print(said.stopped(work, None))
        except Exception as error:
            print(f"error: {error}", file=sys.stderr)
            code = code or 1
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    return code


def print_line(done: float, total: float, text: str, denoised: Any = None) -> None:
    """How far it is, how good, and how long it will take."""
    print(text.replace("\n", ", "), flush=True)


if __name__ == "__main__":
    sys.exit(main())
