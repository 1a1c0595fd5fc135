"""Makes the example workflows: workflows/*.json, which ComfyUI shows under Templates, with a small picture each, and
their prompts for the API.

    .host/venv/bin/python tools/workflows.py         (make workflows)

Each is a function that puts nodes into a graph, from left to right; its name is its file's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import tomllib
from host import ROOT, server
from thumbnail import thumbnail
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
PICTURE = "example.png"  # which comes with ComfyUI, in its folder of inputs

SCENE = "a lighthouse on a cliff at dawn, waves, drifting fog, warm light in the window, oil painting"
GIRL = "a girl with fox ears in a pink dress on a green hill, blue sky, white clouds"  # what PICTURE shows
POOR = "blurry, low quality, text, watermark"


# Parts


def checkpoint(g: Graph, model: dict[str, str], title: str | None = None) -> tuple[Output, Output, Output]:
    """Model, CLIP and VAE."""
    return g.add("CheckpointLoaderSimple", title, models=[model], ckpt_name=model["name"])


def prompts(g: Graph, clip: Output, **texts: str) -> list[Output]:
    """The conditioning of each text, by title."""
    return [
        g.add("CLIPTextEncode", title.replace("_", " ").capitalize(), clip=clip, text=texts[title]) for title in texts
    ]


def start(g: Graph, model: dict[str, str], text: str, **texts: str) -> list[Output]:
    """The first two groups of most workflows: [model, vae, prompts ...], those of `texts` or a scene."""
    g.group("1. Checkpoint")
    g.note(f"{text}\n\nCheckpoint: `{model['name']}`, in `models/checkpoints`; any other of this kind works.")
    network, clip, vae = checkpoint(g, model)
    g.group("2. Prompt")
    return [network, vae, *prompts(g, clip, **(texts or {"prompt": SCENE, "negative_prompt": POOR}))]


def picture(g: Graph, vae: Output, height: int) -> tuple[Output, Output]:
    """A picture of the user's, made so high, as (latent, mask). Hosts old and new have this node as it is here."""
    image, mask = g.add("LoadImage", "Your picture", image=PICTURE)
    size = {"upscale_method": "lanczos", "width": 0, "height": height, "crop": "disabled"}
    pixels = g.add("ImageScale", "Resize (0: follows from the other side)", image=image, **size)
    return g.add("VAEEncode", pixels=pixels, vae=vae), mask


def empty(g: Graph, side: int) -> Output:
    return g.add("EmptyLatentImage", width=side, height=side, batch_size=1)


def ksample(
    g: Graph, model: Output, positive: Output, negative: Output, latent: Output, steps: int, denoise: float = 1.0
) -> Output:
    """The host's KSampler with our `dpmpp_2m` on our `karras`."""
    solver = {"sampler_name": "fewstep_dpmpp_2m", "scheduler": "fewstep_karras", "steps": steps, "denoise": denoise}
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return g.add("KSampler", **inputs, **solver, seed=1, cfg=7.0)


def sample(g: Graph, guider: Output, sampler: Output, sigmas: Output, latent: Output, seed: int = 1) -> Output:
    noise = g.add("RandomNoise", noise_seed=seed)
    inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    samples, _ = g.add("SamplerCustomAdvanced", **inputs)
    return samples


def save(g: Graph, samples: Output, vae: Output, prefix: str) -> None:
    g.group("Image")
    g.add("SaveImage", images=g.add("VAEDecode", samples=samples, vae=vae), filename_prefix=prefix)


# The workflows


