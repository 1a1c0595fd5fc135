"""What the extension promises in a WebUI: assertions for a host of our own writing (tests/test_webui.py) and for a real
one (tools/webui.py), which runs them in its process.

A `host` gives the host's modules as attributes, and

    root                                     the pack's folder
    load()                                   runs the scripts of extensions again, as "Reload UI" does
    processing(sampler, schedule, **fields)  a request; `values` are those of the accordion
    sample(p), sample_img2img(p, image)      the latents it makes
    sample_with(p, function)                 the same by another sampler function, which is given nothing but levels
    pasted(p)                                what the host reads from the text of an image of p, as it is pasted
    recorded(p)                              the scales of guidance of the last run of p, one for each evaluation
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
from pathlib import Path

import torch

STEPS = 6


def core():
    return sys.modules["fewstep.samplers"]


def names():
    return sys.modules["fewstep.webui.names"]


def flow_of(model):
    return sys.modules["fewstep.webui.host"].is_flow(model.inner_model)


@contextlib.contextmanager
def raises(*words):
    """As `pytest.raises`, which a real host does not have."""
    caught = None
    try:
        yield
    except ValueError as error:
        caught = str(error)
    assert caught is not None and all(word in caught for word in words), (words, caught)
    assert len(caught) < 1000, words  # however long the input was


def directly(spec, seeds=(), **options):
    """A call of the core, of each image with its seed."""

    def function(model, x, sigmas, extra_args=None, callback=None, disable=None):
        flow = flow_of(model)
        return spec.function(model, x, sigmas, extra_args, callback, disable, flow=flow, seed=list(seeds), **options)

    return function


def check_everything_is_in_the_lists(host):
    ours = [data.name for data in host.sd_samplers.all_samplers if data.name.endswith(names().MARK)]
    plan = [names().PLAN] if host.sd_schedulers else []
    assert ours == [*names().SAMPLER_NAMES, *plan] and len(ours) >= 13
    assert all(host.sd_samplers.all_samplers_map[name].name == name for name in ours)
    assert all(host.sd_samplers.samplers_map[name.lower()] == name for name in ours)
    if host.sd_schedulers:
        labels = [entry.label for entry in host.sd_schedulers.schedulers if entry.label.endswith(names().MARK)]
        assert labels == [*names().SCHEDULE_NAMES, names().PLAN] and len(labels) >= 11
        for entry in host.sd_schedulers.schedulers:
            assert host.sd_schedulers.schedulers_map[entry.name] is host.sd_schedulers.schedulers_map[entry.label]


def check_names_are_not_cut(host):
    ours = [*names().SAMPLER_NAMES, *names().SCHEDULE_NAMES, names().PLAN]
    assert not [name for name in ours if "," in name or ":" in name]
    if not host.sd_schedulers:
        return
    ends = [e for s in host.sd_schedulers.schedulers for e in (s.name, s.label, *(s.aliases or []))]
    for name in (data.name for data in host.sd_samplers.all_samplers if data.name in ours):
        assert not [end for end in ends if name.lower().endswith(" " + end.lower())]
        for label in (entry.label for entry in host.sd_schedulers.schedulers if entry.label in ours):
            found = host.sd_samplers.get_sampler_and_scheduler(name, label)
            assert found in ((name, label), (name, "Automatic"))  # its own default is that


def check_loading_again_changes_nothing(host):
    def state():
        tables = [host.sd_samplers.all_samplers_map, host.sd_samplers.samplers_map]
        tables += [host.sd_schedulers.schedulers_map] if host.sd_schedulers else []
        lists = [[data.name for data in host.sd_samplers.all_samplers], *([*table] for table in tables)]
        return [sorted(entries) for entries in lists] + [len(host.sd_samplers_kdiffusion.sampler_extra_params)]

    before = state()
    host.load()
    assert state() == before
    sys.modules["fewstep.webui"].register()
    assert state() == before
    sys.modules["fewstep.webui.registration"].remove()
    assert not [name for entries in state()[:-1] for name in entries if "few" in name.lower()]
    sys.modules["fewstep.webui"].register()
    assert state() == before


def check_nothing_of_ours_is_taken_for_theirs(host):
    """One name in sys.modules is ours, and what lies beside it can be imported by nobody else."""
    tops = {name.partition(".")[0] for name, module in list(sys.modules.items()) if _lies_in(module, host.root)}
    assert tops - host.known_modules <= {"fewstep"}
    assert not hasattr(sys.modules["fewstep"], "comfy_entrypoint")  # the pack's own __init__.py was not run
    assert not [path for path in ("scripts/__init__.py", "install.py") if (host.root / path).exists()]
    for path in host.root.iterdir():
        if path.is_dir() and path.name.isidentifier():
            spec = None if path.name in sys.modules else importlib.util.find_spec(path.name)
            places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
            assert path not in [Path(place).resolve() for place in places if place], path.name
            assert path / "__init__.py" not in [Path(place).resolve() for place in places if place], path.name


def _lies_in(module, root):
    file = getattr(module, "__file__", None)
    return bool(file) and root in Path(file).resolve().parents


def check_signatures_of_the_host(host):
    """What registration and the samplers rely on."""

    def parameters(function):
        return list(inspect.signature(function).parameters)

    assert host.sd_samplers_common.SamplerData._fields == ("name", "constructor", "aliases", "options")
    assert parameters(host.sd_samplers_kdiffusion.KDiffusionSampler)[:2] == ["funcname", "sd_model"]
    assert isinstance(host.sd_samplers_kdiffusion.sampler_extra_params, dict)
    run = host.sd_samplers_kdiffusion.KDiffusionSampler
    assert parameters(run.sample)[1:5] == ["p", "x", "conditioning", "unconditional_conditioning"]
    assert parameters(run.sample_img2img)[1:4] == ["p", "x", "noise"]
    assert issubclass(host.sd_samplers_common.InterruptedException, BaseException)
    assert not issubclass(host.sd_samplers_common.InterruptedException, Exception)
    if host.sd_schedulers:
        assert parameters(host.sd_schedulers.Scheduler) == [
            "name", "label", "function", "default_rho", "need_inner_model", "aliases",
        ]  # fmt: skip
    denoiser = host.sd_samplers_kdiffusion.CFGDenoiser
    assert parameters(denoiser.forward)[1:8] == [
        "x", "sigma", "uncond", "cond", "cond_scale", "s_min_uncond", "image_cond",
    ]  # fmt: skip


def check_samplers_are_the_core(host):
    """Pixel for pixel, with the arguments that the host gives."""
    schedule = "Karras" + names().MARK if host.sd_schedulers else "Automatic"
    for name, spec in names().SAMPLER_NAMES.items():
        ours = host.sample(host.processing(name, schedule, steps=STEPS, seeds=[3, 4]))
        direct = host.sample_with(host.processing(name, schedule, steps=STEPS, seeds=[3, 4]), directly(spec, [3, 4]))
        assert torch.equal(ours, direct) and ours.isfinite().all(), name


def check_schedules_are_the_core(host):
    if not host.sd_schedulers:
        return
    seen = {}

    def watch(model, x, sigmas, extra_args=None, callback=None, disable=None):
        wrap, flow = model.inner_model, flow_of(model)
        middle = float(wrap.sigmas[len(wrap.sigmas) // 2 - 1])
        seen.update(
            sigmas=sigmas, low=float(wrap.sigmas[0]), high=float(wrap.sigmas[-1]), flow=flow,
            model_shift=middle / (1 - middle) if flow else 1.0,
        )  # fmt: skip
        return x

    for name, spec in names().SCHEDULE_NAMES.items():
        host.sample_with(host.processing(next(iter(names().SAMPLER_NAMES)), name, steps=STEPS), watch)
        wanted = spec.function(STEPS, seen["low"], seen["high"], flow=seen["flow"], model_shift=seen["model_shift"])
        assert torch.equal(seen["sigmas"].cpu(), wanted.float()), name


def check_a_batch_is_its_images_alone(host):
    for name, spec in names().SAMPLER_NAMES.items():
        if spec.stochastic:
            both = host.sample(host.processing(name, steps=STEPS, seeds=[5, 9]))
            alone = host.sample(host.processing(name, steps=STEPS, seeds=[9]))
            torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4, msg=name)
            second = host.processing(name, steps=STEPS, seeds=[5, 9])
            second.batch_size, second.iteration = 1, 1
            torch.testing.assert_close(host.sample(second), alone, rtol=0, atol=1e-4, msg=name)


def check_image_to_image_is_given_a_part_of_the_levels(host):
    image = 0.3 * torch.ones(1, 4, 8, 8)
    for name in ("DPM++ 2M" + names().MARK, "DPM++ 2S" + names().MARK):
        p = host.processing(name, steps=STEPS, seeds=[3], denoising_strength=0.5, img2img=True)
        ours = host.sample_img2img(p, image)
        p = host.processing(name, steps=STEPS, seeds=[3], denoising_strength=0.5, img2img=True)
        levels = []

        def direct(model, x, sigmas, extra_args=None, callback=None, disable=None, name=name, levels=levels):
            levels[:] = sigmas.tolist()
            return directly(names().SAMPLER_NAMES[name])(model, x, sigmas, extra_args, callback, disable)

        assert torch.equal(ours, host.sample_with(p, direct, image))
        assert len(levels) == STEPS // 2 + 2 and levels[-1] == 0


def check_a_level_is_not_discarded_twice(host):
    if not host.sd_schedulers:
        return
    opts = host.shared.opts
    values = ("", "discard_penultimate=on")
    levels = {}
    for host_discards in (False, True):
        before, opts.always_discard_next_to_last_sigma = opts.always_discard_next_to_last_sigma, host_discards
        try:

            def watch(model, x, sigmas, extra_args=None, callback=None, disable=None, key=host_discards):
                levels[key] = sigmas.cpu()
                return x

            p = host.processing("DPM++ 2M" + names().MARK, "Karras" + names().MARK, steps=STEPS, values=values)
            host.sample_with(p, watch)
        finally:
            opts.always_discard_next_to_last_sigma = before
    assert torch.equal(levels[False], levels[True]) and len(levels[True]) == STEPS + 1


def check_eta_means_what_it_says(host):
    """The host's eta is 1 where nothing is set: DDIM stays deterministic, ancestral samplers follow it."""
    name = "DDIM" + names().MARK
    spec = names().SAMPLER_NAMES[name]
    plain = host.sample_with(host.processing(name, steps=STEPS, seeds=[3]), directly(spec, [3], eta=0.0))
    assert torch.equal(host.sample(host.processing(name, steps=STEPS, seeds=[3])), plain)
    assert torch.equal(host.sample(host.processing(name, steps=STEPS, seeds=[3], eta=0.7)), plain)
    noisy = host.sample_with(host.processing(name, steps=STEPS, seeds=[3]), directly(spec, [3], eta=1.0))
    assert torch.equal(host.sample(host.processing(name, steps=STEPS, seeds=[3], values=("eta=1",))), noisy)
    name = "Euler ancestral" + names().MARK
    spec = names().SAMPLER_NAMES[name]
    less = host.sample_with(host.processing(name, steps=STEPS, seeds=[3]), directly(spec, [3], eta=0.4))
    assert torch.equal(host.sample(host.processing(name, steps=STEPS, seeds=[3], eta=0.4)), less)


