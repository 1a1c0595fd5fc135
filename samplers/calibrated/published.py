"""Numbers that the authors of a method have published, by the id of the sampler that follows them."""

from __future__ import annotations

from collections.abc import Mapping

from ..phi import value
from ..processes import stable_diffusion_sigma
from .about import About
from .plan import CalibratedPlan
from .recipe import Recipe
from .tuning import Tuning

_STEPS = (999, 885, 799, 705, 599, 492, 400, 329, 200, 73)  # of Stable Diffusion: step k is time k + 1
_SCALE_DIR = (1, 0.9974, 1, 0.9904, 1, 0.991, 1, 0.9905, 1, 0.9904)
_SCALE_TIME = (1, 0.9872, 1, 1.0152, 1, 1.0186, 1, 0.9934, 1, 0.9731)

AMED_SD15 = CalibratedPlan(
    Recipe(
        "amed_dpm_2m",
        (*(value(stable_diffusion_sigma(step + 1)) for step in _STEPS), 0.0),
        tunings=tuple(Tuning(scale_dir=d, scale_time=t) for d, t in zip(_SCALE_DIR, _SCALE_TIME, strict=True)),
    ),
    about=About(
        model={"family": "SD15", "sampling": "ModelSamplingDiscrete", "prediction": "EPS"},
        guidance=7.5,
        source="Zhou et al. 2024, arXiv 2312.00094, example notebook: a predictor without bottleneck, trained on "
        "captions of MS-COCO. Its last level, time step 0, is replaced by sigma = 0.",
    ),
)

PUBLISHED: Mapping[str, CalibratedPlan] = {"amed_dpm_2m": AMED_SD15}
