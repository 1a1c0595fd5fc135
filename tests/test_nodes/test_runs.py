"""What is drawn is what runs, and the host is told of the levels of a run: recorded in the real host."""

from __future__ import annotations

import importlib
import inspect
import itertools
from types import SimpleNamespace

import pytest
import torch
from front_end import node, scheduler
from in_the_host import module
from small_models import conditioning, small_model

from samplers import SAMPLERS
from samplers.calibrated.about import About
from samplers.calibrated.plan import CalibratedPlan
from samplers.calibrated.predictor import Predictor
from samplers.calibrated.published import AMED_SD15
from samplers.calibrated.recipe import Recipe
from samplers.calibrated.tuning import Tuning

KINDS = ("EPS", "V_PREDICTION", "EDM", "FLOW")
CFG = 3.0
BUILT_IN = "built-in: amed_dpm_2m (SD1.5, 10 evaluations)"


@pytest.fixture
def sd15(comfy_process):
    """A small model that the host knows as SD1.5."""
    return as_family(small_model("EPS"), "SD15")


def as_family(model, name: str):
    type(model.model.model_config).__name__ = name  # a class of this model alone
    return model


def watched(model, denoise=lambda x: 0.5 * x):
    """The model with a simple network, and what it was told at each evaluation."""
    seen: list[SimpleNamespace] = []

    def record(function, arguments):
        options = arguments["c"]["transformer_options"]
        seen.append(
            SimpleNamespace(
                sigma=options["sigmas"][0].clone(),
                listed=options["sample_sigmas"].clone(),
                passes=len(options["cond_or_uncond"]),
            )
        )
        return denoise(arguments["input"])

    model = model.clone()
    model.set_model_unet_function_wrapper(record)
    return model, seen


def run(comfyui, model, sampler, sigmas, cfg: float = CFG, latent=None, seed: int = 3):
    """SamplerCustom."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)} if latent is None else latent
    arguments = (model, True, seed, cfg, conditioning(1), conditioning(2), sampler, sigmas, latent)
    return comfyui.nodes["SamplerCustom"].execute(*arguments).result[0]["samples"]


def split(sigmas: dict, step: int, output: int) -> dict:
    return {**node("SplitSigmas", sigmas=sigmas, step=step), "output": output}


def schedules(comfyui, model, name: str = "karras", steps: int = 10, **options):
    """Sigmas of the host by what the front end says of them, and what a node told of its model."""

    def sigmas(**inputs):
        inputs = {"schedule": name, "steps": steps, "denoise": 1.0, **options, **inputs}
        out = comfyui.nodes["FewStepScheduler"].execute(model, **inputs)
        return scheduler(**inputs), out.result[0], out.ui

    whole, levels, ui = sigmas()
    part, part_levels, _ = sigmas(denoise=0.5)
    high, low = comfyui.nodes["SplitSigmas"].execute(levels, 4).result
    told = {"levels": ui["fewstep_levels"][0], "model": ui["fewstep_model"][0]}
    return [(whole, levels), (part, part_levels), (split(whole, 4, 0), high), (split(whole, 4, 1), low)], told


def choices(spec) -> list[dict]:
    """The options of a sampler: the defaults, then one of them at a time at another value."""
    found: list[dict] = [{}]
    for option in spec.options:
        if option.choices:
            found += [{option.name: choice} for choice in option.choices if choice != option.default]
        elif isinstance(option.default, bool):
            value = not option.default
            if option.name == "lower_order_final":  # whose default is not that of every sampler: a choice in the node
                value = "on" if value else "off"
            found.append({option.name: value})
        elif option.name not in ("s_noise", "r1", "r2"):
            value = option.minimum if option.minimum > 0 or isinstance(option.default, int) else option.maximum / 2
            found.append({option.name: value})
    return found


def assert_drawn(drawn: dict, seen: list[SimpleNamespace]) -> None:
    """Levels to the bit, and the passes of the network."""
    assert [evaluation["sigma"] for evaluation in drawn["evaluations"]] == [float(s.sigma) for s in seen]
    assert drawn["passes"] == sum(s.passes for s in seen)


def assert_listed(seen: list[SimpleNamespace], end: float) -> None:
    """Every level that is passed is an entry of `sample_sigmas`, to the bit, and after it comes what is passed next, or
    the end of the run. Heun's method evaluates at that, too. Where a run comes back to a level the list descends."""
    passed = [level for level, _ in itertools.groupby(float(s.sigma) for s in seen)]
    if comes_back := len({*passed, end}) < len(passed) + (passed[-1] != end):
        assert all(torch.equal(s.listed, s.listed.unique().flip(0)) for s in seen)
    following = [s.sigma for s in seen[1:]] + [torch.tensor(end)]
    for evaluation, after in zip(seen, following, strict=True):
        (found,) = torch.where(evaluation.listed == evaluation.sigma)
        assert len(found) == 1, "not told twice: readers take it for one index"
        assert evaluation.listed[-1] == end
        if evaluation.sigma != after and not comes_back:
            assert evaluation.listed[found + 1] == after


