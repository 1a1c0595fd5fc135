"""Runs the assertions of contract.py inside a real WebUI; `tools/webui.py` puts this extension there for a test."""

import contextlib
import functools
import importlib.util
import os
import sys
import threading
import traceback
from pathlib import Path
from types import SimpleNamespace

import torch
from modules import (
    processing,
    script_callbacks,
    scripts,
    sd_samplers,
    sd_samplers_cfg_denoiser,
    sd_samplers_common,
    sd_samplers_kdiffusion,
    shared,
)
from modules.call_queue import queue_lock

try:
    from modules.infotext_utils import parse_generation_parameters
except ImportError:  # before 1.8
    from modules.generation_parameters_copypaste import parse_generation_parameters
try:
    from modules import sd_schedulers
except ImportError:
    sd_schedulers = None

ROOT = Path(os.environ["FEWSTEP_ROOT"])
spec = importlib.util.spec_from_file_location("webui_contract", ROOT / "tests" / "webui" / "contract.py")
contract = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contract)
evaluations = []  # the scales of guidance of the last run
stop_after = None
filled = threading.Event()  # the model is ready


def watched(forward):
    """The host's own denoiser, with the scale of guidance kept; it is interrupted after so many evaluations."""

    @functools.wraps(forward)  # which keeps its signature
    def watching(self, x, sigma, uncond, cond, cond_scale, *args, **more):
        shared.state.interrupted = stop_after is not None and len(evaluations) == stop_after
        if not shared.state.interrupted:
            second = getattr(self.p, "is_hr_pass", False) and hasattr(self.p, "hr_cfg")
            evaluations.append(self.p.hr_cfg if second else cond_scale)
        return forward(self, x, sigma, uncond, cond, cond_scale, *args, **more)

    return watching


class Host(SimpleNamespace):
    """See contract.py."""

    root = ROOT
    is_sd15 = True

    def load(self):
        path = next(s.path for s in scripts.list_scripts("scripts", ".py") if s.filename == "fewstep.py")
        spec = importlib.util.spec_from_file_location("fewstep.py", path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

    def processing(self, sampler, schedule="Automatic", *, img2img=False, seeds=(1,), values=(), **fields):
        given = {"cfg_scale": 3.0, "prompt": "a", "negative_prompt": "b", "width": 64, "height": 64, **fields}
        hires = {name: given.pop(name) for name in ("is_hr_pass", "hr_cfg") if name in given}
        p = processing.StableDiffusionProcessingTxt2Img(sampler_name=sampler, batch_size=len(seeds), **given)
        p.scheduler, p.all_seeds, p.iteration, p.values = schedule, list(seeds), 0, values
        p.hires = hires
        return p

    def begin(self, p):
        evaluations.clear()
        script = sys.modules["fewstep.webui"].FewStepScript()
        calls = [script.process, script.process_batch, *([script.before_hr] if p.hires else [])]
        for call in calls:
            with contextlib.suppress(Exception):  # as the host does
                call(p, *p.values)
        start = p.iteration * p.batch_size
        p.seeds = p.all_seeds[start : start + p.batch_size]
        p.subseeds, p.all_subseeds = p.seeds, p.all_seeds
        p.all_prompts, p.all_negative_prompts = ["a"] * len(p.all_seeds), ["b"] * len(p.all_seeds)
        p.prompts, p.negative_prompts = ["a"] * len(p.seeds), ["b"] * len(p.seeds)
        getattr(p, "fill_fields_from_opts", int)()  # since 1.7
        p.setup_conds()
        p.__dict__.update(p.hires)  # the prompts of the first pass serve for the second
        p.sampler = sd_samplers.create_sampler(p.sampler_name, shared.sd_model)

    def noise(self, p):
        each = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in p.seeds]
        return torch.stack(each).to(shared.device)

    def run(self, p, image=None):
        x = self.noise(p)
        p.rng = SimpleNamespace(next=lambda: torch.randn_like(x))
        with torch.no_grad():
            if image is None:
                out = p.sampler.sample(p, x, p.c, p.uc, image_conditioning=x.new_zeros(len(x), 5, 1, 1))
            else:
                conditioning = x.new_zeros(len(x), 5, 1, 1)
                out = p.sampler.sample_img2img(p, image.to(x), x, p.c, p.uc, image_conditioning=conditioning)
        return out.float().cpu()

    def sample(self, p):
        self.begin(p)
        return self.run(p)

    def sample_img2img(self, p, image):
        self.begin(p)
        return self.run(p, image)

    def sample_with(self, p, function, image=None):
        self.begin(p)
        p.sampler.func, p.sampler.extra_params = function, []
        return self.run(p, image)

    def pasted(self, p):
        text = processing.create_infotext(p, p.all_prompts, p.all_seeds, p.all_subseeds)
        params = parse_generation_parameters(text)
        script_callbacks.infotext_pasted_callback(text, params)
        return params

    def recorded(self, p):
        return list(evaluations)

    @contextlib.contextmanager
    def interrupted_after(self, p, count):
        global stop_after
        stop_after = count
        try:
            yield
        finally:
            stop_after, shared.state.interrupted = None, False


def started(demo, app):
    host = Host(
        scripts=scripts, script_callbacks=script_callbacks, sd_samplers=sd_samplers, shared=shared,
        sd_samplers_common=sd_samplers_common, sd_samplers_kdiffusion=sd_samplers_kdiffusion,
        sd_schedulers=sd_schedulers, known_modules=set(),
    )  # fmt: skip
    denoiser = sd_samplers_cfg_denoiser.CFGDenoiser
    denoiser.forward = watched(denoiser.forward)

    def checks():
        return list(contract.CHECKS)

    def ready():
        return filled.wait(300)

    def check(name: str):
        with queue_lock:
            try:
                contract.CHECKS[name](host)
            except Exception:
                return {"error": traceback.format_exc()}
        return {"error": None}

    app.add_api_route("/fewstep-check", checks, methods=["GET"])
    app.add_api_route("/fewstep-ready", ready, methods=["GET"])
    app.add_api_route("/fewstep-check/{name}", check, methods=["POST"])


def fill(model):
    """Weights for the stand-in: small, the same each time."""
    objects = getattr(model, "forge_objects", None)
    parts = [model]
    if objects is not None:
        parts += [objects.unet.model, objects.vae.first_stage_model, objects.clip.cond_stage_model]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in parts:
            for name, weights in part.named_parameters() if isinstance(part, torch.nn.Module) else ():
                if weights.ndim > 1:
                    weights.copy_(torch.randn(weights.shape, generator=generator) * 0.5 / weights[0].numel() ** 0.5)
                else:
                    weights.fill_(1.0 if name.endswith("weight") else 0.0)
    filled.set()


if os.environ.get("FEWSTEP_STAND_IN"):
    script_callbacks.on_model_loaded(fill)
else:
    filled.set()
script_callbacks.on_app_started(started)
