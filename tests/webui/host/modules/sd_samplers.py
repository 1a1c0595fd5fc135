"""The lists of samplers, and what a name in a request or an image stands for."""

import functools

from . import sd_samplers_common, sd_samplers_kdiffusion, shared

try:
    from . import sd_schedulers
except ImportError:
    sd_schedulers = None


def _own(name, function, **options):
    make = functools.partial(sd_samplers_kdiffusion.KDiffusionSampler, function)
    return sd_samplers_common.SamplerData(name, make, [f"k_{function}"], options)


all_samplers = [
    _own("DPM++ 2M", "sample_dpmpp_2m", scheduler="karras"),
    _own("DPM2", "sample_dpm_2", scheduler="karras", discard_next_to_last_sigma=True, second_order=True),
    _own("Euler a", "sample_euler_ancestral"),
]
all_samplers_map = {data.name: data for data in all_samplers}
samplers, samplers_map = [], {}


def set_samplers():
    global samplers
    samplers = all_samplers
    samplers_map.clear()
    for data in all_samplers:
        samplers_map.update({name.lower(): data.name for name in (data.name, *data.aliases)})


def create_sampler(name, model):
    config = all_samplers_map[name]
    sampler = config.constructor(model)
    sampler.config = config
    return sampler


if sd_schedulers is not None:

    @functools.cache
    def get_sampler_and_scheduler(sampler_name, scheduler_name):
        """What is not known becomes the first of its list; the end of a name may be a schedule."""
        found = sd_schedulers.schedulers_map.get(scheduler_name, sd_schedulers.schedulers[0])
        for entry in sd_schedulers.schedulers:
            for end in (entry.label, entry.name, *(entry.aliases or [])):
                if sampler_name.lower().endswith(" " + end.lower()):
                    sampler_name, found = sampler_name[: -len(end) - 1], entry
                    break
        return all_samplers_map.get(sampler_name, all_samplers[0]).name, found.label


if shared.variant == "forge":

    def add_sampler(data):
        """Makes the table anew, which must then still have all."""
        global all_samplers_map
        all_samplers.append(data)
        all_samplers_map = {entry.name: entry for entry in all_samplers}
        set_samplers()


set_samplers()
