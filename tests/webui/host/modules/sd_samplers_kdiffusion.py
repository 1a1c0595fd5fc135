"""Samplers of k-diffusion: the denoiser with guidance, and how a sampler is called."""

import inspect
from types import SimpleNamespace

import k_diffusion.external
import k_diffusion.sampling
import torch

from . import sd_samplers_common, shared

try:
    from . import sd_schedulers
except ImportError:
    sd_schedulers = None

sampler_extra_params = {"sample_dpmpp_sde": ["s_noise"]}


class Linker(torch.nn.Module):
    """Forge's wrapper: levels come from a predictor, and the network denoises by itself."""

    def __init__(self, model):
        super().__init__()
        self.inner_model = model
        flow = model.parameterization == "flow"
        levels = torch.arange(1, 1001) / 1000
        sigmas = 3 * levels / (1 + 2 * levels) if flow else ((1 - model.alphas_cumprod) / model.alphas_cumprod) ** 0.5
        kind = {"flow": "const", "v": "v_prediction", "eps": "epsilon"}[model.parameterization]
        self.predictor = SimpleNamespace(sigmas=sigmas, prediction_type=kind)
        self.plain = None if flow else _denoiser(model)

    @property
    def sigmas(self):
        return self.predictor.sigmas

    def get_sigmas(self, n):
        places = torch.linspace(len(self.sigmas) - 1, 0, n).round().long()
        return torch.cat([self.sigmas[places], torch.zeros(1)])

    def forward(self, x, sigma, cond):
        return self.inner_model.denoised(x, sigma, cond) if self.plain is None else self.plain(x, sigma, cond=cond)


def _denoiser(model):
    kind = "CompVisVDenoiser" if model.parameterization == "v" else "CompVisDenoiser"
    return getattr(k_diffusion.external, kind)(model)


class CFGDenoiser(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.p, self.step, self.total_steps = None, 0, None
        self.inner_model = (Linker if shared.variant == "forge" else _denoiser)(shared.sd_model)
        self.seen = []  # the scale of guidance in each evaluation

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        if shared.state.interrupted:
            raise sd_samplers_common.InterruptedException
        if shared.variant == "forge" and self.p.is_hr_pass:
            cond_scale = self.p.hr_cfg
        self.seen.append(cond_scale)
        denoised = self.inner_model(x, sigma, cond=cond)
        if uncond is not None:
            without = self.inner_model(x, sigma, cond=uncond)
            denoised = without + (denoised - without) * cond_scale
        self.p.sampler.last_latent = denoised
        self.step += 1
        return denoised


class KDiffusionSampler(sd_samplers_common.Sampler):
    def __init__(self, funcname, sd_model, options=None):
        super().__init__(funcname if callable(funcname) else getattr(k_diffusion.sampling, funcname))
        self.extra_params = sampler_extra_params.get(funcname, [])
        self.model_wrap_cfg = CFGDenoiser()
        self.model_wrap = self.model_wrap_cfg.inner_model

    def get_sigmas(self, p, steps):
        discard = shared.opts.always_discard_next_to_last_sigma or self.config.options.get("discard_next_to_last_sigma")
        steps += bool(discard)
        first, last = float(self.model_wrap.sigmas[-1]), float(self.model_wrap.sigmas[0])
        wanted = self.config.options.get("scheduler")
        if sd_schedulers is None:
            karras = k_diffusion.sampling.get_sigmas_karras
            sigmas = karras(steps, last, first) if wanted == "karras" else self.model_wrap.get_sigmas(steps)
        else:
            name = (p.hr_scheduler if p.is_hr_pass else p.scheduler) or "Automatic"
            scheduler = sd_schedulers.schedulers_map.get(wanted if name == "Automatic" else name)
            if scheduler is None or scheduler.function is None:
                sigmas = self.model_wrap.get_sigmas(steps)
            else:
                more = {"inner_model": self.model_wrap} if scheduler.need_inner_model else {}
                sigmas = scheduler.function(n=steps, sigma_min=last, sigma_max=first, device="cpu", **more)
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if discard else sigmas

    def _launch(self, p, x, sigmas, cond, uncond, steps):
        given = self.initialize(p)
        parameters = inspect.signature(self.func).parameters
        for name, value in {"n": steps, "sigma_min": sigmas[-2], "sigma_max": sigmas[0], "sigmas": sigmas}.items():
            if name in parameters:
                given[name] = value
        self.last_latent = x
        self.sampler_extra_args = extra = {
            "cond": cond,
            "image_cond": None,
            "uncond": uncond,
            "cond_scale": p.cfg_scale,
            "s_min_uncond": 0.0,
        }
        return self.launch_sampling(
            steps,
            lambda: self.func(
                self.model_wrap_cfg, x, extra_args=extra, disable=True, callback=self.callback_state, **given
            ),
        )

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        steps = steps or p.steps
        sigmas = self.get_sigmas(p, steps)
        return self._launch(p, x * sigmas[0], sigmas, conditioning, unconditional_conditioning, steps)

    def sample_img2img(
        self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None
    ):
        reached = int(min(p.denoising_strength, 0.999) * p.steps)
        sigmas = self.get_sigmas(p, p.steps)[p.steps - reached - 1 :]
        flow = shared.sd_model.parameterization == "flow"
        start = (1 - sigmas[0]) * x + noise * sigmas[0] if flow else x + noise * sigmas[0]
        return self._launch(p, start, sigmas, conditioning, unconditional_conditioning, reached + 1)
