"""Makes the example workflows: workflows/*.json, which ComfyUI shows under Templates, with a small picture each, and
their prompts for the API.

    .host/venv/bin/python tools/workflows.py [--run]         (make workflows)

Each is a function that puts nodes into a graph, from left to right; its name is its file's.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomllib
from host import ROOT, Server, server
from PIL import Image
from thumbnail import BACK, thumbnail
from workflow import Graph, Output, to_prompt

FOLDER, PROMPTS = ROOT / "workflows", ROOT / "tests" / "prompts"
HUB = "https://huggingface.co"

SD15 = {
    "name": "v1-5-pruned-emaonly-fp16.safetensors",
    "url": f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
    "directory": "checkpoints",
}
SDXL = {
    "name": "sd_xl_base_1.0.safetensors",
    "url": f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    "directory": "checkpoints",
}
REFINER = {
    "name": "sd_xl_refiner_1.0.safetensors",
    "url": f"{HUB}/stabilityai/stable-diffusion-xl-refiner-1.0/resolve/main/sd_xl_refiner_1.0.safetensors",
    "directory": "checkpoints",
}
LIGHTNING = {
    "name": "sdxl_lightning_4step.safetensors",
    "url": f"{HUB}/ByteDance/SDXL-Lightning/resolve/main/sdxl_lightning_4step.safetensors",
    "directory": "checkpoints",
}
SCHNELL = {
    "name": "flux1-schnell-fp8.safetensors",
    "url": f"{HUB}/Comfy-Org/flux1-schnell/resolve/main/flux1-schnell-fp8.safetensors",
    "directory": "checkpoints",
}
PICTURE = "example.png"  # which comes with ComfyUI, in its folder of inputs

SCENE = "a lighthouse on a cliff at dawn, waves, drifting fog, warm light in the window, oil painting"
GIRL = "a girl with fox ears in a pink dress on a green hill, blue sky, white clouds"  # what PICTURE shows
POOR = "blurry, low quality, text, watermark"


# Parts

TEXTS, LOADER, SMALL, LARGE = 240, 240, 190, 230  # widths: of prompts, loaders, nodes with few words, pictures


def note(g: Graph, title: str, text: str, *models: dict[str, str], more: str = ", or another of this kind") -> None:
    """What a workflow is for, and the files that it loads. In bold: on a coloured note, code can hardly be read."""
    names = " and ".join(f"**{model['name']}**" for model in models)
    g.note(title, text + (f"\n\nCheckpoint: {names}{more}." if models else ""))


def checkpoint(g: Graph, model: dict[str, str], title: str | None = None) -> tuple[Output, Output, Output]:
    """Model, CLIP and VAE."""
    return g.add("CheckpointLoaderSimple", title, models=[model], ckpt_name=model["name"])


def prompts(g: Graph, clip: Output, stacked: bool = False, **texts: str) -> list[Output]:
    """The conditioning of each text, by title, side by side in a group that has begun, or below each other."""
    made: list[Output] = []
    for title, text in texts.items():
        if made and not stacked:
            g.column(g.width)
        made.append(g.add("CLIPTextEncode", title.replace("_", " ").capitalize(), clip=clip, text=text))
    return made


def start(g: Graph, model: dict[str, str], title: str, text: str, **texts: str) -> list[Output]:
    """The upper row of most workflows: [model, vae, prompts ...], those of **texts** or a scene."""
    g.group("1. Checkpoint", LOADER)
    note(g, title, text, model)
    g.column(LOADER)
    network, clip, vae = checkpoint(g, model)
    g.group("2. Prompt", TEXTS if len(texts) < 3 else 210)
    made = prompts(g, clip, **(texts or {"prompt": SCENE, "negative_prompt": POOR}))
    g.below()
    return [network, vae, *made]


def picture(g: Graph, vae: Output, height: int) -> tuple[Output, Output]:
    """A picture of the user's, made so high, as (latent, mask). Hosts old and new have this node as it is here."""
    g.group("3. Picture", 220)
    image, mask = g.add("LoadImage", "Your picture", image=PICTURE)
    size = {"upscale_method": "lanczos", "width": 0, "height": height, "crop": "disabled"}
    g.column(190)
    pixels = g.add("ImageScale", "Resize (0: auto)", image=image, **size)
    return g.add("VAEEncode", pixels=pixels, vae=vae), mask


def empty(g: Graph, side: int) -> Output:
    return g.add("EmptyLatentImage", width=side, height=side, batch_size=1)