def demo(g: Graph) -> None:
    g.group("1. Model")
    g.note(
        "## Few-Step demo\nNothing to download: a small text-to-emoji model comes with the pack.\n\n"
        "Change the prompt (smileys, animals, food), the type of model (noise prediction as in Stable Diffusion, "
        "rectified flow as in SD3 and Flux), the sampler, the schedule or the number of steps, and run it.\n\nTo use a "
        "checkpoint of your own, replace the demo nodes with its MODEL, conditioning, latent and VAE Decode."
    )
    model, positive, negative = g.add("FewStepDemoModel", prompt="cat face")
    latent = g.add("FewStepDemoLatent", batch_size=4)
    g.group("2. Solver")
    sampler = g.add("FewStepSampler", sampler="dpmpp_2m")
    sigmas = g.add("FewStepScheduler", model=model, schedule="karras", steps=10)
    g.group("3. Sampling")
    inputs = {"model": model, "positive": positive, "negative": negative, "sampler": sampler, "sigmas": sigmas}
    samples, _ = g.add("SamplerCustom", **inputs, latent_image=latent, noise_seed=1, cfg=3.0)
    g.group("Image")
    g.add("SaveImage", images=g.add("FewStepDemoDecode", samples=samples), filename_prefix="fewstep_demo")


def sd15_text_to_image(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "## DPM-Solver++ 2M, Karras, 20 steps\nA safe choice. Few-Step's samplers and schedules are in KSampler's own "
        "lists; their names begin with `fewstep_`. The rest of a workflow stays as it is.\n\nTry 10 to 20 steps.",
    )
    g.group("3. Sampling")
    samples = ksample(g, model, positive, negative, empty(g, 512), 20)
    save(g, samples, vae, "fewstep_dpmpp_2m")


def sd15_amed(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "## AMED, 10 evaluations\nFollows the plan that the authors of AMED trained for SD1.5 at guidance 7.5 (Zhou et "
        "al., CVPR 2024). The plan says at which noise level each evaluation is made.\n\nIn KSampler, "
        "`fewstep_amed_dpm_2m` with 10 steps does the same.",
    )
    g.group("3. Plan")
    plan, _ = g.add("FewStepLoadPlan")
    sampler, sigmas = g.add("FewStepPlanSampler", plan=plan, model=model)
    g.group("4. Sampling")
    guider = g.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=7.5)
    save(g, sample(g, guider, sampler, sigmas, empty(g, 512)), vae, "fewstep_amed")


def sd15_auto(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "## Auto, 8 evaluations\nSay how many evaluations of the model you can wait for. Few-Step Auto chooses the "
        "sampler and the schedule that were best at that number, and says what it chose and why.",
    )
    g.group("3. Choice")
    sampler, sigmas, _ = g.add("FewStepAuto", model=model, evaluations=8, cfg=7.0)
    g.group("4. Sampling")
    guider = g.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=7.0)
    save(g, sample(g, guider, sampler, sigmas, empty(g, 512)), vae, "fewstep_auto")


def sdxl_text_to_image(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SDXL,
        "## SDXL in 10 steps\nThe noise levels are those of Align Your Steps for SDXL (`table` = `sdxl`), which were "
        "made for 10 steps. With more steps try `karras`, too.",
    )
    g.group("3. Solver")
    sampler = g.add("FewStepSampler", sampler="dpmpp_2m")
    sigmas = g.add("FewStepScheduler", model=model, schedule="ays", steps=10, table="sdxl")
    g.group("4. Sampling")
    guider = g.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=6.0)
    save(g, sample(g, guider, sampler, sigmas, empty(g, 1024)), vae, "fewstep_sdxl")


def sdxl_base_and_refiner(g: Graph) -> None:
    g.group("1. Checkpoints")
    g.note(
        "## SDXL, base and refiner\nThe base model makes the first 16 of 20 steps, and the refiner the last 4. "
        "*SplitSigmas* splits the noise levels between them.\n\nCheckpoints in `models/checkpoints`:\n"
        f"* `{SDXL['name']}`\n* `{REFINER['name']}`",
    )
    model, clip, _ = checkpoint(g, SDXL, "Base")
    refiner, refiner_clip, vae = checkpoint(g, REFINER, "Refiner")
    g.group("2. Prompt for the base")
    positive, negative = prompts(g, clip, prompt=SCENE, negative_prompt=POOR)
    g.group("Prompt for the refiner")
    finer, coarser = prompts(g, refiner_clip, prompt=SCENE, negative_prompt=POOR)
    g.group("3. Solver")
    sampler = g.add("FewStepSampler", sampler="dpmpp_2m")
    sigmas = g.add("FewStepScheduler", model=model, schedule="karras", steps=20)
    high, low = g.add("SplitSigmas", sigmas=sigmas, step=16)
    g.group("4. Base")
    guider = g.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=6.0)
    samples = sample(g, guider, sampler, high, empty(g, 1024))
    g.group("5. Refiner")
    guider = g.add("CFGGuider", model=refiner, positive=finer, negative=coarser, cfg=6.0)
    inputs = {"noise": g.add("DisableNoise"), "guider": guider, "sampler": sampler, "sigmas": low}
    samples, _ = g.add("SamplerCustomAdvanced", **inputs, latent_image=samples)
    save(g, samples, vae, "fewstep_sdxl_refined")


