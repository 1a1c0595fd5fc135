"""A schedule of guidance along the runs of a MODEL."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import comfy.model_patcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ...samplers.guidance import NONE, Guidance, agreement_of, rescaled, thresholded
from .guider import RunGuidance, guidance_of_run, run_guidance
from .model import is_flow, percent_at
from .protocols import AnyGuider
from .runs import STEPS

_KEY = "fewstep_guidance"


def guide(patcher: Any, guidance: Guidance) -> Any:
    """A MODEL that is sampled with this guidance, in the place of the one number of the sampler node.

    Evaluations at scale 1 run one pass of the network: the host leaves out the negative prompt by itself then.
    """
    patched = patcher.clone()
    for kind, wrapper in (
        (WrappersMP.SAMPLER_SAMPLE, functools.partial(_sample, guidance)),
        (WrappersMP.PREDICT_NOISE, _predict),
    ):
        patched.remove_wrappers_with_key(kind, _KEY)  # a second patch replaces the first
        patched.add_wrapper_with_key(kind, _KEY, wrapper)
    return patched


def _sample(guidance: Guidance, sampler: WrapperExecutor, guider: Any, sigmas: Tensor, *arguments: Any) -> Tensor:
    """One run of a sampler."""
    with guidance_of_run(guider) as run:
        if run is None:
            logging.warning(
                "the guidance schedule is left out: this guider does not have a single scale and a negative prompt"
            )
        else:
            run.of_run, run.schedule = guidance.strongest, _Schedule(guidance, guider, sigmas)
        return sampler(guider, sigmas, *arguments)


def _predict(guided: WrapperExecutor, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: Any) -> Tensor:
    """One evaluation."""
    run = run_guidance(guided.class_obj)
    if run is None or run.schedule is None:
        return guided(x, sigma, model_options, seed)
    return run.schedule.predict(run, guided, x, sigma, model_options, seed)


class _Schedule:
    """Guidance along one run of a sampler."""

    def __init__(self, guidance: Guidance, guider: AnyGuider, sigmas: Tensor):
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self._guidance, self._flow = guidance, is_flow(sampling)
        self._percent = percent_at(sampling)
        self._steps: list[float] = sigmas.tolist()
        self._scale = self._over(self._steps)
        self._agreed = 0.0  # the level at and below which the predictions agree

    @property
    def cfg_pp(self) -> bool:
        """Whether the scale is that of CFG++."""
        return self._guidance.cfg_pp

    def _over(self, steps: list[float]) -> Callable[[float], float]:
        return self._guidance.over(steps, flow=self._flow, elapsed=self._percent)

    def predict(
        self,
        run: RunGuidance,
        guided: Callable[..., Tensor],
        x: Tensor,
        sigma: Tensor,
        options: dict[str, Any],
        seed: Any,
    ) -> Tensor:
        if (steps := options.get(STEPS, self._steps)) != self._steps:  # the sampler has levels of its own
            self._steps, self._scale = steps, self._over(steps)
        with run.at(self._at(sigma)):
            return guided(x, sigma, self._with_changes(options), seed)

    def _at(self, sigma: Tensor) -> float:
        """The scale of an evaluation. Only where it varies is its level read from the device."""
        if self._agreed and float(sigma[0]) <= self._agreed:
            return NONE
        return self._scale(float(sigma[0])) if self._guidance.varies else self._guidance.strongest

    def _with_changes(self, options: dict[str, Any]) -> dict[str, Any]:
        """The host's options with our changes of the prediction, after those of other patches."""
        if (self._guidance.rescale, self._guidance.threshold, self._guidance.agreement) == (0, 1, 1):
            return options
        return comfy.model_patcher.set_model_options_post_cfg_function({**options}, self._change)

    def _change(self, given: dict[str, Any]) -> Tensor:
        g, denoised = self._guidance, given["denoised"]
        if g.agreement < 1 and given["uncond"] is not None:
            alike = agreement_of(given["cond_denoised"], given["uncond_denoised"])
            if (alike >= g.agreement).all():
                self._agreed = max(self._agreed, float(given["sigma"][0]))  # an inversion comes from below
        if g.rescale:
            x, sigma = given["input"], given["sigma"]
            denoised = rescaled(denoised, given["cond_denoised"], x, sigma, g.rescale, flow=self._flow)
        if g.threshold < 1:
            denoised = thresholded(denoised, g.threshold, g.threshold_floor)
        return denoised