# What is drawn


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", [id for id, spec in SAMPLERS.items() if not spec.adaptive])
def test_what_is_drawn_is_what_runs(comfyui, routes, kind, sampler):
    """Every sampler whole, in parts and from an image, with all its options, at which the two spaces of levels take
    turns; and the host is told of its levels."""
    model, seen = watched(small_model(kind))
    parts, told = schedules(comfyui, model)
    given_levels = True
    defaults, *others = choices(SAMPLERS[sampler])
    for options in [defaults, *{"EPS": others[::2], "FLOW": others[1::2]}.get(kind, [])]:
        (solver,) = comfyui.nodes["FewStepSampler"].execute(sampler, **options).result
        for schedule, sigmas in parts:
            seen.clear()
            assert run(comfyui, model, solver, sigmas).isfinite().all()
            request = {"node": node("FewStepSampler", sampler=sampler, **options), "sigmas": schedule, "guidance": CFG}
            drawn = routes.plan(request | told)
            assert_drawn(drawn, seen)
            assert not drawn["published"] and not drawn["unknown"]
            assert_listed(seen, float(sigmas[-1]))
            if "detail" not in options:  # which tells the model of others
                given_levels &= {float(s.sigma) for s in seen} <= set(sigmas.tolist())
            if {float(s.sigma) for s in seen} == set(sigmas[:-1].tolist()):
                assert all(torch.equal(s.listed, sigmas) for s in seen), "nothing is changed"
    assert given_levels <= (not sampler.startswith("amed")) and given_levels >= (sampler in AT_GIVEN_LEVELS)


AT_GIVEN_LEVELS = {"dpmpp_2m", "dpmpp_3m", "unipc", "ipndm_v", "ddim", "heun", "euler", "dpmpp_2m_sde", "deis"}