def sd15_image_to_image(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "## Image to image\n`denoise` says how much of your picture is replaced: 0.3 keeps nearly all, 0.8 only the "
        "composition. KSampler makes as many steps as you set, whatever `denoise` is.",
        prompt=f"{GIRL}, detailed illustration, soft light",
        negative_prompt=POOR,
    )
    g.group("3. Picture")
    latent, _ = picture(g, vae, 512)
    g.group("4. Sampling")
    samples = ksample(g, model, positive, negative, latent, 12, 0.6)
    save(g, samples, vae, "fewstep_image_to_image")


def sdxl_image_to_image(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SDXL,
        "## Image to image with SDXL\n`denoise` of Few-Step Scheduler says how much of your picture is replaced: 0.3 "
        "keeps nearly all, 0.8 only the composition.",
        prompt=f"{GIRL}, detailed illustration, soft light",
        negative_prompt=POOR,
    )
    g.group("3. Picture")
    latent, _ = picture(g, vae, 1024)
    g.group("4. Solver")
    sampler = g.add("FewStepSampler", sampler="dpmpp_2m")
    sigmas = g.add("FewStepScheduler", model=model, schedule="karras", steps=12, denoise=0.6)
    g.group("5. Sampling")
    guider = g.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=6.0)
    save(g, sample(g, guider, sampler, sigmas, latent), vae, "fewstep_sdxl_image_to_image")


def sd15_inpainting(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "## Inpainting\nPaint a mask: right-click your picture and choose *Open in MaskEditor*. Only the masked "
        "part changes. The prompt describes the whole picture. Without a mask nothing changes.",
        prompt=f"{GIRL}, a castle in the distance, illustration",
        negative_prompt=POOR,
    )
    g.group("3. Picture and mask")
    latent, mask = picture(g, vae, 512)
    masked = g.add("SetLatentNoiseMask", samples=latent, mask=mask)
    g.group("4. Sampling")
    samples = ksample(g, model, positive, negative, masked, 15, 0.9)
    save(g, samples, vae, "fewstep_inpainting")


def sd15_hires_fix(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "## Hires fix\nFirst a picture of the size that the model was trained for, then the same at twice the size, "
        "with new detail.\n\n`denoise` of the second pass: 0.4 keeps the drawing, 0.6 adds more detail.",
    )
    g.group("3. First pass, 512 pixels")
    first = ksample(g, model, positive, negative, empty(g, 512), 15)
    g.group("4. Second pass, 1024 pixels")
    larger = g.add("LatentUpscaleBy", samples=first, upscale_method="bislerp", scale_by=2.0)
    second = ksample(g, model, positive, negative, larger, 10, 0.5)
    save(g, second, vae, "fewstep_hires_fix")


def sd15_guidance_interval(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "## Guidance in an interval\nGuidance is used only in the middle of the run (Kynkäänniemi et al. 2024). At "
        "strong guidance this gives more natural colours and more variety, and the other steps take half the time."
        "\n\nWith "
        "KSampler, put *Few-Step Guidance Patch* between the checkpoint and KSampler instead.",
    )
    g.group("3. Guidance")
    guidance = g.add("FewStepGuidance", schedule="interval", cfg=9.0)
    guider = g.add("FewStepGuider", model=model, positive=positive, negative=negative, guidance=guidance)
    g.group("4. Solver")
    sampler = g.add("FewStepSampler", sampler="dpmpp_2m")
    sigmas = g.add("FewStepScheduler", model=model, schedule="karras", steps=20)
    g.group("5. Sampling")
    save(g, sample(g, guider, sampler, sigmas, empty(g, 512)), vae, "fewstep_guidance_interval")


