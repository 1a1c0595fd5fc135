"""Which family a model is of, and what its makers and users recommend for it. models.json holds that, with sources."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import comfy.model_detection
import comfy.supported_models
import comfy.utils
import folder_paths
import torch

MODELS = Path(__file__).parents[1] / "models.json"

DEMO, DEMO_NODE = "Config", "FewStepDemoModel"
"""The name of the demo model's class, as its plans have it, and the node that gives the model."""

DISTILLED, DISTILLED_STEPS = "distilled", "distilled_steps"
"""Facts of a model beside its `fingerprint`: the id of a distilled model, as `trained` has it, and the number of steps
that its file names."""

_ZERO_SNR = 1000.0  # the highest level of a model whose last time step is all noise; 14.6 otherwise


class Settings(NamedTuple):
    """What is recommended for one model of a family."""

    model: str
    steps: list[int]
    """The fewest and the most."""

    cfg: list[float]
    """The least and the greatest."""

    shift: float | None = None
    """Time shift of a flow model."""

    def bears(self, cfg: float | None) -> bool:
        """Whether a scale of guidance is within what is recommended; None is not known."""
        return cfg is None or self.cfg[0] - _ROUNDED <= cfg <= self.cfg[1] + _ROUNDED


_ROUNDED = 0.01  # as widgets show it


class Family(NamedTuple):
    """A family of models, and what is recommended for it."""

    id: str
    name: str
    classes: list[str]
    """Of the host (`comfy.supported_models`)."""

    sampler: str
    schedule: str
    steps: list[int]
    """The fewest and the most that are recommended."""

    cfg: list[float]
    measured: bool
    """Whether the recommended sampler is of the kind of those that were measured: the best of these is then taken."""

    sources: list[str]
    varied: str | None = None
    """The sampler with added noise, where another than that of the table of Few-Step Auto is recommended."""

    shift: float | None = None
    """Time shift of a flow model."""

    distilled: str | None = None
    """All models of this family are distilled: the id in `trained`."""

    prediction: str | None = None
    zero_snr: bool = False
    note: str = ""
    model: str | None = None
    """Whose the numbers above are, where the host has one class for several models."""

    also: Sequence[Mapping[str, Any]] = ()
    """The `Settings` of the others."""

    @property
    def settings(self) -> list[Settings]:
        """Of each model of the family; the host's class does not tell which of them it is."""
        first = Settings(self.model or self.name, self.steps, self.cfg, self.shift)
        return [first, *(Settings(**fields) for fields in self.also)]


class Distilled(NamedTuple):
    """A distilled model, which its file is known by."""

    id: str
    """As the schedule `trained` has it."""

    names: str
    """A pattern of names of files, in small letters, with _ for what stands between words."""

    sampler: str
    cfg: list[float]
    sources: list[str]
    one_number: bool = False
    """Whether each file was trained for one number of steps, and not for all that `trained` has."""

    steps: list[int] | None = None
    """The numbers to choose from where the name says none, if not all that `trained` has."""

    predicts_x0: Sequence[int] = ()
    """The numbers of steps of files that predict the image itself, which the host must be told."""

    options: Mapping[str, Any] = {}
    """Of the sampler, where the makers use others than its defaults."""


@functools.cache
def families() -> tuple[Family, ...]:
    return tuple(Family(**fields) for fields in _read()["families"])


@functools.cache
def distilled_models() -> tuple[Distilled, ...]:
    """The first whose pattern is found in a name counts."""
    return tuple(Distilled(**fields) for fields in _read()["distilled"])


def distilled_model(id: str) -> Distilled:
    """By its id in `trained`."""
    return next(model for model in distilled_models() if model.id == id)


def _read() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(MODELS.read_text(encoding="utf-8"))
    return found


def family_of(model: Mapping[str, Any]) -> Family | None:
    """The family of a model by its `fingerprint`; None if it is not in the list."""
    zero_snr = model.get("sigma_max", 0.0) >= _ZERO_SNR
    for family in families():
        if (
            model.get("family") in family.classes
            and family.prediction in (None, model.get("prediction"))
            and zero_snr >= family.zero_snr
        ):
            return family
    return None


def shift_node(name: str) -> str:
    """The host's node that sets the time shift of a model of this class and leaves the unit of its time as it is."""
    settings = getattr(getattr(comfy.supported_models, name, None), "sampling_settings", {})
    return "ModelSamplingAuraFlow" if settings.get("multiplier") == 1 else "ModelSamplingSD3"


def family_name(name: str) -> str:
    """A class of the host in the words of its users."""
    if name == DEMO:
        return "the Few-Step demo"
    return next((family.name for family in families() if name in family.classes and not family.prediction), name)


# Distilled models


def distilled_in(names: Iterable[str]) -> dict[str, Any]:
    """What names of files and models say of a distillation: facts for a `fingerprint`, none if they say nothing."""
    for name in map(_plain, names):
        for model in distilled_models():
            if re.search(model.names, name):
                steps = re.search(r"(?<!\d)0*([1-9]\d{0,2})_?steps?(_|$)", name)
                return {DISTILLED: model.id} | ({DISTILLED_STEPS: int(steps[1])} if steps else {})
    return {}