def ksample(
    g: Graph,
    model: Output,
    positive: Output,
    negative: Output,
    latent: Output,
    steps: int,
    denoise: float = 1.0,
    **more,
) -> Output:
    """The host's KSampler with our **dpmpp_2m** on our **karras**."""
    solver = {"sampler_name": "fewstep_dpmpp_2m", "scheduler": "fewstep_karras", "steps": steps, "denoise": denoise}
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return g.add("KSampler", **inputs, **(solver | {"seed": 1, "cfg": 7.0} | more))


def solver(g: Graph, number: int, model: Output, sampler: str, schedule: str, steps: int, **more: Any) -> list[Output]:
    """A group with sampler and schedule, [SAMPLER, SIGMAS]."""
    g.group(f"{number}. Solver")
    made = g.add("FewStepSampler", sampler=sampler)
    g.column()
    return [made, g.add("FewStepScheduler", model=model, schedule=schedule, steps=steps, **more)]


def few_words(g: Graph, model: Output, sampler: str, steps: int, denoise: float = 1.0) -> tuple[Output, Output]:
    """Sampler and **karras** by the host's nodes, which are small: (SAMPLER, SIGMAS)."""
    sigmas = g.add("BasicScheduler", model=model, scheduler="fewstep_karras", steps=steps, denoise=denoise)
    return g.add("KSamplerSelect", sampler_name=f"fewstep_{sampler}"), sigmas


def sample(
    g: Graph, model: Output, prompts: list[Output], sampler: Output, sigmas: Output, latent: Output, cfg: float, **more
) -> Output:
    positive, negative = prompts
    inputs = {"model": model, "positive": positive, "negative": negative, "sampler": sampler, "sigmas": sigmas}
    samples, _ = g.add("SamplerCustom", **inputs, latent_image=latent, cfg=cfg, **({"noise_seed": 1} | more))
    return samples


def decode(g: Graph, samples: Output, vae: Output | None) -> Output:
    """Latents of the demo model, which has no VAE, go without one."""
    return g.add("VAEDecode", samples=samples, vae=vae) if vae else g.add("FewStepDemoDecode", samples=samples)


def save(g: Graph, samples: Output, vae: Output | None, prefix: str, stacked: bool = False) -> None:
    """A group with the image, in one column or two."""
    g.group("Image", LARGE if stacked else SMALL)
    image = decode(g, samples, vae)
    if not stacked:
        g.column(LARGE)
    g.add("SaveImage", images=image, filename_prefix=prefix)


def demo_model(
    g: Graph, title: str, text: str, prompt: str, images: int, then: str | None = None, stacked: bool = False
) -> list[Output]:
    """The upper row of those on the demo model, [model, positive, negative, latent] and the prompt of **then**; in one
    column, the first of the only row."""
    g.group("1. Demo model and prompt", 300 if stacked else LOADER)
    g.note(title, text)
    if stacked:
        made = [*g.add("FewStepDemoModel", "Demo Model (emoji)", prompt=prompt)]
        return [*made, g.add("FewStepDemoLatent", batch_size=images)]
    g.column(280)
    made = [*g.add("FewStepDemoModel", "Demo Model (emoji)" if then is None else "Before", prompt=prompt)]
    if then is not None:
        g.column(280)
        _, after, _ = g.add("FewStepDemoModel", "After", prompt=then)
    g.column(210)
    made.append(g.add("FewStepDemoLatent", batch_size=images))
    g.below()
    return made if then is None else [*made, after]


# The workflows


def demo(g: Graph) -> None:
    model, positive, negative, latent = demo_model(
        g,
        "Few-Step demo",
        "Nothing to download: a small text-to-emoji model comes with the pack. Change the prompt "
        "(smileys, animals, food), the type of model, the sampler, the schedule or the number of steps, and run it.\n\n"
        "For a checkpoint of your own, put its MODEL, prompts, latent and VAE Decode in the place of the demo nodes.",
        "cat face",
        4,
    )
    sampler, sigmas = solver(g, 2, model, "dpmpp_2m", "karras", 10)
    g.group("3. Sampling", 250)
    save(g, sample(g, model, [positive, negative], sampler, sigmas, latent, 3.0), None, "fewstep_demo", stacked=True)