def sd15_inversion(g: Graph) -> None:
    model, vae, now, then, negative = start(
        g,
        SD15,
        "## Edit by inversion\n*Few-Step Invert* finds the noise from which the sampler makes your picture, with a "
        "prompt of what it shows. Sampled with another prompt, this noise gives your picture changed.\n\nSampler and "
        "sigmas must be the same in both nodes. With the first prompt and `cfg` 1 in both, you get your picture back. "
        "A higher `cfg` in step 5 changes more.",
        what_it_shows=GIRL,
        what_it_is_to_show=GIRL.replace("pink dress", "blue coat").replace("green hill", "snowy hill"),
        negative_prompt="",
    )
    g.group("3. Picture")
    latent, _ = picture(g, vae, 512)
    g.group("4. Inversion")
    sigmas = g.add("FewStepScheduler", model=model, schedule="karras", steps=20)
    inputs = {"model": model, "positive": now, "negative": negative, "latent_image": latent, "sigmas": sigmas}
    _, noise, _ = g.add("FewStepInvert", **inputs, sampler="ddim", cfg=1.0)
    g.group("5. Sampling")
    sampler = g.add("FewStepSampler", sampler="ddim")
    guider = g.add("CFGGuider", model=model, positive=then, negative=negative, cfg=3.0)
    inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    samples, _ = g.add("SamplerCustomAdvanced", **inputs)
    save(g, samples, vae, "fewstep_inversion")


def sd15_diffedit(g: Graph) -> None:
    model, vae, now, then, negative = start(
        g,
        SD15,
        "## DiffEdit\nChanges a part of your picture without a painted mask: *Few-Step DiffEdit Mask* finds where the "
        "picture differs between two prompts (Couairon et al. 2022). The rest stays as it is.\n\nA lower `threshold` "
        "gives a larger mask. A lower `denoise` stays closer to the picture.",
        what_it_shows=GIRL,
        what_it_is_to_show=GIRL.replace("pink dress", "blue coat"),
        negative_prompt="",
    )
    g.group("3. Picture")
    latent, _ = picture(g, vae, 512)
    g.group("4. Mask")
    mask, _ = g.add("FewStepDiffEditMask", model=model, source=now, target=then, latent_image=latent)
    masked = g.add("SetLatentNoiseMask", samples=latent, mask=mask)
    g.add("PreviewImage", "What will change", images=g.add("MaskToImage", mask=mask))
    g.group("5. Inversion")
    sigmas = g.add("FewStepScheduler", model=model, schedule="karras", steps=15, denoise=0.7)
    inputs = {"model": model, "positive": now, "negative": negative, "latent_image": latent, "sigmas": sigmas}
    _, noise, _ = g.add("FewStepInvert", **inputs, sampler="ddim", cfg=1.0)
    g.group("6. Sampling")
    sampler = g.add("FewStepSampler", sampler="ddim")
    guider = g.add("CFGGuider", model=model, positive=then, negative=negative, cfg=5.0)
    inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": masked}
    samples, _ = g.add("SamplerCustomAdvanced", **inputs)
    save(g, samples, vae, "fewstep_diffedit")


