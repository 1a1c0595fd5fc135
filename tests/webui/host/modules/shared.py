"""Settings, the loaded model, and whether the artist has stopped."""

from types import SimpleNamespace

import torch

opts = SimpleNamespace(always_discard_next_to_last_sigma=False, eta_ancestral=1.0, s_noise=1.0, hide_samplers=[])
state = SimpleNamespace(interrupted=False, skipped=False, sampling_step=0)
variant = "a1111"  # or "forge", or "old": before 1.9
sd_model = None


class Network(torch.nn.Module):
    """Predicts the noise of data at the prompt, a Gaussian of deviation 0.5; or v, or a velocity."""

    is_sd1, is_sd2, is_sdxl = True, False, False

    def __init__(self, parameterization="eps"):
        super().__init__()
        self.parameterization = parameterization
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0).float()

    def apply_model(self, x, t, cond):
        alpha = self.alphas_cumprod[t.round().long()].sqrt()[:, None, None, None]
        sigma = (1 - alpha**2).sqrt()
        denoised = cond + (x - alpha * cond) * 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
        noise = (x - alpha * denoised) / sigma
        return alpha * noise - sigma * denoised if self.parameterization == "v" else noise

    def denoised(self, x, sigma, cond):
        """That of a rectified flow."""
        sigma = sigma[:, None, None, None]
        alpha = 1 - sigma
        return cond + (x - alpha * cond) * 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
