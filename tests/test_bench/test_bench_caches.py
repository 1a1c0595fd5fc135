"""docs/CACHES.md is what `make bench-caches` writes, and says what its numbers say."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def caches(comfy_process):
    """The benchmark, which needs the host."""
    from bench import caches

    return caches


def test_the_page_is_that_of_its_numbers(caches):
    """The text as well: each sentence with a number follows from the rows."""
    text = caches.PAGE.read_text()
    rows = caches.rows(text)
    assert {(row.steps, row.sampler, row.cache) for row in rows} == {
        (steps, name, cache) for steps in caches.STEPS for name in caches.SAMPLERS for cache in caches.CACHES
    }
    assert caches.page(rows) == text


def test_findings_count(caches):
    """Of three cases one has left out nothing, and one of the others is worse than fewer steps, by a factor of 2."""
    rows = [
        caches.Row(10, "euler", 0.1, "EasyCache 0.1", 10.0, 0.1, 0.1),
        caches.Row(10, "euler", 0.1, "EasyCache 0.2", 8.0, 0.4, 0.2),
        caches.Row(10, "dpmpp_2m", 0.1, "EasyCache 0.2", 8.0, 0.2, 0.3),
    ]
    said = " ".join(caches.findings(rows).split())
    assert "left out passes in 2 of 3 cases. In 1 of these, fewer steps" in said and "by a factor of 2.0" in said
    assert "`euler` 4.0, `dpmpp_2m` 2.0" in said and "with EasyCache 0.5 to 0.5 times, median 0.5" in said
