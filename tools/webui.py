"""Tests the extension in a real AUTOMATIC1111, Forge or reForge: `make test-webui WEBUI=/path/to/checkout`.

The checkout stays as it is: extensions, settings and images lie in .host/webui. It runs with the Python of its own
virtual environment (or that of WEBUI_PYTHON), on the CPU, and the model of a few blocks that is made here; a file given
as CHECKPOINT takes its place.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / ".host" / "webui"
WIDTH = 320
"""That of Stable Diffusion 1.5."""
TEXT = 64
"""Width of the text encoder of the small one."""
SAMPLER, SCHEDULE = "DPM++ 2M (Few-Step)", "Karras (Few-Step)"


# The stand-in


def stand_in(folder: Path, width: int) -> Path:
    """Stable Diffusion 1.5 with one level of blocks: what tells its kind, and a network small enough for a test.

    The file holds shapes, and the check extension fills in numbers. AUTOMATIC1111 reads the sizes of the parts from a
    file beside it, so that they may be small; the others know the kind by the shapes.
    """
    import torch
    from safetensors.torch import save_file

    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def res(name: str, before: int, after: int = width) -> None:
        layer(f"{name}.in_layers.0", before)
        layer(f"{name}.in_layers.2", after, before, 3, 3)
        layer(f"{name}.emb_layers.1", after, 4 * width)
        layer(f"{name}.out_layers.0", after)
        layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip_connection", after, before, 1, 1)

    def transformer(name: str) -> None:
        layer(f"{name}.norm", width)
        layer(f"{name}.proj_in", width, width, 1, 1)
        layer(f"{name}.proj_out", width, width, 1, 1)
        block = f"{name}.transformer_blocks.0"
        for attention, source in (("attn1", width), ("attn2", TEXT if small else 768)):
            layer(f"{block}.{attention}.to_q", width, width, bias=False)
            layer(f"{block}.{attention}.to_k", width, source, bias=False)
            layer(f"{block}.{attention}.to_v", width, source, bias=False)
            layer(f"{block}.{attention}.to_out.0", width, width)
        layer(f"{block}.ff.net.0.proj", 8 * width, width)
        layer(f"{block}.ff.net.2", width, 4 * width)
        for k in (1, 2, 3):
            layer(f"{block}.norm{k}", width)

    small = width != WIDTH
    unet = "model.diffusion_model"
    layer(f"{unet}.time_embed.0", 4 * width, width)
    layer(f"{unet}.time_embed.2", 4 * width, 4 * width)
    layer(f"{unet}.input_blocks.0.0", width, 4, 3, 3)
    for name, inputs in (("input_blocks.1", 1), ("middle_block", 1), ("output_blocks.0", 2), ("output_blocks.1", 2)):
        res(f"{unet}.{name}.0", inputs * width)
        transformer(f"{unet}.{name}.1")
    res(f"{unet}.middle_block.2", width)
    layer(f"{unet}.out.0", width)
    layer(f"{unet}.out.2", 4, width, 3, 3)
    if not small:
        _known_parts(layer)

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "stand-in.safetensors"
    save_file({name: torch.full(shape, 0.01, dtype=torch.float16) for name, shape in shapes.items()}, file)
    if small:
        _text_encoder(folder / "clip")
        file.with_suffix(".yaml").write_text(CONFIG.format(width=width, text=TEXT, clip=folder / "clip"))
    return file


def _known_parts(layer: Callable[..., None]) -> None:
    """The VAE and the text encoder of Stable Diffusion 1.5, in full size, of which Forge and reForge know no other."""
    widths = [128 * k for k in (1, 2, 4, 4)]

    def res(name: str, before: int, after: int) -> None:
        layer(f"{name}.norm1", before)
        layer(f"{name}.conv1", after, before, 3, 3)
        layer(f"{name}.norm2", after)
        layer(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            layer(f"{name}.nin_shortcut", after, before, 1, 1)

    for part in ("encoder", "decoder"):
        up = part == "decoder"
        vae = f"first_stage_model.{part}"
        before, levels = (512, [3, 2, 1, 0]) if up else (128, [0, 1, 2, 3])
        layer(f"{vae}.conv_in", before, 4 if up else 3, 3, 3)
        for level in levels:
            name = f"{vae}.{'up' if up else 'down'}.{level}"
            for k in range(3 if up else 2):
                res(f"{name}.block.{k}", before, widths[level])
                before = widths[level]
            if level != levels[-1]:
                layer(f"{name}.{'upsample' if up else 'downsample'}.conv", before, before, 3, 3)
        res(f"{vae}.mid.block_1", 512, 512)
        layer(f"{vae}.mid.attn_1.norm", 512)
        for k in ("q", "k", "v", "proj_out"):
            layer(f"{vae}.mid.attn_1.{k}", 512, 512, 1, 1)
        res(f"{vae}.mid.block_2", 512, 512)
        layer(f"{vae}.norm_out", before)
        layer(f"{vae}.conv_out", 3 if up else 8, before, 3, 3)
    layer("first_stage_model.quant_conv", 8, 8, 1, 1)
    layer("first_stage_model.post_quant_conv", 4, 4, 1, 1)

    text = "cond_stage_model.transformer.text_model"
    for k in range(12):
        block = f"{text}.encoder.layers.{k}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer(f"{block}.self_attn.{name}", 768, 768)
        layer(f"{block}.layer_norm1", 768)
        layer(f"{block}.layer_norm2", 768)
        layer(f"{block}.mlp.fc1", 3072, 768)
        layer(f"{block}.mlp.fc2", 768, 3072)
    layer(f"{text}.final_layer_norm", 768)
    layer(f"{text}.embeddings.token_embedding", 49408, 768, bias=False)
    layer(f"{text}.embeddings.position_embedding", 77, 768, bias=False)


def _text_encoder(folder: Path) -> None:
    """The configuration of a text encoder and a tokenizer for single letters: AUTOMATIC1111 would download them."""
    folder.mkdir(exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>"]
    vocabulary = {word: k for k, word in enumerate(words)} | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    config = {
        "model_type": "clip_text_model", "hidden_size": TEXT, "intermediate_size": 128, "num_attention_heads": 4,
        "num_hidden_layers": 2, "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


CONFIG = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 8
    channels: 4
    conditioning_key: crossattn
    scale_factor: 0.18215
    use_ema: False
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {{image_size: 8, in_channels: 4, out_channels: 4, model_channels: {width}, attention_resolutions: [1],
        num_res_blocks: 1, channel_mult: [1], num_heads: 8, use_spatial_transformer: True, transformer_depth: 1,
        context_dim: {text}, use_checkpoint: False, legacy: False}}
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig: {{double_z: True, z_channels: 4, resolution: 256, in_channels: 3, out_ch: 3, ch: 32,
          ch_mult: [1, 1, 1, 1], num_res_blocks: 1, attn_resolutions: [], dropout: 0.0}}
        lossconfig: {{target: torch.nn.Identity}}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params: {{version: "{clip}"}}
"""


