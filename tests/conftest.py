"""The real host, in this process and as a server. `make setup` provides it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from host import ROOT, Server, import_comfyui, load_pack, server
from hypothesis import HealthCheck, settings
from in_the_host import module
from small_models import small_model

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # however busy it is
torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))


LONGEST = [
    "browser", "kernels", "workflows", "server", "install", "tune_cli", "bench_checkpoint", "runs", "order", "hosts",
    "tuning_nodes", "comfyui", "distillation", "bench_quality", "inversion", "ksampler", "plan", "flow", "image_noise",
    "schedules", "stochastic", "levels", "progress", "amed",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that at the end no process has a long one left to do alone."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def comfy_process(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """ComfyUI imported here, with the pack loaded from a folder of another name.

    Gives `nodes` (classes by id), `load` (loads one more custom node folder) and `before` (the host's own
    sampler and scheduler names and functions, from before the pack was loaded).
    """
    nodes = import_comfyui()
    import comfy.samplers
    import comfy.utils
    from comfy.k_diffusion import sampling

    # newer hosts tell some of the progress only; tests look at all of it
    comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = 0
    comfy.utils.PROGRESS_THROTTLE_MIN_PERCENT = 0
    before = SimpleNamespace(
        samplers=list(comfy.samplers.KSampler.SAMPLERS),
        schedulers=dict(comfy.samplers.SCHEDULER_HANDLERS),
        functions={name: f for name, f in vars(sampling).items() if name.startswith("sample_")},
    )
    custom_nodes = tmp_path_factory.mktemp("custom_nodes")

    def load(source: Path, name: str) -> bool:
        link, kept = custom_nodes / name, dict(nodes.NODE_CLASS_MAPPINGS)
        link.symlink_to(source, target_is_directory=True)
        loaded = load_pack(nodes, link)
        nodes.NODE_CLASS_MAPPINGS.update(kept)  # of several copies of the pack all tests have the first
        return loaded

    assert load(ROOT, "ComfyUI few-step (my copy)")
    found = SimpleNamespace(nodes=nodes.NODE_CLASS_MAPPINGS, load=load, before=before)
    module(found, "host.progress").EVERY = 0  # as with the host's
    return found


@pytest.fixture
def comfyui(comfy_process: SimpleNamespace):
    """The host as its executor runs nodes: in inference mode."""
    with torch.inference_mode():
        yield comfy_process


@pytest.fixture(scope="module")
def eps_model(comfy_process: SimpleNamespace):
    return small_model("EPS")


@pytest.fixture
def folder(comfy_process: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """models/fewstep, which is there once something is saved."""
    import folder_paths

    path = tmp_path / "fewstep"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "fewstep", ([str(path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return path


@pytest.fixture
def loras(comfy_process: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """models/loras."""
    import folder_paths

    path = tmp_path / "loras"
    path.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return path


@pytest.fixture
def routes(comfyui: SimpleNamespace) -> ModuleType:
    """nodes/routes.py of the pack."""
    return module(comfyui, "routes")


@pytest.fixture(scope="session")
def running_host(tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = tmp_path_factory.mktemp("server")
    with server(folder / "server.log", "--output-directory", str(folder)) as host:
        yield host


@pytest.fixture(scope="session")
def demo_workflow() -> dict:
    return json.loads((ROOT / "workflows" / "Few-Step demo (no download).json").read_text())