def check_wrong_settings_stop_the_run(host):
    """Where the host shows it: an error in a script is only written to its log."""
    sampler = "DPM++ 2M" + names().MARK
    with raises("no option 'ordre'"):
        host.sample(host.processing(sampler, steps=STEPS, values=("ordre=3",)))
    with raises("solver_type", "midpoint, heun"):
        host.sample(host.processing(sampler, steps=STEPS, values=("solver_type=exact",)))
    with raises("'heun'", "option=value"):
        host.sample(host.processing(sampler, steps=STEPS, values=("heun",)))
    with raises("guidance", "constant"):
        host.sample(host.processing(sampler, steps=STEPS, values=("", "", "sometimes")))
    with raises("sigma_start"):
        host.sample(host.processing(sampler, steps=STEPS, values=("", "", "linear", 1, 0.1, 5)))
    for number in ("much", float("nan"), True):
        with raises("guidance end", "number"):
            host.sample(host.processing(sampler, steps=STEPS, values=("", "", "linear", number)))
    with raises("options", "text"):
        host.sample(host.processing(sampler, steps=STEPS, values=(["solver_type=heun"],)))
    with raises("solver_type", "twice"):
        host.sample(host.processing(sampler, steps=STEPS, values=("solver_type=heun, solver_type=midpoint",)))
    with raises("no option 's_churn'"):  # of a sampler that is in no list
        host.sample(host.processing(sampler, steps=STEPS, values=("s_churn=3",)))
    with raises("is not an option"):
        host.sample(host.processing(sampler, steps=STEPS, values=("x" * 100_000,)))
    if host.sd_schedulers:
        schedule = "Karras" + names().MARK
        with raises("start_step"):
            host.sample(host.processing(sampler, schedule, steps=STEPS, values=("", "start_step=2")))
        with raises("rho", "between"):
            host.sample(host.processing(sampler, schedule, steps=STEPS, values=("", "rho=0")))


