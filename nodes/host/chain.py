"""Two SAMPLERs of the host as one: those of ours as one plan, others one after the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.samplers
from torch import Tensor

from ...samplers import SAMPLERS, SamplerSpec
from ...samplers.chain import chained
from ...samplers.levels import REPEATS, first_below, read_sigmas, without_repeats
from ...samplers.sampler import NOISE_DEVICE
from .runs import partial_options
from .sampling import PREFIX, sampler_function


class Ours(NamedTuple):
    """A sampler of ours behind a SAMPLER."""

    spec: SamplerSpec
    options: Mapping[str, Any]


def chain_sampler(first: Any, second: Any, step: int, sigma: float) -> Any:
    """A SAMPLER of two. It is found again by name and options, as hosts make a SAMPLER anew.

    Raises:
        ValueError: naming the input that is no sampler which a chain can call, or an option at fault.
    """
    for name, sampler in (("first", first), ("second", second)):
        if not callable(getattr(sampler, "sampler_function", None)):
            raise ValueError(
                f"{name}: this {type(sampler).__name__} has no function of a sampler that could be called for a part "
                "of a run: connect Few-Step Sampler, KSamplerSelect or another node that gives a KSAMPLER"
            )
    return comfy.samplers.KSAMPLER(
        sample_fewstep_chain, {"first": first, "second": second, "step": step, "sigma": sigma}
    )


def sample_fewstep_chain(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Any = None,
    callback: Any = None,
    disable: bool | None = None,
    noise_sampler: Any = None,
    seed: Any = None,
    *,
    first: Any = None,
    second: Any = None,
    step: int = 0,
    sigma: float = 0.0,
) -> Tensor:
    """A chain as the host calls a sampler.

    Raises:
        ValueError: if its samplers are missing, or naming an option or a level at fault.
    """
    if first is None or second is None:
        raise ValueError(
            "chain: this sampler has lost its two samplers: connect Few-Step Chain directly to the node that samples"
        )
    one, other = ours(first, sigmas), ours(second, sigmas)
    if one is not None and other is not None:
        spec = chained(*one, *other, step=step, sigma=sigma)
        options = {"noise_device": device} if (device := _noise_device(one, other)) else {}
        return sampler_function.__wrapped__(spec)(
            model, x, sigmas, extra_args, callback, disable, noise_sampler, seed, **options
        )
    levels = read_sigmas(sigmas)
    last = max(0, len(levels) - 1)
    k = first_below(levels, sigma) if sigma else min(step, last)
    if k > 0:
        x = _run(first, model, x, sigmas[: k + 1], extra_args, callback, disable)
    if k < last or k == 0:
        x = _run(second, model, x, sigmas[k:], extra_args, callback, disable, k)
    return x


def ours(sampler: Any, sigmas: Tensor) -> Ours | None:
    """Our sampler behind a SAMPLER, with its options for these levels; None of one that has no plan of coefficients:
    the host's, another pack's, a calibrated plan, one that decides its steps as it goes."""
    if not _is_ours(sampler):
        return None
    name, options = sampler.sampler_function.__name__.removeprefix(f"sample_{PREFIX}"), sampler.extra_options
    if name == "chain" and {"first", "second"} <= options.keys():
        one, other = ours(options["first"], sigmas), ours(options["second"], sigmas)
        if one is None or other is None:
            return None
        device = _noise_device(one, other)
        chain = chained(*one, *other, step=options["step"], sigma=options["sigma"])
        return Ours(chain, {NOISE_DEVICE.name: device} if device else {})
    spec = SAMPLERS.get(name)
    if spec is None or spec.adaptive:
        return None
    return Ours(spec, partial_options(spec, sigmas, options))


def _noise_device(*parts: Ours) -> str | None:
    """Where the added noise is drawn; None if none is.

    Raises:
        ValueError: if they differ in it: a run has one source of noise.
    """
    wanted = {part.options.get(NOISE_DEVICE.name, NOISE_DEVICE.default) for part in parts if part.spec.stochastic}
    if len(wanted) > 1:
        raise ValueError("noise_device: first and second have different values: choose the same value in both samplers")
    return next(iter(wanted), None)


def _run(
    sampler: Any,
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Any,
    callback: Any,
    disable: bool | None,
    begun: int = 0,
) -> Tensor:
    """A part of a run by a sampler as it is, which knows nothing of the other part. Levels that repeat are left out, of
    which the host's make NaN.

    The host's samplers draw their noise by the seed from the first draw on: the second part has another seed, so that
    its noise is not that of the first again. Ours draw it by level, and keep the seed.
    """
    arguments = dict(extra_args or {})
    if begun and isinstance(arguments.get("seed"), int) and not _is_ours(sampler):
        arguments["seed"] = (arguments["seed"] + 1) % 2**64

    numbers = without_repeats(read_sigmas(sigmas))
    if len(numbers) < len(sigmas):
        logging.warning("chain: %s", REPEATS)

    def later(given: dict[str, Any]) -> Any:
        i = given["i"]  # that of a sampler which chooses its steps may be beyond
        return callback({**given, "i": (numbers[i] if i < len(numbers) else i) + begun})

    return sampler.sampler_function(
        model, x, sigmas[list(numbers)], extra_args=arguments, callback=callback and later, disable=disable,
        **sampler.extra_options,
    )  # fmt: skip


def _is_ours(sampler: Any) -> bool:
    return getattr(sampler.sampler_function, "__name__", "").startswith(f"sample_{PREFIX}")