def demo_image_to_image(g: Graph) -> None:
    model, positive, negative, latent, after = demo_model(
        g,
        "Image to image",
        "The first KSampler makes an image of *Before*. The second adds noise to it and makes an image "
        "of *After* from there. Its **denoise** says how much is replaced: 0.4 keeps nearly all, 0.8 little.\n\n"
        "Nothing to download. For your picture, put *Load Image* and *Demo Encode* in the place of the first KSampler.",
        "cat face",
        4,
        "dog face",
    )
    g.group("2. An image", 270)
    first = ksample(g, model, positive, negative, latent, 12, cfg=3.0)
    g.group("3. Image to image", 270)
    second = ksample(g, model, after, negative, first, 12, 0.6, cfg=3.0)
    g.group("Preview", 220)
    g.add("PreviewImage", "First image", images=decode(g, first, None))
    save(g, second, None, "fewstep_demo_image_to_image", stacked=True)


def demo_compare(g: Graph) -> None:
    model, positive, negative, latent = demo_model(
        g,
        "Compare samplers",
        "Runs every sampler with every schedule and number of steps, from the same noise. It gives "
        "a sheet of images, and a chart of the error against an image of many steps.\n\nNothing to download. If you "
        "stop it, what is finished is kept.",
        "cat face",
        1,
        stacked=True,
    )
    compare(g, 2, model, positive, negative, latent, None, 3.0, "4, 6, 8", tile=128)


def compare(
    g: Graph, number: int, model: Output, positive: Output, negative: Output, latent: Output, vae: Output | None,
    cfg: float, steps: str, **more: Any,
) -> None:  # fmt: skip
    """The rest of the only row of a comparison: two rows would be too high for a small screen."""
    prefix = "fewstep_compare" if vae else "fewstep_demo_compare"
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent, "cfg": cfg}
    names = {
        "samplers": "euler\ndpmpp_2m\nfewstep_dpmpp_2m\nfewstep_ipndm_v",
        "schedules": "karras\nfewstep_karras*",
    }
    g.group(f"{number}. Comparison", 360)
    sheet, chart, *_ = g.add("FewStepCompare", **inputs, **({"vae": vae} if vae else {}), **names, steps=steps, **more)
    g.group("Sheet", 360 if vae is None else 250)
    g.add("SaveImage", images=sheet, filename_prefix=prefix)
    g.group("Errors", 360 if vae is None else 280)
    g.add("SaveImage", images=chart, filename_prefix=f"{prefix}_chart")


def demo_calibrate(g: Graph) -> None:
    model, positive, negative, latent = demo_model(
        g,
        "Calibrate a plan, and use it",
        "Fits noise levels and solver coefficients to a model, a guidance scale and 5 evaluations. The plan is "
        "written to **models/fewstep**; *Few-Step Load Plan* reads it.\n\nNothing to download. "
        "On the demo model it takes a few minutes without a GPU. If you stop it, the best plan so far is kept.",
        "cat face",
        4,
    )
    calibrate(g, 2, model, [positive, negative], positive, latent, None, 3.0, 5, "demo_cfg3_5", base="dpmpp_2m")


def calibrate(
    g: Graph, number: int, model: Output, prompts: list[Output], used: Output, latent: Output | None,
    vae: Output | None, cfg: float, evaluations: int, filename: str, **more: Any,
) -> None:  # fmt: skip
    """The lower row of a calibration: the plan, its file, and an image with it; an empty latent where none is given."""
    positive, negative = prompts
    own = latent is None
    g.group(f"{number}. Calibration", 300)
    latent = latent or empty(g, 512)
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent, "cfg": cfg}
    plan, chart, _ = g.add("FewStepCalibrate", **inputs, evaluations=evaluations, **more)
    g.column(210)
    saved, _ = g.add("FewStepSavePlan", plan=plan, filename=filename)
    g.add("PreviewImage", "How the error fell", images=chart)
    g.group(f"{number + 1}. Use", 270)
    sampler, sigmas = g.add("FewStepPlanSampler", plan=saved, model=model)
    g.column(220)
    samples = sample(g, model, [used, negative], sampler, sigmas, latent, cfg)
    if own:
        g.move(latent)
    save(g, samples, vae, "fewstep_calibrated" if vae else "fewstep_demo_calibrated", stacked=True)


def demo_distil(g: Graph) -> None:
    model, positive, negative, latent = demo_model(
        g,
        "Distil, and use the student",
        "Trains a **LoRA** with which a few evaluations without guidance give nearly the image of many with guidance. "
        "It is written to **models/loras**.\n\nNothing to download. This takes some minutes without a GPU, and shows "
        "how it is done: a good student is trained for hours. If you stop it, the best student so far is kept.",
        "cat face",
        4,
        stacked=True,
    )
    small = {"rank": 16, "iterations": 40, "learning_rate": 0.001, "teacher_steps": 8, "filename": "demo_student"}
    distil(g, 2, model, [positive, negative], positive, latent, None, 3.0, **small)