def check_options_reach_sampler_and_schedule(host):
    name, values = "DPM++ 2M" + names().MARK, ("solver_type = heun, lower_order_final=off", "rho=3")
    schedule = "Karras" + names().MARK if host.sd_schedulers else "Automatic"
    spec = names().SAMPLER_NAMES[name]
    p = host.processing(name, schedule, steps=STEPS, values=values)
    ours = host.sample(p)
    assert p.extra_generation_params["Few-Step options"] == values[0]
    if host.sd_schedulers:
        assert p.extra_generation_params["Few-Step schedule options"] == values[1]

    def direct(model, x, sigmas, extra_args=None, callback=None, disable=None):
        if host.sd_schedulers:
            low, high = float(model.inner_model.sigmas[0]), float(model.inner_model.sigmas[-1])
            wanted = core().SCHEDULES["karras"].function(STEPS, low, high, flow=flow_of(model), rho=3.0).float()
            assert torch.equal(sigmas.cpu(), wanted)
        options = {"solver_type": "heun", "lower_order_final": False}
        return directly(spec, **options)(model, x, sigmas, extra_args, callback, disable)

    assert torch.equal(ours, host.sample_with(host.processing(name, schedule, steps=STEPS, values=values), direct))


def check_options_are_read_as_they_are_typed(host):
    """Also with the signs of Chinese and Japanese keyboards: none may be lost with the option before it."""
    name = "DPM++ 2M" + names().MARK
    spec = names().SAMPLER_NAMES[name]
    direct = directly(spec, solver_type="heun")
    wanted = host.sample_with(host.processing(name, steps=STEPS), direct)
    for text in (
        "order=2\uff0csolver_type\uff1dheun",
        "order = 2\u3001solver_type = heun",
        "order=2;\nsolver_type=heun ",
        f"order{' ' * 10**6}=\t2, solver_type=heun",  # an hour, if its time went by the square of its length
    ):
        p = host.processing(name, steps=STEPS, values=(text,))
        assert torch.equal(host.sample(p), wanted), text
        assert [comment for comment in p.comments if "no option order" in comment and "left out" in comment]


