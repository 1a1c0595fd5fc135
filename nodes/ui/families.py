"""Samplers in families, as the lists of the nodes group them."""

from __future__ import annotations

from ...samplers import SAMPLERS, SamplerSpec

FAMILIES = ("multistep", "singlestep", "added noise", "AMED", "adaptive", "distilled models")
"""In the order of the lists."""

_DISTILLED = ("consistency",)


def family_of(spec: SamplerSpec) -> str:
    """What a sampler is, found by running it but for those that are made for a kind of model."""
    if spec.id in _DISTILLED:
        return "distilled models"
    if spec.id.startswith("amed"):
        return "AMED"
    if spec.adaptive:
        return "adaptive"
    if spec.adds_noise:
        return "added noise"
    return "singlestep" if spec.singlestep else "multistep"


def grouped() -> dict[str, str]:
    """Family by sampler, one family after the other, and in each the order of the registry."""
    found = {id: family_of(spec) for id, spec in SAMPLERS.items()}
    return dict(sorted(found.items(), key=lambda entry: FAMILIES.index(entry[1])))