def distil(
    g: Graph, number: int, model: Output, prompts: list[Output], used: Output, latent: Output, vae: Output | None,
    cfg: float, **more: Any,
) -> None:  # fmt: skip
    """The rest of the only row of a distillation: the student, and an image with it; two rows would be too high."""
    positive, negative = prompts
    g.group(f"{number}. Distillation", 300)
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent, "cfg": cfg}
    student, chart, _ = g.add("FewStepDistill", **inputs, evaluations=4, **more)
    g.group(f"{number + 1}. Use, at cfg 1", 270)
    sampler, sigmas, _ = g.add("FewStepAuto", model=student, evaluations=4, cfg=1.0)
    g.add("PreviewImage", "How it learned", images=chart)
    g.column(260)
    samples = sample(g, student, [used, negative], sampler, sigmas, latent, 1.0)
    prefix = "fewstep_student" if vae else "fewstep_demo_student"
    g.add("SaveImage", images=decode(g, samples, vae), filename_prefix=prefix)


def demo_guidance_interval(g: Graph) -> None:
    model, positive, negative, latent = demo_model(
        g,
        "Guidance in an interval",
        "Guidance is used only in the middle of the run (Kynkäänniemi et al. 2024); the other "
        "steps take half the time. At strong guidance this gives more natural colours and more variety.\n\nNothing to "
        "download. Choose **constant** in *Few-Step Guidance*, and see what changes.",
        "cat face",
        8,
    )
    guidance_interval(g, 2, model, positive, negative, latent, None, 6.0)


def guidance_interval(
    g: Graph, number: int, model: Output, positive: Output, negative: Output, latent: Output | None, vae: Output | None,
    cfg: float,
) -> None:  # fmt: skip
    """The lower row with a schedule of guidance in the model, for KSampler; an empty latent where none is given."""
    g.group(f"{number}. Guidance", 290)
    guidance = g.add("FewStepGuidance", schedule="interval", cfg=cfg)
    g.column(220)
    guided = g.add("FewStepGuidancePatch", model=model, guidance=guidance)
    latent = latent or empty(g, 512)
    g.group(f"{number + 1}. Sampling", 300)
    samples = ksample(g, guided, positive, negative, latent, 20, cfg=cfg)
    save(g, samples, vae, "fewstep_guidance_interval" if vae else "fewstep_demo_guidance_interval")


def demo_inversion(g: Graph) -> None:
    model, positive, negative, latent, after = demo_model(
        g,
        "Edit by inversion",
        "The first KSampler makes an image of *Before*. *Few-Step Invert* finds the noise from which "
        "the sampler makes this very image. Sampled with the prompt *After*, this noise gives a changed picture.\n\n"
        "Nothing to download. Write the first prompt into *After*, and you get the image back.",
        "cat face",
        4,
        "dog face",
    )
    g.group("2. An image", 230)
    first = ksample(g, model, positive, negative, latent, 12, cfg=3.0)
    g.group("3. Steps", 190)
    inversion(g, 4, model, positive, after, negative, first, None, 3.0)


def inversion(
    g: Graph, number: int, model: Output, now: Output, then: Output, negative: Output, latent: Output,
    vae: Output | None, cfg: float,
) -> None:  # fmt: skip
    """The rest of the lower row: the noise of a latent, sampled with another prompt."""
    sampler, sigmas = few_words(g, model, "ddim", 20)
    g.group(f"{number}. Inversion", 210)
    inputs = {"model": model, "positive": now, "negative": negative, "latent_image": latent, "sigmas": sigmas}
    noisy, _, _ = g.add("FewStepInvert", **inputs, sampler="ddim", cfg=1.0)
    g.group(f"{number + 1}. Sampling", 210)
    samples = sample(g, model, [then, negative], sampler, sigmas, noisy, cfg, add_noise=False)
    save(g, samples, vae, "fewstep_inversion" if vae else "fewstep_demo_inversion", stacked=True)