# The host


class WebUI:
    """A running one."""

    def __init__(self, url: str, log: Path):
        self.url, self.log = url, log

    def call(self, path: str, data: dict[str, Any] | None = None, timeout: float = 600) -> Any:
        """GET, or POST with data.

        Raises:
            RuntimeError: with what the host answered.
        """
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read().decode(errors='replace')[:2000]}") from None

    def images(self, path: str = "txt2img", **fields: Any) -> tuple[list[Any], dict[str, Any]]:
        """Images as arrays, and what the host says of them."""
        answer = self.call(f"/sdapi/v1/{path}", _request(**fields))
        return [_picture(image) for image in answer["images"]], json.loads(answer["info"])


@contextlib.contextmanager
def running(checkout: Path, python: Path, checkpoint: Path | None, *arguments: str) -> Iterator[WebUI]:
    """The host with the extension on a free port of loopback; it is stopped on leaving, whatever happens."""
    data = DATA / checkout.resolve().name
    shutil.rmtree(data, ignore_errors=True)
    extensions = data / "extensions"
    extensions.mkdir(parents=True)
    (extensions / "few-step (my copy)").symlink_to(ROOT, target_is_directory=True)
    (extensions / "few-step check").symlink_to(ROOT / "tests" / "webui" / "check", target_is_directory=True)
    (data / "config.json").write_text(json.dumps({"live_previews_enable": False}))  # some need a file from the net
    models = data / "models" / "Stable-diffusion"
    by_file = not any((checkout / folder).is_dir() for folder in ("backend", "ldm_patched"))  # AUTOMATIC1111
    model = stand_in(models, 32 if by_file else WIDTH) if checkpoint is None else checkpoint
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = data / "server.log"
    command = [
        str(python), "launch.py", "--data-dir", str(data), "--ckpt", str(model), "--ckpt-dir", str(model.parent),
        "--skip-prepare-environment", "--skip-python-version-check", "--skip-torch-cuda-test", "--skip-version-check",
        "--no-download-sd-model", "--do-not-download-clip", "--no-half", "--use-cpu", "all", "--always-cpu",
        "--disable-nan-check", "--api", "--port", str(port), *arguments,
    ]  # fmt: skip
    environment = os.environ | {
        "IGNORE_CMD_ARGS_ERRORS": "1",  # the hosts do not know the same arguments
        "FEWSTEP_ROOT": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False", "SD_WEBUI_RESTARTING": "1", "no_proxy": "127.0.0.1,localhost",
    }  # fmt: skip
    if checkpoint is None:
        environment["FEWSTEP_STAND_IN"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that leaving happens, too
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        host = WebUI(f"http://127.0.0.1:{port}", log)
        _wait(host, process)
        host.images()  # has the host load its model, where it has not begun to
        assert host.call("/fewstep-ready"), "the model was not loaded"
        yield host
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(host: WebUI, process: subprocess.Popen[bytes], timeout: float = 900) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end and process.poll() is None:
        time.sleep(1)
        if "Startup time:" in host.log.read_text(errors="replace"):  # a request before that makes it fail
            with contextlib.suppress(OSError, RuntimeError):
                host.call("/fewstep-check", timeout=60)
                return
    tail = "\n".join(host.log.read_text(errors="replace").splitlines()[-30:])
    sys.exit(f"the WebUI did not start with both extensions; the end of {host.log}:\n{tail}")


# What is asked of it over its API; each answers with a line for the report


def _settings(**fields: Any) -> dict[str, Any]:
    """The accordion in a request."""
    names = ("sampler_options", "schedule_options", "guidance", "cfg_end", "sigma_start", "sigma_end", "power", "plan")
    defaults = ("", "", "constant", 1, 0, 0, 2, "")
    values = [fields.get(name, default) for name, default in zip(names, defaults, strict=True)]
    return {"alwayson_scripts": {"Few-Step": {"args": values}}}


def lists(host: WebUI) -> str:
    samplers = [entry["name"] for entry in host.call("/sdapi/v1/samplers") if "(Few-Step)" in entry["name"]]
    schedules = [entry["label"] for entry in host.call("/sdapi/v1/schedulers") if "(Few-Step)" in entry["label"]]
    assert SAMPLER in samplers and SCHEDULE in schedules
    scripts = host.call("/sdapi/v1/scripts")
    assert "few-step" in scripts["txt2img"] and "few-step" in scripts["img2img"]
    return f"{len(samplers)} samplers, {len(schedules)} schedules"


def text_to_image(host: WebUI) -> str:
    """The same request, the same pixels; an image of a batch is the one of its seed alone."""
    import numpy as np

    for name in (SAMPLER, "DPM++ SDE (Few-Step)"):
        ((first,), _), ((second,), _) = host.images(sampler_name=name), host.images(sampler_name=name)
        assert np.array_equal(first, second)
        batch, info = host.images(sampler_name=name, batch_size=2, seed=1)
        pictures = batch[-2:]  # a grid may come first
        (alone,), _ = host.images(sampler_name=name, seed=2)
        apart = [np.abs(pictures[0] - first).max(), np.abs(pictures[1] - alone).max()]
        assert max(apart) <= 1, (name, apart)
        assert f"Sampler: {name}, Schedule type: {SCHEDULE}" in info["infotexts"][0]
    return "repeats to the pixel; images of a batch are those of their seeds alone, within 1 of 255"


def options_and_infotext(host: WebUI) -> str:
    import numpy as np

    (plain,), _ = host.images()
    settings = _settings(
        sampler_options="solver_type=heun, lower_order_final=off", schedule_options="rho=4", guidance="linear"
    )
    answer = host.call("/sdapi/v1/txt2img", _request(**settings))
    (changed,), info = host.images(**settings)
    assert not np.array_equal(plain, changed)
    (text,) = info["infotexts"]
    read = host.call("/sdapi/v1/png-info", {"image": answer["images"][0]})["parameters"]
    for key, value in {
        "Few-Step options": "solver_type=heun, lower_order_final=off", "Few-Step schedule options": "rho=4",
        "Few-Step guidance": "linear", "Sampler": SAMPLER, "Schedule type": SCHEDULE,
    }.items():  # fmt: skip
        assert read[key] == value, (key, read)
    bare = {name: value for name, value in _request().items() if name in ("width", "height")}
    try:
        again = host.call("/sdapi/v1/txt2img", {**bare, "infotext": text})
        assert np.array_equal(_picture(again["images"][0]), changed)
        made = "and the text makes the same image again"
    except RuntimeError as error:
        if "parameterized generic" not in str(error):
            raise
        made = "but this host's API fails at any text"  # Forge: its own fields
    for script in ({}, _settings(sampler_options="solver_type=heun")):  # another sampler: nothing is written
        _, info = host.images(sampler_name="Euler a", scheduler="Automatic", **script)
        assert "Few-Step" not in info["infotexts"][0]
    return f"options change the image and stand in its text, {made}"


def wrong_option(host: WebUI) -> str:
    answer = "an image"
    try:
        host.images(**_settings(sampler_options="ordre=3"))
    except RuntimeError as error:
        answer = str(error)
    assert "no option 'ordre'" in answer, answer
    return "a wrong option ends the request with its message"


def image_to_image(host: WebUI) -> str:
    import numpy as np

    source = host.call("/sdapi/v1/txt2img", _request())["images"]
    (weak,), _ = host.images("img2img", init_images=source, denoising_strength=0.3)
    (strong,), _ = host.images("img2img", init_images=source, denoising_strength=0.9)
    assert weak.shape == strong.shape and not np.array_equal(weak, strong)
    return "image to image at two strengths"


def inpainting(host: WebUI) -> str:
    import numpy as np
    from PIL import Image

    source = host.call("/sdapi/v1/txt2img", _request(width=128))["images"]
    mask = np.zeros((64, 128), np.uint8)
    mask[:, 64:] = 255
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    (painted,), _ = host.images(
        "img2img", init_images=source, mask=base64.b64encode(file.getvalue()).decode(), width=128, mask_blur=0,
        denoising_strength=0.9, inpainting_fill=1, inpaint_full_res=False,
    )  # fmt: skip
    before = _picture(source[0])
    inside, outside = (np.abs(painted - before)[:, part].mean() for part in (slice(64, None), slice(0, 64)))
    assert outside <= 1 < inside
    return f"inpainting: mean change {inside:.1f} of 255 inside of the mask, {outside:.1f} outside"


def hires_fix(host: WebUI) -> str:
    (image,), info = host.images(
        enable_hr=True, hr_scale=2, hr_upscaler="Latent", denoising_strength=0.6, hr_second_pass_steps=5,
        hr_sampler_name="DPM++ 2S (Few-Step)", hr_scheduler="Beta (Few-Step)", hr_prompt="a", hr_negative_prompt="b",
        hr_additional_modules=["Use same choices"],  # Forge
    )  # fmt: skip
    assert image.shape[:2] == (128, 128) and "Hires sampler: DPM++ 2S (Few-Step)" in info["infotexts"][0]
    return "hires fix to twice the size, with another sampler and schedule"


def grid(host: WebUI) -> str:
    """x/y/z plot over samplers, one of the host among them, and schedules."""
    (script,) = [
        entry for entry in host.call("/sdapi/v1/script-info")
        if entry["name"] == "x/y/z plot" and not entry["is_img2img"]
    ]  # fmt: skip
    labels = [entry["label"] for entry in script["args"]]
    values = [entry["value"] for entry in script["args"]]
    choices = script["args"][labels.index("X type")]["choices"]

    def axis(letter: str, kind: str, names: list[str]) -> None:
        place = labels.index(f"{letter} type")
        values[place], values[place + 1], values[place + 2] = choices.index(kind), ", ".join(names), names

    axis("X", "Sampler", [SAMPLER, "UniPC (Few-Step)", "Euler a"])
    axis("Y", "Schedule type", [SCHEDULE, "Align Your Steps (Few-Step)"])
    values[labels.index("Z type")] = choices.index("Nothing")
    values[labels.index("Include Sub Images")] = True
    pictures, info = host.images(
        script_name="x/y/z plot", script_args=values, **_settings(sampler_options="lower_order_final=off")
    )
    texts = info["infotexts"]
    assert not [text for text in texts if "Sampler: Euler a" in text and "Few-Step options" in text], texts
    assert [text for text in texts if f"Sampler: {SAMPLER}," in text and "Few-Step options" in text], texts
    for name in (SAMPLER, "UniPC (Few-Step)"):
        for label in (SCHEDULE, "Align Your Steps (Few-Step)"):
            assert [text for text in texts if f"Sampler: {name}, Schedule type: {label}" in text], (name, label, texts)
    return f"x/y/z plot of 3 samplers and 2 schedules: {pictures[0].shape[1]} x {pictures[0].shape[0]} pixels"


def _request(**fields: Any) -> dict[str, Any]:
    return {
        "prompt": "a", "negative_prompt": "b", "sampler_name": SAMPLER, "scheduler": SCHEDULE, "steps": 5, "seed": 1,
        "width": 64, "height": 64, "cfg_scale": 3, **fields,
    }  # fmt: skip


def _picture(encoded: str) -> Any:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))), dtype=float)


