"""Why implicit methods are left out (docs/SAMPLERS.md): they are what they are called, and explicit ones are better."""

from __future__ import annotations

import math

import pytest
from mixture import SIGMA_MIN, levels, relative_error, solution

from bench import implicit


@pytest.mark.parametrize(("name", "order"), [("gl_2s", 4), ("radau_2s", 3)])
def test_they_have_their_order(name, order):
    """In the limit of the iteration; four sweeps are enough for steps this short."""
    places = implicit.COLLOCATION[name]
    errors = [
        relative_error(implicit.collocated(levels(n).tolist(), places, 4), solution(SIGMA_MIN)) for n in (128, 256)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("budget", [12, 24, 60, 120])
@pytest.mark.slow
def test_an_explicit_method_is_better_for_as_many_evaluations(budget):
    explicit = min(implicit.run_explicit(name, budget) for name in implicit.EXPLICIT)
    for name in implicit.COLLOCATION:
        assert explicit < min(implicit.run_collocated(name, sweeps, budget) for sweeps in implicit.SWEEPS)
