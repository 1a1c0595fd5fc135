"""What all samplers of the host have in common."""

import inspect
from collections import namedtuple

from . import shared


class SamplerData(namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])):
    def total_steps(self, steps):
        return 2 * steps if self.options.get("second_order") else steps


class InterruptedException(BaseException):
    pass


class Sampler:
    def __init__(self, func):
        self.func, self.config, self.last_latent, self.extra_params = func, None, None, []

    def initialize(self, p):
        """The arguments that the signature of the sampler asks for."""
        self.p = self.model_wrap_cfg.p = p
        self.model_wrap_cfg.step = 0
        parameters = inspect.signature(self.func).parameters
        given = {name: getattr(p, name) for name in self.extra_params if name in parameters}
        if "eta" in parameters:
            given["eta"] = p.eta if p.eta is not None else shared.opts.eta_ancestral
        return given

    def callback_state(self, d):
        shared.state.sampling_step = d["i"]

    def launch_sampling(self, steps, run):
        self.model_wrap_cfg.total_steps = self.config.total_steps(steps)
        try:
            return run()
        except InterruptedException:
            return self.last_latent
