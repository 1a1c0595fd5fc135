"""One request: prompts are numbers here, and an image is its latent."""

import torch

from . import scripts, sd_samplers, shared


class Processing:
    def __init__(self, sampler_name, scheduler="Automatic", steps=8, seeds=(1,), values=(), **more):
        self.sampler_name, self.scheduler, self.steps = sampler_name, scheduler, steps
        self.hr_sampler_name = self.hr_scheduler = None
        self.all_seeds, self.batch_size, self.iteration = list(seeds), len(seeds), 0
        self.cfg_scale, self.eta, self.s_noise, self.denoising_strength = 3.0, None, 1.0, 0.5
        self.is_hr_pass, self.sampler, self.extra_generation_params = False, None, {}
        if shared.variant == "forge":
            self.hr_cfg = 2.0
        self.values, self.comments = values, {}
        self.__dict__.update(more)

    def comment(self, text):
        self.comments[text] = 1

    def begin(self):
        """What is done before a run; errors of scripts are swallowed, as in the host."""
        for script in scripts.loaded:
            for call in (script.process, script.process_batch, *([script.before_hr] if self.is_hr_pass else [])):
                try:
                    call(self, *self.values)
                except Exception as error:
                    self.swallowed = error
        self.sampler = sd_samplers.create_sampler(self.sampler_name, shared.sd_model)

    def noise(self):
        make = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in self.all_seeds]
        start = self.iteration * self.batch_size
        return torch.stack(make[start : start + self.batch_size])

    def sample(self):
        self.begin()
        out = self.run(self.sampler)
        for script in scripts.loaded:
            script.postprocess_batch(self, *self.values, images=out, batch_number=self.iteration)
        return out

    def run(self, sampler):
        x = self.noise()
        ones = torch.ones_like(x)
        without = None if shared.variant == "forge" and self.cfg_scale == 1 else -0.1 * ones
        return sampler.sample(self, x, 0.3 * ones, without)

    def sample_img2img(self, image):
        self.begin()
        ones = torch.ones_like(image)
        return self.sampler.sample_img2img(self, image, self.noise(), 0.3 * ones, -0.1 * ones)