SHAPES = {
    "constant": {"cfg": 3.0},
    "none": {"schedule": "constant", "cfg": 1.0},
    "interval": {"cfg": 5.0},
    "linear": {"cfg": 5.0, "cfg_end": 1.0},
    "cosine": {"cfg": 1.0, "cfg_end": 6.0, "sigma_end": 0.3},
    "power": {"cfg": 5.0, "cfg_end": 2.0, "power": 3.0},
    "list": {"values": "7, 1, 5, 1, 2"},
    "cfg_pp": {"schedule": "constant", "cfg": 0.6, "cfg_pp": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.slow
def test_guidance_is_drawn_as_it_runs(comfyui, routes, kind, shape):
    """The scale of every evaluation, also of those between two levels, and the passes of the network."""
    inputs = {
        "schedule": shape, "cfg": 7.5, "cfg_end": 1.0, "sigma_start": 0.0, "sigma_end": 0.0, "power": 2.0, "values": "",
        "cfg_pp": False, "rescale": 0.0, "agreement": 1.0, "threshold": 1.0, "threshold_floor": 1.0, **SHAPES[shape],
    }  # fmt: skip
    (guidance,) = comfyui.nodes["FewStepGuidance"].execute(**inputs).result
    model, seen = watched(small_model(kind))
    scales: list[float] = []

    def scale(arguments):
        scales.append(float(arguments["cond_scale"]))
        return arguments["cond"]

    model.set_model_sampler_cfg_function(scale)
    (guided,) = comfyui.nodes["FewStepGuidancePatch"].execute(model, guidance).result
    parts, told = schedules(comfyui, model)
    for sampler in ("dpmpp_2m", "heun", "dpmpp_2s", "amed", "amed_dpm_2m", "dpm_fast", "plms"):
        (solver,) = comfyui.nodes["FewStepSampler"].execute(sampler).result
        for schedule, sigmas in parts if kind in ("EPS", "FLOW") else parts[:1]:
            seen.clear(), scales.clear()
            run(comfyui, guided, solver, sigmas)
            request = {"node": node("FewStepSampler", sampler=sampler), "sigmas": schedule}
            drawn = routes.plan(request | told | {"guidance": node("FewStepGuidance", **inputs)})
            assert_drawn(drawn, seen)
            assert drawn["guidance"] == pytest.approx(scales, rel=1e-3) and not drawn["at_most"]


def test_guidance_that_may_end_is_told(comfyui, routes):
    """Adaptive guidance: the passes that are drawn are the most that there can be."""
    guidance = node("FewStepGuidance", schedule="constant", cfg=5.0, values="", agreement=0.9)
    request = {"node": node("FewStepSampler", sampler="euler"), "guidance": guidance}
    drawn = routes.plan(request)
    assert drawn["at_most"] and drawn["passes"] == 2 * len(drawn["evaluations"])


# Published plans


@pytest.mark.parametrize("schedule", ["karras", "exponential", "time_uniform", "ays"])
def test_a_published_plan_is_drawn_where_it_runs(comfyui, routes, sd15, schedule):
    """Whatever the schedule, in 10 steps from pure noise to the clean image, on its model; and nowhere else."""
    model, seen = watched(sd15)
    parts, told = schedules(comfyui, model, schedule)
    plan = [float(stage.sigma) for stage in AMED_SD15.recipe.plan()]
    for options in ({}, {"middle": "given"}):
        (solver,) = comfyui.nodes["FewStepSampler"].execute("amed_dpm_2m", **options).result
        for number, (described, sigmas) in enumerate(parts):
            seen.clear()
            run(comfyui, model, solver, sigmas)
            request = {"node": node("FewStepSampler", sampler="amed_dpm_2m", **options), "sigmas": described}
            drawn = routes.plan(request | told | {"guidance": CFG})
            assert_drawn(drawn, seen)
            assert_listed(seen, float(sigmas[-1]))
            assert drawn["published"] == (number == 0 and not options) and not drawn["unknown"]
            if drawn["published"]:
                assert [float(s.sigma) for s in seen] == pytest.approx(plan) and "published" in drawn["label"]


def test_steps_of_a_published_plan_have_their_scales(comfyui, routes, sd15):
    """A list of scales goes by the steps of the plan, not by those of the schedule."""
    values = ", ".join(map(str, range(2, 12)))
    inputs = {"schedule": "list", "values": values, "cfg": 7.5}
    (guidance,) = comfyui.nodes["FewStepGuidance"].execute(**inputs).result
    model, _ = watched(sd15)
    scales: list[float] = []
    model.set_model_sampler_cfg_function(lambda given: scales.append(float(given["cond_scale"])) or given["cond"])
    (guided,) = comfyui.nodes["FewStepGuidancePatch"].execute(model, guidance).result
    (solver,) = comfyui.nodes["FewStepSampler"].execute("amed_dpm_2m").result
    (described, sigmas), *_ = schedules(comfyui, model)[0]
    run(comfyui, guided, solver, sigmas)
    assert scales == list(range(2, 12))
    told = schedules(comfyui, model)[1]
    request = {"node": node("FewStepSampler", sampler="amed_dpm_2m"), "sigmas": described}
    assert routes.plan(request | told | {"guidance": node("FewStepGuidance", **inputs)})["guidance"] == scales


def test_of_a_model_that_is_not_known(comfyui, routes):
    """Nothing known: drawn as on SD1.5, whose range is drawn. Its levels alone: it may be SDXL, and that is told."""
    request = {"node": node("FewStepSampler", sampler="amed_dpm_2m"), "sigmas": scheduler(steps=10)}
    drawn = routes.plan(request)
    assert drawn["published"] and not drawn["unknown"] and not drawn["levels"]["known"]
    levels = schedules(comfyui, small_model("EPS"))[1]["levels"]
    drawn = routes.plan(request | {"levels": levels})
    assert not drawn["published"] and drawn["unknown"]
    request["sigmas"]["inputs"]["steps"] = 9
    assert not routes.plan(request | {"levels": levels})["unknown"], "no plan for so many"


# Calibrated plans


def calibrated(guidance: float = 1.0) -> CalibratedPlan:
    sigmas = [14.6 * (1 - k / 6) ** 3 for k in range(7)]
    tunings = [Tuning(scale_time=1.0 - 0.01 * k, guidance=1 + guidance * 0.1 * k) for k in range(6)]
    return CalibratedPlan(Recipe("dpmpp_2m", sigmas, tunings=tunings))


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_parts_of_a_plan_are_drawn_as_they_run(comfyui, routes, guidance):
    model, seen = watched(small_model("EPS"))
    plan = calibrated(guidance)
    solver, sigmas = comfyui.nodes["FewStepPlanSampler"].execute(plan).result
    sampler = node("FewStepPlanSampler", plan=node("FewStepLoadPlan", file="", text=plan.text()))
    high, low = comfyui.nodes["SplitSigmas"].execute(sigmas, 2).result
    for described, levels in ((sampler, sigmas), (split(sampler, 2, 0), high), (split(sampler, 2, 1), low)):
        seen.clear()
        run(comfyui, model, solver, levels)
        assert_drawn(routes.plan({"node": sampler, "sigmas": described, "guidance": CFG}), seen)
        assert_listed(seen, float(levels[-1]))
    with pytest.raises(ValueError, match="its plan has levels of its own"):
        routes.plan({"node": sampler, "sigmas": scheduler(steps=6)})


@pytest.mark.parametrize("use_plans", [True, False])
@pytest.mark.parametrize("denoise", [1.0, 0.5])
@pytest.mark.parametrize("variety", ["exact seed", "more variety"])
def test_what_auto_does_is_drawn(comfyui, routes, sd15, folder, use_plans, denoise, variety):
    """The same choice, with the same plans, on all of its levels or a part of them."""
    model, seen = watched(sd15)
    about = About(model=module(comfyui, "host.model").fingerprint(model), guidance=CFG)
    CalibratedPlan(calibrated(0.0).recipe, about=about).save(folder / "mine.safetensors")
    for evaluations, cfg in ((6, 0.0), (6, 7.0), (7, CFG), (10, 0.0), (10, CFG), (13, 0.0)):
        inputs = {"evaluations": evaluations, "variety": variety, "denoise": denoise, "use_plans": use_plans}
        inputs["cfg"] = cfg
        out = comfyui.nodes["FewStepAuto"].execute(model, **inputs)
        solver, sigmas, text = out.result
        followed = bool(out.ui["fewstep_plan"][0])
        wanted = (
            use_plans and denoise == 1 and variety == "exact seed" and (evaluations, cfg) not in ((6, 7.0), (13, 0))
        )
        assert followed == (wanted and (evaluations, cfg) != (10, CFG)), text  # the published one is for 7.5
        told = {"levels": out.ui["fewstep_levels"][0], "model": out.ui["fewstep_model"][0]}
        auto = node("FewStepAuto", **inputs)
        for described, levels in ((auto, sigmas), (split(auto, 2, 1), sigmas[2:])):
            seen.clear()
            run(comfyui, model, solver, levels)
            drawn = routes.plan({"node": auto, "sigmas": described, "guidance": CFG} | told)
            assert_drawn(drawn, seen)
            assert drawn["evaluations"] or len(levels) < 2


def test_levels_of_a_predictor_are_listed_as_they_are_told(comfyui):
    """Each image has its own; the list holds those of the first, and begins with the fixed ones."""
    model, positive, negative = comfyui.nodes["FewStepDemoModel"].execute("red apple", "").result
    (latent,) = comfyui.nodes["FewStepDemoLatent"].execute(2).result
    told, lists = [], []

    def record(function, arguments):
        options = arguments["c"]["transformer_options"]
        told.append(options["sigmas"][0].clone()), lists.append(options["sample_sigmas"].clone())
        return function(arguments["input"], arguments["timestep"], **arguments["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(record)
    torch.manual_seed(0)
    with torch.inference_mode(False):
        predictor = Predictor(0.05, 0.2).eval().requires_grad_(False)
        for parameter in predictor.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    plan = CalibratedPlan(Recipe("dpm_2m", [14.6, 6.0, 3.0, 1.0, 0.3, 0.1, 0.0]), predictor)
    solver, sigmas = comfyui.nodes["FewStepPlanSampler"].execute(plan).result
    comfyui.nodes["SamplerCustom"].execute(model, True, 3, CFG, positive, negative, solver, sigmas, latent)
    assert len(told) == 6 and not {float(sigma) for sigma in told} <= set(sigmas.tolist())
    for k, (sigma, listed) in enumerate(zip(told, lists, strict=True)):
        assert len(listed) == 7 and listed[k] == sigma and listed[-1] == 0
        assert torch.equal(listed[:k], torch.stack(told[:k])) if k else True


# The levels of a run, for those who read them


def test_levels_that_are_chosen_on_the_way_are_listed(comfyui):
    """dpm_adaptive: the level that is told stands in its place among those that were given."""
    for kind in ("EPS", "FLOW"):
        model, seen = watched(small_model(kind))
        (_, sigmas), *_ = schedules(comfyui, model)[0]
        (solver,) = comfyui.nodes["FewStepSampler"].execute("dpm_adaptive").result
        run(comfyui, model, solver, sigmas)
        assert len(seen) > 10
        for evaluation in seen:
            assert (evaluation.listed == evaluation.sigma).sum() == 1 and (evaluation.listed.diff() < 0).all()
            assert torch.isin(sigmas, evaluation.listed).all()


def test_first_levels_just_above_one(comfyui):
    """The shift of some flow models rounds the first level to 1.0000001: what is told is what is listed."""
    (shifted,) = comfyui.nodes["ModelSamplingSD3"]().patch(small_model("FLOW"), shift=1.32)
    assert float(shifted.get_model_object("model_sampling").sigma_max) > 1
    model, seen = watched(shifted)
    sigmas = comfyui.nodes["BasicScheduler"].execute(model, "simple", 6, 1.0).result[0]
    for sampler in ("euler", "dpmpp_2m", "dpmpp_2s", "amed", "dpm_fast"):
        (solver,) = comfyui.nodes["FewStepSampler"].execute(sampler).result
        seen.clear()
        run(comfyui, model, solver, sigmas)
        assert_listed(seen, 0.0)


@pytest.mark.parametrize("sampler", ["amed", "amed_dpm_2m", "dpm_fast", "dpmpp_2s", "dpm_adaptive", "plms"])
def test_context_windows(comfyui, sampler):
    """The host looks up the step of an evaluation; its own two-stage samplers fail there in 0.3.75."""
    model, node = small_model("EPS"), comfyui.nodes["ContextWindowsManual"].execute
    more = [False] if "freenoise" in inspect.signature(node).parameters else []  # newer hosts ask for it
    (windows,) = node(model, 4, 2, "standard_static", 1, False, "pyramid", 2, *more).result
    (_, sigmas), *_ = schedules(comfyui, model)[0]
    (solver,) = comfyui.nodes["FewStepSampler"].execute(sampler).result
    assert run(comfyui, windows, solver, sigmas).isfinite().all()


def test_the_callers_options_are_not_written_to(comfyui):
    """Neither in a run nor where the model fails."""
    model = small_model("EPS")
    given: list[tuple[dict, torch.Tensor]] = []

    def look(sampler, guider, sigmas, extra_args, *rest):
        given.append((extra_args["model_options"]["transformer_options"], sigmas))
        return sampler(guider, sigmas, extra_args, *rest)

    def broken(x):
        raise ZeroDivisionError

    from comfy.patcher_extension import WrappersMP

    (_, sigmas), *_ = schedules(comfyui, model)[0]
    (solver,) = comfyui.nodes["FewStepSampler"].execute("amed").result
    for fails in (False, True):
        watched_model, seen = watched(model, broken if fails else lambda x: 0.5 * x)
        watched_model.add_wrapper(WrappersMP.SAMPLER_SAMPLE, look)
        if fails:
            with pytest.raises(ZeroDivisionError):
                run(comfyui, watched_model, solver, sigmas)
        else:
            run(comfyui, watched_model, solver, sigmas)
        options, levels = given.pop()
        assert options["sample_sigmas"] is levels and not torch.equal(seen[0].listed, levels)
    assert "sample_sigmas" not in model.model_options["transformer_options"]


def test_a_run_within_a_run_leaves_the_list_of_the_whole(comfyui):
    """A sampler of another pack that calls ours for a part of the levels: steps are counted over all of them."""
    host = module(comfyui, "host.sampling")
    model, seen = watched(small_model("EPS"))
    (_, sigmas), *_ = schedules(comfyui, model)[0]
    part = host.sampler_function(SAMPLERS["dpmpp_2m"])

    def in_parts(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for k in (0, 4):
            x = part(model, x, sigmas[k : k + 5], extra_args, None, True)
        return x

    import comfy.samplers

    run(comfyui, model, comfy.samplers.KSAMPLER(in_parts), sigmas[:9])
    assert len(seen) == 8 and all(torch.equal(evaluation.listed, sigmas[:9]) for evaluation in seen)


def test_inversion_is_listed_too(comfyui):
    model, seen = watched(small_model("EPS"), lambda x: 0.1 * x)
    (_, sigmas), *_ = schedules(comfyui, model, steps=5)[0]
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    for sampler in ("ddim", "dpmpp_2s", "dpm_fast"):
        seen.clear()
        comfyui.nodes["FewStepInvert"].execute(
            model, conditioning(1), conditioning(2), latent, CFG, sampler, sigmas, 1, True
        )
        assert seen and all((s.listed == s.sigma).sum() == 1 for s in seen)


# The way of a run


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "dpm_adaptive", "amed_dpm_2m", "published", "plan"])
def test_options_are_checked_once_and_sigmas_read_once(comfyui, sd15, monkeypatch, sampler):
    """In the host, too, whatever a sampler follows: what it is given is read from the device once."""
    calls, runs = [], module(comfyui, "host.runs")
    check, read = runs.SamplerSpec.check_options, runs.read_sigmas

    def check_options(spec, given):
        calls.append("options")
        return check(spec, given)

    def read_sigmas(given):
        calls.extend(["sigmas"] * isinstance(given, torch.Tensor))
        return read(given)

    sigmas = torch.tensor([14.6146, 9.0, 6.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.5, 0.2, 0.0])
    if sampler == "plan":
        solver, sigmas = comfyui.nodes["FewStepPlanSampler"].execute(calibrated()).result
        sigmas = sigmas[2:]
    else:
        id = "amed_dpm_2m" if sampler == "published" else sampler
        sigmas = sigmas if sampler == "published" else sigmas[:8]
        (solver,) = comfyui.nodes["FewStepSampler"].execute(id).result
    monkeypatch.setattr(runs.SamplerSpec, "check_options", check_options)
    monkeypatch.setattr(runs, "read_sigmas", read_sigmas)
    for package in (runs.__package__.removesuffix("nodes.host"), ""):  # as the host has loaded it; that of the plan
        for name in ("levels", "sampler", "calibrated.recipe"):
            monkeypatch.setattr(importlib.import_module(f"{package}samplers.{name}"), "read_sigmas", read_sigmas)
    run(comfyui, sd15, solver, sigmas)
    assert calls == (["sigmas"] if sampler == "plan" else ["sigmas", "options"])
