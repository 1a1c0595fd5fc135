"""The pack as a user installs it: its tracked files in custom_nodes, in a folder of any name, with nothing else
installed; in the newest ComfyUI and in the oldest that README.md promises."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tomllib
from host import COMFYUI, HOST, OLDEST_WHEEL, ROOT, Server, fetch_comfyui, server
from PIL import Image
from workflow import refusals, to_prompt

OLDEST = HOST / "comfyui-oldest"
CONTRACT = json.loads((ROOT / "tests" / "contract.json").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

PACK = ("__init__.py", "tune.py", "nodes", "samplers")
DISTRIBUTIONS = {"PIL": "pillow"}  # of modules that are not called as what is installed

DEMO = "Few-Step demo (no download)"


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def custom_nodes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "custom_nodes"
    for name in tracked():
        target = folder / "My few steps (1.0)" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return folder


@pytest.fixture(scope="module", params=["newest", "oldest"])
def installed(request, custom_nodes, tmp_path_factory) -> Iterator[Server]:
    if request.param == "oldest":
        fetch_comfyui(OLDEST_WHEEL, OLDEST)
    folder = tmp_path_factory.mktemp(request.param)
    arguments = ("--base-directory", str(custom_nodes.parent), "--output-directory", str(folder))
    with server(folder / "server.log", *arguments, comfyui=COMFYUI if request.param == "newest" else OLDEST) as host:
        yield host


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """One of each version."""
    return []


@pytest.mark.slow
def test_version_is_as_promised(installed):
    version = installed.get("/system_stats")["system"]["comfyui_version"]
    if "oldest" in installed.log.parent.name:
        assert PROJECT["tool"]["comfy"]["requires-comfyui"] == f">={version}"
        assert f"ComfyUI {version} or newer" in (ROOT / "README.md").read_text()


def test_it_loads_without_a_word(installed):
    log = installed.log.read_text().splitlines()
    (line,) = [line for line in log if "My few steps" in line]
    assert "FAILED" not in line
    assert not [line for line in log if "few" in line.lower() and "My few steps" not in line]


def test_all_nodes_and_names_are_there(installed):
    info = installed.get("/object_info")
    assert set(CONTRACT["nodes"]) <= set(info)
    for kind, input in (("samplers", "sampler_name"), ("schedules", "scheduler")):
        names = {spec["dropdown"] for spec in CONTRACT[kind].values() if spec["dropdown"]}
        assert names <= set(info["KSampler"]["input"]["required"][input][0])
    assert DEMO in installed.get("/api/workflow_templates")["My few steps (1.0)"]


def test_the_example_workflows_fit(installed):
    info = installed.get("/object_info")
    for path in (ROOT / "tests" / "prompts").glob("*.json"):
        assert refusals(json.loads(path.read_text()), info) == [], path.stem


def test_the_demo_is_the_same_image(installed, images):
    """In every version, up to rounding."""
    prompt = to_prompt(json.loads((ROOT / "workflows" / f"{DEMO}.json").read_text()), installed.get("/object_info"))
    spec = importlib.util.spec_from_file_location("demo_run", ROOT / "demo" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    image, *_ = asyncio.run(module.run(installed.url, prompt))
    pixels = np.asarray(Image.open(installed.log.parent / image), dtype=float)
    assert pixels.std() > 20
    images.append(pixels)
    assert np.abs(pixels - images[0]).max() <= 2


def test_the_requirements_are_what_the_pack_imports():
    """Each by name, without a version, in requirements.txt as in pyproject.toml, and nothing that is not imported."""
    found = set()
    for path in tracked():
        if path.endswith(".py") and (path.split("/")[0] in PACK or path in ("demo/nodes.py", "demo/model.py")):
            found |= set(imports(ast.parse((ROOT / path).read_text())))
    host = {path.stem for path in COMFYUI.iterdir()}
    wanted = {DISTRIBUTIONS.get(name, name) for name in found - sys.stdlib_module_names - host - {"torch"}}
    assert set(requirements()) == wanted
    assert PROJECT["project"]["dependencies"] == requirements()


def test_installing_the_requirements_changes_nothing_in_the_host():
    """Each is one of ComfyUI's own, in its oldest version too, and pip finds nothing to do."""
    fetch_comfyui(OLDEST_WHEEL, OLDEST)
    for host in (COMFYUI, OLDEST):
        lines = (host / "requirements.txt").read_text().lower().splitlines()
        assert set(requirements()) <= {re.split(r"[<>=~!\s]", line)[0] for line in lines}
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "-r", str(ROOT / "requirements.txt")]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "would install" not in done.stdout.lower()


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that are imported from outside the pack."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]


def test_metadata_for_the_registry():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]*", project["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert comfy["DisplayName"] == "Few-Step" and comfy["PublisherId"]
    assert "web" not in comfy  # WEB_DIRECTORY says so already: the script would be loaded twice
    assert (ROOT / project["license"]["file"]).is_file()