def sd15_text_to_image(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "DPM-Solver++ 2M, Karras, 20 steps",
        "A safe choice. Few-Step's samplers and schedules are in KSampler's own "
        "lists; their names begin with **fewstep_**. The rest of a workflow stays as it is.\n\nTry 10 to 20 steps.",
    )
    g.group("3. Sampling", 220)
    latent = empty(g, 512)
    g.column()
    save(g, ksample(g, model, positive, negative, latent, 20), vae, "fewstep_dpmpp_2m")


def sd15_amed(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "AMED, 10 evaluations",
        "Follows the plan that the authors of AMED trained for SD1.5 at guidance 7.5 (Zhou et "
        "al., CVPR 2024). The plan says at which noise level each evaluation is made.\n\nIn KSampler, "
        "**fewstep_amed_dpm_2m** with 10 steps does the same.",
    )
    g.group("3. Plan", 300)
    plan, _ = g.add("FewStepLoadPlan")
    g.column()
    sampler, sigmas = g.add("FewStepPlanSampler", plan=plan, model=model)
    g.group("4. Sampling", 260)
    latent = empty(g, 512)
    samples = sample(g, model, [positive, negative], sampler, sigmas, latent, 7.5)
    g.move(latent)
    save(g, samples, vae, "fewstep_amed")


def sd15_auto(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "Auto, 8 evaluations",
        "Set **evaluations** of *Few-Step Auto*: how many times the model may run. The node chooses the "
        "sampler and the schedule that were best at that number, and says why.",
    )
    g.group("3. Choice", 340)
    sampler, sigmas, _ = g.add("FewStepAuto", model=model, evaluations=8, cfg=7.0)
    g.group("4. Sampling", 260)
    latent = empty(g, 512)
    samples = sample(g, model, [positive, negative], sampler, sigmas, latent, 7.0)
    g.move(latent)
    save(g, samples, vae, "fewstep_auto")


def sdxl_text_to_image(g: Graph) -> None:
    model, vae, *texts = start(
        g,
        SDXL,
        "SDXL in 10 steps",
        "The noise levels are those of Align Your Steps for SDXL (**table** = **sdxl**), which were "
        "made for 10 steps. With more steps try **karras**, too.",
    )
    sampler, sigmas = solver(g, 3, model, "dpmpp_2m", "ays", 10, table="sdxl")
    g.group("4. Sampling", 240)
    latent = empty(g, 1024)
    samples = sample(g, model, texts, sampler, sigmas, latent, 6.0)
    g.move(latent)
    save(g, samples, vae, "fewstep_sdxl")


def sdxl_lightning(g: Graph) -> None:
    model, vae, *texts = start(
        g,
        LIGHTNING,
        "SDXL Lightning, 4 steps",
        "A distilled model gives its best image at the noise levels that it was trained on: "
        "schedule **trained**. It needs no guidance (cfg 1), so the negative prompt is not used. For a file of 2 "
        "or 8 steps, set **steps** to that number.",
    )
    sampler, sigmas = solver(g, 3, model, "euler", "trained", 4, distilled="sdxl_lightning")
    g.group("4. Sampling", 240)
    latent = empty(g, 1024)
    samples = sample(g, model, texts, sampler, sigmas, latent, 1.0)
    g.move(latent)
    save(g, samples, vae, "fewstep_sdxl_lightning")


def flux_schnell(g: Graph) -> None:
    model, vae, *texts = start(
        g,
        SCHNELL,
        "Flux schnell, 4 steps",
        "A distilled model gives its best image at the noise levels that it was trained on: "
        "schedule **trained**, with 1 to 4 steps. It needs no guidance (cfg 1), so the "
        "negative prompt is not used.",
        prompt=SCENE,
        negative_prompt="",
    )
    sampler, sigmas = solver(g, 3, model, "euler", "trained", 4, distilled="flux_schnell")
    g.group("4. Sampling", 240)
    latent = g.add("EmptySD3LatentImage", width=1024, height=1024, batch_size=1)
    samples = sample(g, model, texts, sampler, sigmas, latent, 1.0)
    g.move(latent)
    save(g, samples, vae, "fewstep_flux_schnell")