def check_settings_that_do_not_count_are_not_written(host):
    values = ("solver_type=heun", "rho=3", "interval")
    ours = host.processing("DPM++ 2M" + names().MARK, steps=STEPS, values=values)
    host.sample(ours)
    assert "Few-Step options" in ours.extra_generation_params
    p = host.processing("Euler a", steps=STEPS, values=values)
    p.extra_generation_params = ours.extra_generation_params  # as in the next cell of an x/y/z plot
    host.sample(p)
    assert not [key for key in p.extra_generation_params if "Few-Step" in key]
    assert len([comment for comment in p.comments if "left out" in comment]) == 3  # which the host shows


def check_the_text_of_an_image_restores_all_fields(host):
    """Those that it does not name as well: they were at their defaults."""
    options = sys.modules["fewstep.webui.options"]
    script = options.FewStepScript()
    widgets = script.ui(False)
    calibrated = plan_for(host)
    name = names().PLAN if host.sd_schedulers else "DPM++ 2M" + names().MARK
    for values in (
        ("", "", "power", 1.5, 9.0, 0.25, 3.0, calibrated.text() if host.sd_schedulers else ""),
        ("", "", "constant", 1.0, 0.0, 0.0, 2.0, calibrated.text() if host.sd_schedulers else ""),
    ):
        p = host.processing(name, steps=4, values=values)
        host.sample(p)
        params = host.pasted(p)
        restored = [params[key] for _, key in script.infotext_fields]
        assert options.Settings(*restored) == options.Settings(*values)
        assert [widget for widget, _ in script.infotext_fields] == widgets
        assert [type(widget.value)(value) for widget, value in zip(widgets, restored, strict=True)] == list(values)