def sd15_calibrate(g: Graph) -> None:
    g.group("1. Checkpoint")
    g.note(
        "## Calibrate a plan, and use it\nFits noise levels and solver coefficients to your model, your guidance and 6 "
        "evaluations. This takes up to 170 short runs of 16 images, once. The plan is written to "
        "`models/fewstep`.\n\nAfterwards, replace the calibration with *Few-Step Load Plan*, as in the workflow "
        "*AMED, 10 evaluations*. If you stop the calibration, the best plan so far is kept.\n\n"
        f"Checkpoint: `{SD15['name']}`, in `models/checkpoints`; any other works.",
    )
    model, clip, vae = checkpoint(g, SD15)
    g.group("2. Prompts like yours")
    texts = [
        SCENE,
        "portrait of an old fisherman, wrinkles, soft light, photograph",
        "a bowl of lemons on a wooden table, still life",
        "a city street in the rain at night, neon signs",
    ]
    *kinds, negative = prompts(g, clip, **{f"prompt_{k}": t for k, t in enumerate(texts, 1)}, negative_prompt=POOR)
    g.group("Joined")
    joined = kinds[0]
    for other in kinds[1:]:
        joined = g.add("ConditioningCombine", conditioning_1=joined, conditioning_2=other)
    latent = empty(g, 512)
    g.group("3. Calibration")
    inputs = {"model": model, "positive": joined, "negative": negative, "latent_image": latent}
    plan, chart, _ = g.add("FewStepCalibrate", **inputs, cfg=7.0, evaluations=6)
    plan, _ = g.add("FewStepSavePlan", plan=plan, filename="sd15_cfg7_6")
    g.add("PreviewImage", "How the error fell", images=chart)
    g.group("4. Use")
    sampler, sigmas = g.add("FewStepPlanSampler", plan=plan, model=model)
    guider = g.add("CFGGuider", model=model, positive=kinds[0], negative=negative, cfg=7.0)
    save(g, sample(g, guider, sampler, sigmas, latent), vae, "fewstep_calibrated")


def sd15_compare(g: Graph) -> None:
    model, vae, positive, negative = start(
        g,
        SD15,
        "## Compare samplers\nRuns every sampler with every schedule and number of steps, from the same noise. It "
        "gives one sheet of images, and a chart of the error against an image of many steps. Use the names in "
        "KSampler's lists, ComfyUI's and Few-Step's.\n\nIf you stop it, what is finished is kept.",
    )
    g.group("3. Comparison")
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": empty(g, 512), "vae": vae}
    sheet, chart, *_ = g.add(
        "FewStepCompare",
        **inputs,
        samplers="euler\ndpmpp_2m\nfewstep_dpmpp_2m\nfewstep_ipndm_v",
        schedules="karras\nfewstep_karras*",
        steps="6, 10",
    )
    g.group("Sheet")
    g.add("SaveImage", images=sheet, filename_prefix="fewstep_compare")
    g.group("Error against evaluations")
    g.add("SaveImage", images=chart, filename_prefix="fewstep_compare_chart")


WORKFLOWS: dict[str, Callable[[Graph], None]] = {
    "demo": demo,
    "SD1.5 text to image, DPM++ 2M Karras, 20 steps": sd15_text_to_image,
    "SD1.5 text to image, AMED, 10 evaluations": sd15_amed,
    "SD1.5 text to image, auto, 8 evaluations": sd15_auto,
    "SDXL text to image, 10 steps": sdxl_text_to_image,
    "SDXL text to image, base and refiner": sdxl_base_and_refiner,
    "SD1.5 image to image": sd15_image_to_image,
    "SDXL image to image": sdxl_image_to_image,
    "SD1.5 inpainting": sd15_inpainting,
    "SD1.5 hires fix": sd15_hires_fix,
    "SD1.5 guidance interval": sd15_guidance_interval,
    "SD1.5 edit by inversion": sd15_inversion,
    "SD1.5 edit where two prompts differ (DiffEdit)": sd15_diffedit,
    "SD1.5 calibrate a plan and use it": sd15_calibrate,
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


def main() -> None:
    PROMPTS.mkdir(exist_ok=True)
    with server() as host:
        info = host.get("/object_info")
        version = host.get("/system_stats")["system"]["comfyui_version"]
    for name in WORKFLOWS:
        workflow = make(name, info, version)
        (FOLDER / f"{name}.json").write_text(written(workflow))
        (PROMPTS / f"{name}.json").write_text(written(to_prompt(workflow, info)))
        if name != "demo":  # has a picture of what it makes
            thumbnail(workflow).save(FOLDER / f"{name}.jpg", quality=80)
        print(f"{FOLDER.name}/{name}.json")


if __name__ == "__main__":
    main()