def sdxl_base_and_refiner(g: Graph) -> None:
    g.group("1. Checkpoints", 250)
    note(
        g,
        "SDXL, base and refiner",
        "The base model makes the first 16 of 20 steps, and the refiner the last 4. "
        "*SplitSigmas* splits the noise levels between them.",
        SDXL,
        REFINER,
        more="",
    )
    g.column(230)
    model, clip, _ = checkpoint(g, SDXL, "Base")
    refiner, refiner_clip, vae = checkpoint(g, REFINER, "Refiner")
    g.group("2. Prompt, for base and refiner", 230)
    positive, finer = (g.add("CLIPTextEncode", "Prompt", clip=c, text=SCENE) for c in (clip, refiner_clip))
    g.column(230)
    negative, coarser = (g.add("CLIPTextEncode", "Negative prompt", clip=c, text=POOR) for c in (clip, refiner_clip))
    g.below()
    g.group("3. Solver", 200)
    sampler, sigmas = few_words(g, model, "dpmpp_2m", 20)
    g.column(200)
    high, low = g.add("SplitSigmas", sigmas=sigmas, step=16)
    latent = empty(g, 1024)
    g.group("4. Base", 210)
    samples = sample(g, model, [positive, negative], sampler, high, latent, 6.0)
    g.group("5. Refiner", 210)
    samples = sample(g, refiner, [finer, coarser], sampler, low, samples, 6.0, add_noise=False)
    save(g, samples, vae, "fewstep_sdxl_refined")


def sd15_image_to_image(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "Image to image",
        "**denoise** says how much of your picture is replaced: 0.3 keeps nearly all, 0.8 only the "
        "composition. KSampler makes as many steps as you set, whatever **denoise** is.",
        prompt=f"{GIRL}, detailed illustration, soft light",
        negative_prompt=POOR,
    )
    latent, _ = picture(g, vae, 512)
    g.group("4. Sampling", 290)
    save(g, ksample(g, model, positive, negative, latent, 12, 0.6), vae, "fewstep_image_to_image")


def sdxl_image_to_image(g: Graph) -> None:
    model, vae, *texts = start(
        g,
        SDXL,
        "Image to image with SDXL",
        "**denoise** of Few-Step Scheduler says how much of your picture is replaced: 0.3 "
        "keeps nearly all, 0.8 only the composition.",
        prompt=f"{GIRL}, detailed illustration, soft light",
        negative_prompt=POOR,
    )
    latent, _ = picture(g, vae, 1024)
    sampler = g.add("KSamplerSelect", sampler_name="fewstep_dpmpp_2m")
    g.group("4. Levels")
    sigmas = g.add("FewStepScheduler", model=model, schedule="karras", steps=12, denoise=0.6)
    g.group("5. Sampling", 230)
    save(g, sample(g, model, texts, sampler, sigmas, latent, 6.0), vae, "fewstep_sdxl_image_to_image", stacked=True)


def sd15_inpainting(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "Inpainting",
        "Paint a mask: right-click your picture and choose *Open in MaskEditor*. Only the masked "
        "part changes. The prompt describes the whole picture. Without a mask nothing changes.",
        prompt=f"{GIRL}, a castle in the distance, illustration",
        negative_prompt=POOR,
    )
    latent, mask = picture(g, vae, 512)
    masked = g.add("SetLatentNoiseMask", samples=latent, mask=mask)
    g.group("4. Sampling", 290)
    save(g, ksample(g, model, positive, negative, masked, 15, 0.9), vae, "fewstep_inpainting")


def sd15_hires_fix(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "Hires fix",
        "First a picture of the size that the model was trained for, then the same at twice the size, "
        "with new detail. **denoise** of the second pass: 0.4 keeps the drawing, 0.6 adds more detail.",
    )
    g.group("3. First pass", 210)
    latent = empty(g, 512)
    g.column(260)
    first = ksample(g, model, positive, negative, latent, 15)
    larger = g.add("LatentUpscaleBy", samples=first, upscale_method="bislerp", scale_by=2.0)
    g.group("4. Second pass", 270)
    save(g, ksample(g, model, positive, negative, larger, 10, 0.5), vae, "fewstep_hires_fix")


def sd15_guidance_interval(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "Guidance in an interval",
        "Guidance is used only in the middle of the run (Kynkäänniemi et al. 2024). At "
        "strong guidance this gives more natural colours and more variety, and the other steps take half the time.",
    )
    guidance_interval(g, 3, model, positive, negative, None, vae, 9.0)


def sd15_inversion(g: Graph) -> None:
    model, vae, now, then, negative = start(
        g,
        SD15,
        "Edit by inversion",
        "*Few-Step Invert* finds the noise from which the sampler makes your picture. Sampled with another prompt, "
        "this noise gives a changed picture. A higher **cfg** in the sampler changes it more.",
        what_it_shows=GIRL,
        what_it_should_show=GIRL.replace("pink dress", "blue coat").replace("green hill", "snowy hill"),
        negative_prompt="",
    )
    latent, _ = picture(g, vae, 512)
    g.group("4. Steps", 210)
    inversion(g, 5, model, now, then, negative, latent, vae, 3.0)