def check_guidance_along_the_run(host):
    name = "DPM++ 2M" + names().MARK
    p = host.processing(name, steps=STEPS, values=("", "", "interval", 1, 5, 0.5))
    host.sample(p)
    assert set(host.recorded(p)) == {p.cfg_scale, 1.0} and host.recorded(p)[0] == 1.0 == host.recorded(p)[-1]
    assert p.extra_generation_params["Few-Step guidance"] == "interval"
    p = host.processing(name, steps=STEPS, values=("", "", "linear", 1.5))
    host.sample(p)
    scales = host.recorded(p)
    assert scales == sorted(scales, reverse=True) and abs(scales[0] - p.cfg_scale) < 1e-6 and scales[-1] > 1.5
    for scale in (3.0, 1000.0):  # without a word of ours, whatever it is
        p = host.processing(name, steps=STEPS, cfg_scale=scale)
        host.sample(p)
        assert set(host.recorded(p)) == {scale}
    if hasattr(p, "hr_cfg"):  # Forge takes the scale of the second pass from there
        p = host.processing(name, steps=STEPS, values=("", "", "interval", 1, 5, 0.5), is_hr_pass=True, hr_cfg=2.0)
        host.sample(p)
        assert set(host.recorded(p)) == {2.0, 1.0} and p.hr_cfg == 2.0


def plan_for(host, **about):
    """A plan over the whole range of the model: unusual levels, slopes, a factor of the guidance scale."""
    seen = []

    def watch(model, x, sigmas, extra_args=None, callback=None, disable=None):
        seen.append((float(model.inner_model.sigmas[-1]), flow_of(model)))
        return x

    host.sample_with(host.processing("DPM++ 2M" + names().MARK, steps=STEPS), watch)
    high, flow = seen[0]
    of = ("calibrated.recipe", "calibrated.tuning", "calibrated.plan", "calibrated.about")
    recipe, tuned, calibrated, record = (sys.modules[f"fewstep.samplers.{name}"] for name in of)
    sigmas = (high, *(high * share for share in (0.5, 0.2, 0.05)), 0.0)
    tunings = (tuned.PLAIN, tuned.Tuning(slope=0.2), tuned.PLAIN, tuned.Tuning(guidance=1.5))
    return calibrated.CalibratedPlan(
        recipe.Recipe("dpmpp_2m", sigmas, flow, tunings=tunings), about=record.About(**about)
    )


