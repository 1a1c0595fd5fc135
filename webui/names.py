"""The names that the host's lists show and images keep.

A host cuts off the end of a sampler's name where it is the name of a schedule, as in "DPM++ 2M Karras", takes a comma
for the end of a name, and falls back to another sampler without a word where it does not know one. So the names are
short, without commas, and end in a mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..samplers import SAMPLERS, SCHEDULES, SamplerSpec, ScheduleSpec
from ..samplers.calibrated.published import PUBLISHED

PREFIX = "fewstep_"
MARK = " (Few-Step)"
PLAN = "Plan" + MARK
"""The sampler that follows a plan, and the schedule of its levels."""


def _name(label: str) -> str:
    """`DPM-Solver++ 2M` as `DPM++ 2M (Few-Step)`."""
    return re.sub(r" \(.*\)", "", label).replace("DPM-Solver", "DPM").replace(",", "") + MARK


SAMPLER_NAMES: Mapping[str, SamplerSpec] = {
    _name(spec.label): spec
    for spec in SAMPLERS.values()
    if spec.curated and spec.id not in PUBLISHED and not spec.takes_apart
}
"""Without those that follow published numbers, which are plans for one kind of model, and those with CFG++: the hosts
have no common way to the prediction without the prompt."""

SCHEDULE_NAMES: Mapping[str, ScheduleSpec] = {_name(spec.label): spec for spec in SCHEDULES.values() if spec.curated}