REQUESTS = (
    lists, text_to_image, options_and_infotext, wrong_option, image_to_image, inpainting, hires_fix, grid,
)  # fmt: skip


def commit(checkout: Path) -> str:
    """Of the checkout; of a copy without one, what is said of it in the variable WEBUI_COMMIT."""
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True)
    top = subprocess.run(["git", "-C", str(checkout), "rev-parse", "--show-toplevel"], capture_output=True, text=True)
    known = done.returncode == 0 and Path(top.stdout.strip()).resolve() == checkout.resolve()
    return os.environ.get("WEBUI_COMMIT", done.stdout.strip() if known else "an unknown commit")


def check(host: WebUI) -> int:
    """All of it; the number of failures."""
    failures = []
    for request in REQUESTS:
        try:
            print(f"{'ok':8}{request(host)}", flush=True)
        except Exception:
            failures.append(traceback.format_exc())
            print(f"{'FAILED':8}{request.__name__.replace('_', ' ')}", flush=True)
    for name in host.call("/fewstep-check"):
        error = host.call(f"/fewstep-check/{name}", {}, timeout=1800)["error"]
        failures += [error] if error else []
        print(f"{'FAILED' if error else 'ok':8}{name.removeprefix('check_').replace('_', ' ')}", flush=True)
    print(*failures, sep="\n", file=sys.stderr)
    return len(failures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the folder of the WebUI")
    checkout = parser.parse_args().checkout.resolve()
    if not (checkout / "launch.py").is_file():
        sys.exit(f"there is no launch.py in {checkout}: give the folder of AUTOMATIC1111, Forge or reForge as WEBUI")
    python = Path(os.environ.get("WEBUI_PYTHON", checkout / "venv" / "bin" / "python"))
    if not python.is_file():
        sys.exit(f"there is no Python at {python}: start the WebUI once, or say where it is in WEBUI_PYTHON")
    checkpoint = Path(os.environ["CHECKPOINT"]) if os.environ.get("CHECKPOINT") else None
    print(f"{checkout.name} at {commit(checkout)}", flush=True)
    with running(checkout, python, checkpoint) as host:
        failed = check(host)
    sys.exit(f"{failed} failed; the log of the host is {host.log}" if failed else 0)


if __name__ == "__main__":
    main()