def check_a_plan_is_followed(host):
    if not host.sd_schedulers:
        return
    calibrated, name = plan_for(host, guidance=3.0, model={"sigma_max": 14.6146}), names().PLAN
    values = ("", "", "constant", 1, 0, 0, 2, calibrated.text())
    p = host.processing(name, steps=4, seeds=[3], values=values)
    ours = host.sample(p)
    assert host.recorded(p)[:3] == [p.cfg_scale] * 3 and host.recorded(p)[3] == 1.5 * p.cfg_scale
    assert p.extra_generation_params["Few-Step plan"] == calibrated.text()

    def direct(model, x, sigmas, extra_args=None, callback=None, disable=None):
        def guided(x, sigma, **args):
            factor = factors.pop(0)
            return model(x, sigma, **{**args, "cond_scale": factor * args["cond_scale"]})

        factors = [1.0, 1.0, 1.0, 1.5]
        return calibrated.recipe.function(
            guided, x, sigmas, extra_args, callback, disable, set_guidance=lambda factor: None
        )

    assert torch.equal(ours, host.sample_with(host.processing(name, steps=4, seeds=[3], values=values), direct))
    part = host.processing(name, steps=4, seeds=[3], values=values, denoising_strength=0.5, img2img=True)
    assert host.sample_img2img(part, 0.3 * torch.ones(1, 4, 8, 8)).isfinite().all()


def check_a_plan_that_does_not_fit_is_an_error(host):
    if not host.sd_schedulers:
        return
    calibrated, name = plan_for(host), names().PLAN
    values = ("", "", "constant", 1, 0, 0, 2, calibrated.text())
    with raises("paste one"):
        host.sample(host.processing(name, steps=4))
    with raises("not a plan"):
        host.sample(host.processing(name, steps=4, values=(*values[:-1], "{")))
    with raises("4 steps", "asks for 7"):
        host.sample(host.processing(name, steps=7, values=values))
    with raises("Automatic", "levels of its own"):
        host.sample(host.processing(name, "Karras" + names().MARK, steps=4, values=values))
    opts = host.shared.opts
    before, opts.always_discard_next_to_last_sigma = opts.always_discard_next_to_last_sigma, True
    try:
        for steps in (4, 3):  # for 3 the host asks for 4 and leaves one out
            with raises("turn off", "next-to-last"):
                host.sample(host.processing(name, steps=steps, values=values))
    finally:
        opts.always_discard_next_to_last_sigma = before
    other = plan_for(host, model={"family": "Flux"})
    with raises("another model", "Flux"):
        host.sample(host.processing(name, steps=4, values=(*values[:-1], other.text())))


def check_the_published_plan_is_for_its_model_alone(host):
    """AMED stands in no list; as a plan it is followed on SD1.5 in 10 steps, and refused elsewhere."""
    assert "amed_dpm_2m" not in {spec.id for spec in names().SAMPLER_NAMES.values()}
    assert not [data for data in host.sd_samplers.all_samplers if "amed" in str(data).lower()]
    if not host.sd_schedulers:
        return
    values = ("", "", "constant", 1, 0, 0, 2, "amed_dpm_2m")
    if host.is_sd15:
        p = host.processing(names().PLAN, steps=10, seeds=[3], cfg_scale=7.5, values=values)
        assert host.sample(p).isfinite().all() and len(host.recorded(p)) == 10
        with raises("10 steps"):
            host.sample(host.processing(names().PLAN, steps=8, values=values))
    else:
        with raises("another model"):
            host.sample(host.processing(names().PLAN, steps=10, values=values))


def check_interrupt_ends_the_run(host):
    """It is a BaseException out of the model: the host shows what there is then."""
    name = "DPM++ 2M" + names().MARK
    p = host.processing(name, steps=STEPS, seeds=[3])
    with host.interrupted_after(p, 2):
        out = host.sample(p)
    assert len(host.recorded(p)) == 2 and out.isfinite().all()
    whole = host.sample(host.processing(name, steps=STEPS, seeds=[3]))
    assert not torch.equal(out, whole)


def check_second_order_is_said(host):
    """The host counts on so many evaluations, for prompt editing and the refiner."""
    for name in names().SAMPLER_NAMES:
        p = host.processing(name, steps=10)
        host.sample(p)
        counted = host.sd_samplers.all_samplers_map[name].total_steps(10)
        assert counted - 1 <= len(host.recorded(p)) <= counted, name


CHECKS = {name: check for name, check in list(globals().items()) if name.startswith("check_")}