_LONGEST_NAME = 300
"""Letters of a name that are looked at: a file may have any text for one."""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name[:_LONGEST_NAME].lower()).strip("_")


def names_of(prompt: Mapping[str, Any] | None, node: Any, input: str = "model") -> list[str]:
    """The names of a MODEL's files, and those in their metadata, LoRAs before the checkpoint: as the prompt has them.

    Args:
        prompt: the workflow that runs, as the host keeps it; None where that is not known.
        node: the id of the node that is asking, and its input.
    """
    files = [] if prompt is None else files_of(prompt, str(node), input)
    return [name for file, folder in files for name in (PurePath(file).stem, *_titles(file, folder))]


_FOLDERS = {"lora_name": "loras", "ckpt_name": "checkpoints", "unet_name": "diffusion_models"}
"""Inputs of the host's loaders, and of many others, with the folder of their files."""


def files_of(prompt: Mapping[str, Any], node: str, input: str = "model") -> Iterator[tuple[str, str]]:
    """The files of the loaders that a MODEL comes through, with the folders of models, from the last to the first."""
    seen = set()
    while True:
        link = prompt.get(node, {}).get("inputs", {}).get(input)
        if not isinstance(link, list) or not link or link[0] in seen:
            return
        node, input = str(link[0]), "model"
        seen.add(node)
        inputs = prompt.get(node, {}).get("inputs", {})
        used = inputs.get("strength_model", 1) != 0
        yield from ((inputs[name], folder) for name, folder in _FOLDERS.items() if used and _is_name(inputs.get(name)))
        yield from ((lora, "loras") for lora in _listed_loras(inputs))
        if input not in inputs:  # of a node that names its input in another way, such as a reroute
            input = next((name for name, value in inputs.items() if isinstance(value, list)), input)


def _listed_loras(inputs: Mapping[str, Any]) -> Iterator[str]:
    """The LoRAs of a node that takes any number, each as {"lora": file, "on": ..., "strength": ...}; the last first."""
    for value in reversed(list(inputs.values())):
        used = isinstance(value, Mapping) and value.get("on", True) and value.get("strength", 1) != 0
        if used and _is_name(value.get("lora")):
            yield value["lora"]


# Before a run


def loaded_by(loader: Mapping[str, Any]) -> dict[str, str]:
    """What is known of the model that a node will load: its `family`, as in a `fingerprint`, or nothing.

    Args:
        loader: the node, {"type": its id, "inputs": {name: value}}.
    """
    family = DEMO if loader["type"] == DEMO_NODE else None
    for name, folder in _FOLDERS.items():
        if family is None and name != "lora_name" and _is_name(file := loader["inputs"].get(name)):
            family = _class_in(folder, file)
    return {} if family is None else {"family": family}


def _class_in(folder: str, file: str) -> str | None:
    """The host's class for the network in a file, told by the names and shapes of its tensors, which its header has."""
    try:
        path = folder_paths.get_full_path(folder, file)
        return _detected(path, Path(path).stat().st_mtime_ns) if path and path.endswith(_WITH_HEADER) else None
    except Exception:  # of a damaged file, or one that the host's detection wants the numbers of
        return None


@functools.lru_cache(maxsize=32)
def _detected(path: str, changed: int) -> str | None:
    header = json.loads(comfy.utils.safetensors_header(path) or "{}")
    metadata = header.pop("__metadata__", None)
    tensors = {name: torch.empty(entry["shape"], device="meta") for name, entry in header.items()}
    prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
    if not any(name.startswith(prefix) for name in tensors):
        prefix = ""  # a network alone
    config = comfy.model_detection.model_config_from_unet(tensors, prefix, metadata=metadata)
    return None if config is None else type(config).__name__


_WITH_HEADER = (".safetensors", ".sft")


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


_LONGEST_HEADER = 2**25
"""Bytes; that of a checkpoint has about one million."""

_TITLES = ("modelspec.title", "ss_output_name")
"""Fields of a file's metadata that name the model."""


def _titles(file: str, folder: str) -> list[str]:
    """The names of a model in the metadata of its file."""
    metadata = metadata_of(file, folder)
    return [metadata[name] for name in _TITLES if isinstance(metadata.get(name), str)]


def metadata_of(file: str, folder: str) -> dict[str, Any]:
    """The metadata in the header of a file of models, of which no more is read; none of one that is damaged."""
    try:
        path = folder_paths.get_full_path(folder, file)
        if not path or not path.endswith(_WITH_HEADER):
            return {}
        status = os.stat(path)
        return _metadata(path, status.st_mtime_ns, status.st_size)
    except Exception:  # of a damaged file: the loader says what is wrong with it
        return {}


@functools.lru_cache(maxsize=64)
def _metadata(path: str, changed: int, size: int) -> dict[str, Any]:
    header = comfy.utils.safetensors_header(path, max_size=min(size, _LONGEST_HEADER))
    metadata = json.loads(header or b"{}").get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}