def sd15_diffedit(g: Graph) -> None:
    model, vae, now, then, negative = start(
        g,
        SD15,
        "DiffEdit",
        "Your picture changes only where two prompts differ (Couairon et al. 2022). A lower **threshold** changes "
        "more.",
        what_it_shows=GIRL,
        what_it_should_show=GIRL.replace("pink dress", "blue coat"),
        negative_prompt="",
    )
    latent, _ = picture(g, vae, 512)
    g.group("4. Mask", 210)
    mask, _ = g.add("FewStepDiffEditMask", "DiffEdit Mask", model=model, source=now, target=then, latent_image=latent)
    masked = g.add("SetLatentNoiseMask", "Use the mask", samples=latent, mask=mask)
    g.group("5. Inversion", 210)
    sigmas = g.add("BasicScheduler", model=model, scheduler="fewstep_karras", steps=15, denoise=0.7)
    inputs = {"model": model, "positive": now, "negative": negative, "latent_image": latent, "sigmas": sigmas}
    _, noise, _ = g.add("FewStepInvert", **inputs, sampler="ddim", cfg=1.0)
    g.under(latent)
    sampler = g.add("KSamplerSelect", sampler_name="fewstep_ddim")
    g.group("6. Sampling", 210)
    guider = g.add("CFGGuider", model=model, positive=then, negative=negative, cfg=5.0)
    inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": masked}
    samples, _ = g.add("SamplerCustomAdvanced", "Sampler", **inputs)
    save(g, samples, vae, "fewstep_diffedit", stacked=True)


def sd15_prompts(g: Graph, title: str, text: str, stacked: bool = False) -> tuple[Output, Output, list[Output], Output]:
    """Model, VAE, [both prompts, negative] and the first of both, for work on several prompts: the upper row, or two
    columns of the only row."""
    g.group("1. Checkpoint", LOADER if stacked else 210)
    note(g, title, text, SD15, more=", or another")
    if not stacked:
        g.column(210)
    model, clip, vae = checkpoint(g, SD15)
    g.group("2. Your prompts", 210)
    texts = [SCENE, "portrait of an old fisherman, wrinkles, soft light, photograph"]
    first, second, negative = prompts(g, clip, stacked, prompt_1=texts[0], prompt_2=texts[1], negative_prompt=POOR)
    if not stacked:
        g.column(190)
    joined = g.add("ConditioningCombine", "Both", conditioning_1=first, conditioning_2=second)
    if not stacked:
        g.below()
    return model, vae, [joined, negative], first


def sd15_calibrate(g: Graph) -> None:
    model, vae, both, first = sd15_prompts(
        g, "Calibrate a plan, and use it", "Fits a plan to your model. Later, load it with *Few-Step Load Plan*."
    )
    calibrate(g, 3, model, both, first, None, vae, 7.0, 6, "sd15_cfg7_6")


def sd15_distil(g: Graph) -> None:
    model, vae, both, first = sd15_prompts(
        g,
        "Distil, and use the student",
        "Trains a **LoRA** for 4 evaluations at cfg 1. It takes hours on a GPU. Later, use *Load LoRA* and *Few-Step "
        "Auto*.",
        stacked=True,
    )
    g.under(vae)
    distil(g, 3, model, both, first, empty(g, 512), vae, 7.0, filename="sd15_4_steps")


def sd15_compare(g: Graph) -> None:
    g.group("1. Checkpoint", LOADER)
    note(
        g,
        "Compare samplers",
        "Runs every sampler with every schedule and number of steps, from the same noise. It "
        "gives one sheet of images, and a chart of the error against an image of many steps. Use the names in "
        "KSampler's lists, ComfyUI's and Few-Step's.\n\nIf you stop it, what is finished is kept.",
        SD15,
    )
    model, clip, vae = checkpoint(g, SD15)
    latent = empty(g, 512)
    g.group("2. Prompt", 210)
    positive, negative = prompts(g, clip, stacked=True, prompt=SCENE, negative_prompt=POOR)
    compare(g, 3, model, positive, negative, latent, vae, 7.0, "6, 10")


