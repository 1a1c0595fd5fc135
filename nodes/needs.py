"""What the pack uses of the host, and what is affected where a host does not have it.

The host promises little of this to packs. It is looked up when the pack is loaded, so that a host to come which lacks
something says so in the log by name, while the rest of the pack works. tests/test_comfyui/test_hosts.py compares
the list with the code. What some hosts have and others have not is asked for where it is used, and is not in the list.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

NEEDS: Mapping[str, tuple[str, ...]] = {
    "all nodes": (
        "comfy_api.latest.ComfyExtension",
        "comfy_api.latest.io.Boolean.Input(default, optional, tooltip)",
        "comfy_api.latest.io.Combo.Input(default, optional, options, tooltip)",
        "comfy_api.latest.io.ComfyNode",
        "comfy_api.latest.io.ComfyNode.GET_SCHEMA",
        "comfy_api.latest.io.Conditioning.Input(tooltip)",
        "comfy_api.latest.io.Conditioning.Output(display_name)",
        "comfy_api.latest.io.Custom",
        "comfy_api.latest.io.Float.Input(default, max, min, optional, round, step, tooltip)",
        "comfy_api.latest.io.Guider.Output(tooltip)",
        "comfy_api.latest.io.Hidden.prompt",
        "comfy_api.latest.io.Hidden.unique_id",
        "comfy_api.latest.io.Image.Input(tooltip)",
        "comfy_api.latest.io.Image.Output(display_name, tooltip)",
        "comfy_api.latest.io.Input",
        "comfy_api.latest.io.Int.Input(control_after_generate, default, max, min, optional, tooltip)",
        "comfy_api.latest.io.Latent.Input(tooltip)",
        "comfy_api.latest.io.Latent.Output(display_name, tooltip)",
        "comfy_api.latest.io.Mask.Output(display_name, tooltip)",
        "comfy_api.latest.io.Model.Input(optional, tooltip)",
        "comfy_api.latest.io.Model.Output(tooltip)",
        "comfy_api.latest.io.NodeOutput(ui)",
        "comfy_api.latest.io.Noise.Output(display_name, tooltip)",
        "comfy_api.latest.io.Output",
        "comfy_api.latest.io.Sampler.Input(tooltip)",
        "comfy_api.latest.io.Sampler.Output(tooltip)",
        "comfy_api.latest.io.Schema(category, description, display_name, hidden, inputs, is_output_node, node_id, "
        "outputs)",
        "comfy_api.latest.io.Sigmas.Input(tooltip)",
        "comfy_api.latest.io.Sigmas.Output(display_name, tooltip)",
        "comfy_api.latest.io.String.Input(default, multiline, optional, placeholder, tooltip)",
        "comfy_api.latest.io.String.Output(display_name, tooltip)",
        "comfy_api.latest.io.Vae.Input(optional, tooltip)",
        "comfy_api.latest.ui.PreviewImage",
        "comfy_api.latest.ui.PreviewImage.as_dict",
        "comfy_api.latest.ui.PreviewText",
        "comfy_api.latest.ui.PreviewText.as_dict",
    ),
    "all samplers and schedules": (
        "comfy.model_patcher.ModelPatcher.get_model_object",
        "comfy.model_sampling",
        "comfy.model_sampling.CONST",
        "comfy.patcher_extension.WrappersMP.PREDICT_NOISE",
        "comfy.patcher_extension.add_wrapper_with_key(is_model_options)",
        "comfy.samplers.CFGGuider",
        "comfy.samplers.KSAMPLER",
    ),
    "the names of our samplers and schedules in the lists of KSampler and other nodes, Few-Step Compare": (
        "comfy.k_diffusion.sampling",
        "comfy.samplers.KSampler",
        "comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS",
        "comfy.samplers.KSampler.SAMPLERS",
        "comfy.samplers.KSampler.SCHEDULERS",
        "comfy.samplers.SAMPLER_NAMES",
        "comfy.samplers.SCHEDULER_HANDLERS",
        "comfy.samplers.SCHEDULER_NAMES",
        "comfy.samplers.SchedulerHandler(use_ms)",
        "comfy.samplers.calculate_sigmas",
        "comfy.samplers.sampler_object",
    ),
    "families of models, distilled ones by the name of their file, the kind of a model before its first run: Few-Step "
    "Auto, plans": (
        "comfy.model_detection.model_config_from_unet(metadata)",
        "comfy.model_detection.unet_prefix_from_state_dict",
        "comfy.supported_models",
        "comfy.utils.safetensors_header(max_size)",
        "folder_paths.get_full_path",
    ),
    "the folders models/fewstep and models/loras: Few-Step Load and Save Plan, Auto, Calibrate, Train AMED, Distill": (
        "folder_paths.add_model_folder_path(is_default)",
        "folder_paths.folder_names_and_paths",
        "folder_paths.get_filename_list",
        "folder_paths.get_folder_paths",
        "folder_paths.get_full_path",
        "folder_paths.get_output_directory",
        "folder_paths.get_save_image_path",
        "folder_paths.get_user_directory",
        "folder_paths.models_dir",
    ),
    "Few-Step Distill": (
        "comfy.model_management.should_use_bf16",
        "comfy.sd.load_lora_for_models",
        "comfy.weight_adapter.LoRAAdapter.create_train(alpha, rank)",
        "comfy_extras.nodes_train.find_all_highest_child_module_with_forward",
    ),
    "Few-Step KSampler, Few-Step KSampler (Advanced)": (
        "comfy_extras.nodes_custom_sampler.Noise_EmptyNoise",
        "comfy_extras.nodes_custom_sampler.Noise_RandomNoise",
        "comfy_extras.nodes_custom_sampler.SamplerCustomAdvanced",
    ),
    "Few-Step Guider, Few-Step Guidance Patch, the samplers with CFG++": (
        "comfy.model_patcher.ModelPatcher.add_wrapper_with_key",
        "comfy.model_patcher.ModelPatcher.clone",
        "comfy.model_patcher.ModelPatcher.remove_wrappers_with_key",
        "comfy.model_patcher.set_model_options_post_cfg_function(disable_cfg1_optimization)",
        "comfy.patcher_extension.WrapperExecutor",
        "comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE",
    ),
    "the nodes that sample by themselves: Few-Step Invert, DiffEdit Mask, Compare, Film Strip, Trajectory, Calibrate, "
    "Train AMED": (
        "comfy.model_management.InterruptProcessingException",
        "comfy.model_management.OOM_EXCEPTION",
        "comfy.model_management.intermediate_device",
        "comfy.model_management.soft_empty_cache",
        "comfy.model_management.throw_exception_if_processing_interrupted",
        "comfy.sample.fix_empty_latent_channels",
        "comfy.sample.prepare_noise",
        "comfy.samplers.CFGGuider.predict_noise",
        "comfy.samplers.CFGGuider.sample(callback, denoise_mask, disable_pbar, seed)",
        "comfy.samplers.CFGGuider.set_cfg",
        "comfy.samplers.CFGGuider.set_conds",
        "comfy.samplers.Sampler",
        "comfy.samplers.Sampler.max_denoise",
        "comfy.samplers.calc_cond_batch",
        "comfy.utils.PROGRESS_BAR_ENABLED",
        "latent_preview.Latent2RGBPreviewer",
        "latent_preview.prepare_callback",
    ),
    "progress, previews and text on nodes while they work": (
        "comfy.utils.ProgressBar",
        "comfy_execution.utils.get_executing_context",
        "latent_preview.get_previewer",
    ),
    "the plots in the nodes": (
        "comfy.k_diffusion.sampling.get_sigmas_karras",
        "comfy.model_sampling.ModelSamplingContinuousEDM",
        "comfy.model_sampling.ModelSamplingDiscrete",
        "comfy.model_sampling.ModelSamplingDiscreteFlow",
        "server.PromptServer",
    ),
    "the demo nodes": (
        "comfy.latent_formats.LatentFormat",
        "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel",
        "comfy.model_base.BaseModel",
        "comfy.model_base.ModelType",
        "comfy.model_base.ModelType.EPS",
        "comfy.model_base.ModelType.FLOW",
        "comfy.model_management.get_torch_device",
        "comfy.model_management.unet_offload_device",
        "comfy.model_patcher.ModelPatcher(load_device, offload_device)",
        "comfy.supported_models_base.BASE",
    ),
}
"""Symbols by what is affected, with the parameters that are given by name. Methods are those of the host's objects."""


def missing() -> dict[str, list[str]]:
    """What this host lacks, by what is affected."""
    lacking = {
        affected: [lack for symbol in symbols for lack in _lacking(symbol)] for affected, symbols in NEEDS.items()
    }
    return {affected: lack for affected, lack in lacking.items() if lack}


def split(symbol: str) -> tuple[str, tuple[str, ...]]:
    """A symbol of the list: its name, and the parameters that are given by name."""
    name, _, parameters = symbol.removesuffix(")").partition("(")
    return name, tuple(re.findall(r"\w+", parameters))


def _lacking(symbol: str) -> Iterator[str]:
    """The symbol, or those of its parameters, that are not there."""
    name, parameters = split(symbol)
    try:
        found = _find(name)
    except Exception:  # an import may fail in any way
        yield name
        return
    known = inspect.signature(found).parameters if parameters else {}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        yield from (f"{name}({parameter})" for parameter in parameters if parameter not in known)


def _find(name: str) -> Any:
    """Module or attribute of a dotted name; raises ImportError or AttributeError."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            return functools.reduce(getattr, parts[end:], importlib.import_module(module))
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name) or end == 1:
                raise
    raise ImportError(name)