WORKFLOWS: dict[str, Callable[[Graph], None]] = {
    "Few-Step demo (no download)": demo,
    "Demo image to image": demo_image_to_image,
    "Demo compare samplers": demo_compare,
    "Demo calibrate a plan": demo_calibrate,
    "Demo distil": demo_distil,
    "Demo guidance interval": demo_guidance_interval,
    "Demo edit by inversion": demo_inversion,
    "SD1.5 DPM++ 2M, 20 steps": sd15_text_to_image,
    "SD1.5 AMED, 10 evaluations": sd15_amed,
    "SD1.5 auto, 8 evaluations": sd15_auto,
    "SDXL in 10 steps": sdxl_text_to_image,
    "SDXL base and refiner": sdxl_base_and_refiner,
    "SDXL Lightning, 4 steps": sdxl_lightning,
    "Flux schnell, 4 steps": flux_schnell,
    "SD1.5 image to image": sd15_image_to_image,
    "SDXL image to image": sdxl_image_to_image,
    "SD1.5 inpainting": sd15_inpainting,
    "SD1.5 hires fix": sd15_hires_fix,
    "SD1.5 guidance interval": sd15_guidance_interval,
    "SD1.5 edit by inversion": sd15_inversion,
    "SD1.5 DiffEdit": sd15_diffedit,
    "SD1.5 calibrate a plan": sd15_calibrate,
    "SD1.5 distil and use it": sd15_distil,
    "SD1.5 compare samplers": sd15_compare,
}


def make(name: str, object_info: dict[str, Any], version: str) -> dict[str, Any]:
    """A workflow as it is saved, for ComfyUI of this version."""
    pack = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own, core = {"cnr_id": pack["name"], "ver": pack["version"]}, {"cnr_id": "comfy-core", "ver": version}
    graph = Graph(name, object_info, own, core)
    WORKFLOWS[name](graph)
    return graph.saved()


def written(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def in_a_row(images: list[Image.Image], apart: int = 8) -> Image.Image:
    """Images beside each other, as high as the first."""
    scaled = [
        image.resize((round(image.width * images[0].height / image.height), images[0].height)) for image in images
    ]
    row = Image.new("RGB", (sum(image.width + apart for image in scaled) - apart, images[0].height), BACK)
    left = 0
    for image in scaled:
        row.paste(image, (left, 0))
        left += image.width + apart
    return row


def in_rows(rows: list[list[Image.Image]], apart: int = 8) -> Image.Image:
    """Rows below each other, each as wide as the widest."""
    lines = [in_a_row(row) for row in rows]
    width = max(line.width for line in lines)
    scaled = [line.resize((width, round(line.height * width / line.width))) for line in lines]
    whole = Image.new("RGB", (width, sum(line.height + apart for line in scaled) - apart), BACK)
    top = 0
    for line in scaled:
        whole.paste(line, (0, top))
        top += line.height + apart
    return whole


def made(host: Server, prompt: dict[str, Any], folder: Path) -> list[list[Image.Image]]:
    """What a running host makes of a prompt, in rows: charts that it shows, and images that it saves, four in each."""
    sys.path.insert(0, str(ROOT / "demo"))
    import run

    names = asyncio.run(run.run(host.url, prompt))
    shown = [Image.open(folder / "temp" / name).convert("RGB") for name in names if not name.startswith("fewstep_")]
    charts = [image for image in shown if image.width > image.height]
    saved = [Image.open(folder / name).convert("RGB") for name in names if name.startswith("fewstep_")]
    return [row for row in (charts, *(saved[i : i + 4] for i in range(0, len(saved), 4))) if row]


def main() -> None:
    """With **--run**, those on the demo model are run, for small pictures of what they make."""
    PROMPTS.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        server(None, "--output-directory", folder, "--temp-directory", folder) as host,
    ):
        info = host.get("/object_info")
        version = host.get("/system_stats")["system"]["comfyui_version"]
        for name in WORKFLOWS:
            workflow = make(name, info, version)
            prompt = to_prompt(workflow, info)
            (FOLDER / f"{name}.json").write_text(written(workflow))
            (PROMPTS / f"{name}.json").write_text(written(prompt))
            picture = FOLDER / f"{name}.jpg"
            print(f"{FOLDER.name}/{name}.json", flush=True)
            if "CheckpointLoaderSimple" in {node["type"] for node in workflow["nodes"]}:
                thumbnail(name, workflow).save(picture, quality=85)
            elif "--run" in sys.argv or not picture.exists():
                thumbnail(name, workflow, in_rows(made(host, prompt, Path(folder)))).save(picture, quality=75)


if __name__ == "__main__":
    main()
