"""What the front end draws is what a run uses."""

from __future__ import annotations

import itertools
import json
import struct

import pytest
import torch
from front_end import node, scheduler
from in_the_host import module
from small_models import small_model
from standins import network

from samplers import SAMPLERS, SCHEDULES


@pytest.mark.parametrize("model_type", ["EPS", "FLOW"])
def test_sigmas_are_those_of_the_node(comfyui, routes, model_type):
    model = small_model(model_type)
    for schedule in [id for id, spec in SCHEDULES.items() if spec.any_steps]:
        run = comfyui.nodes["FewStepScheduler"].execute(model, schedule, 8, 0.5)
        (levels,) = run.ui["fewstep_levels"]
        drawn = routes.sigmas({"node": scheduler(schedule, 8, 0.5), "levels": levels})
        assert drawn["sigmas"] == run.result[0].tolist()
        assert drawn["levels"]["known"] and drawn["levels"]["flow"] == (model_type == "FLOW")


def test_karras_is_the_hosts(comfyui, routes):
    import comfy.samplers

    model = small_model("EPS")
    levels = comfyui.nodes["FewStepScheduler"].execute(model, "karras", 8, 1.0).ui["fewstep_levels"][0]
    sampling = model.get_model_object("model_sampling")
    for steps, denoise in ((8, 1.0), (8, 0.4)):
        host = comfy.samplers.calculate_sigmas(sampling, "karras", int(steps / denoise))[-steps - 1 :]
        drawn = routes.sigmas({"node": scheduler("ays", steps, denoise), "levels": levels})
        # In float32 the host rounds the root of a level three times, which rho = 7 makes seven times as much.
        rtol = 20 * torch.finfo(torch.float32).eps
        torch.testing.assert_close(torch.tensor(drawn["karras"]), host, rtol=rtol, atol=0)


def test_without_a_model_the_range_is_that_of_stable_diffusion(comfyui, routes):
    import comfy.model_sampling

    sampling = comfy.model_sampling.ModelSamplingDiscrete()
    drawn = routes.sigmas({"node": scheduler()})
    assert drawn["sigmas"][0] == pytest.approx(float(sampling.sigma_max))
    assert drawn["sigmas"][-2] == pytest.approx(float(sampling.sigma_min))
    assert not drawn["levels"]["known"]


def test_without_a_model_the_schedule_of_a_flow_model_is_drawn_as_its_own(comfyui, routes):
    """A workflow for FLUX.1 schnell has no error before its first run."""
    import comfy.model_sampling

    sampling = comfy.model_sampling.ModelSamplingDiscreteFlow()
    sampling.set_parameters(shift=1.0)
    schedule = scheduler("trained", 4, distilled="flux_schnell")
    drawn = routes.sigmas({"node": schedule})
    shown = drawn["levels"]
    assert (shown["flow"], shown["known"]) == (True, False) and drawn["sigmas"] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [shown["sigma_min"], shown["sigma_max"]] == pytest.approx(
        [float(sampling.sigma_min), float(sampling.sigma_max)]
    )
    run = routes.plan({"node": node("FewStepSampler", sampler="euler"), "sigmas": schedule})
    assert [evaluation["sigma"] for evaluation in run["evaluations"]] == drawn["sigmas"][:-1]


@pytest.mark.parametrize("shift", [1.0, 8.0])
def test_noise_of_sa_solver_is_shown_where_the_model_has_it(routes, shift):
    """Between 0.2 and 0.8 of its time, which the shift moves."""
    levels = {"sigma_min": 0.001, "sigma_max": 1.0, "flow": True, "shift": shift}
    given = {"node": node("FewStepSampler", sampler="sa_solver"), "sigmas": scheduler("time_uniform", 10)}
    drawn = routes.plan(given | {"levels": levels})["evaluations"]
    arrived = [after["sigma"] for before, after in itertools.pairwise(drawn) if before["noise"]]
    times = [sigma / (shift - (shift - 1) * sigma) for sigma in arrived]
    assert times and all(0.19 < time < 0.81 for time in times)
    assert min(times) < 0.31 and max(times) > 0.69


@pytest.mark.parametrize("sampler", [id for id, spec in SAMPLERS.items() if not spec.adaptive])
def test_evaluations_are_those_of_the_sampler(routes, sampler):
    schedule = scheduler("exponential", 9)
    drawn = routes.plan({"node": node("FewStepSampler", sampler=sampler), "sigmas": schedule, "guidance": 7.5})
    sigmas = routes.sigmas({"node": schedule})["sigmas"]
    spec = SAMPLERS[sampler]
    assert len(drawn["evaluations"]) == spec.nfe(sigmas)
    assert drawn["passes"] == 2 * spec.nfe(sigmas)
    orders = [evaluation["order"] for evaluation in drawn["evaluations"]]
    assert max(orders) == spec.order == drawn["order"] and min(orders) >= 1
    plan = spec.plan(sigmas)
    assert sum(evaluation["noise"] for evaluation in drawn["evaluations"]) == sum(s.noise is not None for s in plan)


def test_order_rises_and_falls(routes):
    def orders(sampler: str, **options) -> list[int]:
        drawn = routes.plan({"node": node("FewStepSampler", sampler=sampler, **options), "sigmas": scheduler(steps=5)})
        return [evaluation["order"] for evaluation in drawn["evaluations"]]

    assert orders("dpmpp_2m") == [1, 2, 2, 2, 1]
    assert orders("dpmpp_3m")[:3] == [1, 2, 3]
    assert orders("dpmpp_2s") == [1, 2, 1, 2, 1, 2, 1, 2, 1]  # the second evaluation of a step makes it order 2
    assert orders("euler") == [1] * 5


def test_a_part_of_a_schedule_has_no_final_step(routes):
    part = scheduler(steps=8, start_step=2, end_step=6)
    drawn = routes.plan({"node": node("FewStepSampler", sampler="dpmpp_2m"), "sigmas": part})
    assert [evaluation["order"] for evaluation in drawn["evaluations"]] == [1, 2, 2, 2]
    compared = routes.sigmas({"node": part})
    assert compared["sigmas"] == pytest.approx(compared["karras"], rel=1e-5)  # the same part of the host's


def test_guidance_of_each_step(routes):
    def passes(guidance) -> tuple:
        drawn = routes.plan(
            {"node": node("FewStepSampler", sampler="heun"), "sigmas": scheduler(), "guidance": guidance}
        )
        return drawn["guidance"], drawn["passes"]

    assert passes(None) == (None, None)
    assert passes(1.0) == ([1.0] * 15, 15)
    assert passes([7, 1]) == ([7.0] * 2 + [1.0] * 13, 17)  # two evaluations in the first step
    interval = {"schedule": "interval", "cfg": 5.0, "values": "", "sigma_start": 0.0, "sigma_end": 0.0}
    scales, total = passes(node("FewStepGuidance", **interval))
    assert set(scales) == {1.0, 5.0} and scales[0] == scales[-1] == 1.0 and 15 < total < 30


def test_parts_of_split_sigmas(comfyui, routes):
    """A sampler behind the host's SplitSigmas is drawn on its part."""
    whole = torch.tensor(routes.sigmas({"node": scheduler(steps=8)})["sigmas"])
    parts = comfyui.nodes["SplitSigmas"].execute(whole, 5).result
    for output, part in enumerate(parts):
        split = node("SplitSigmas", step=5, sigmas=scheduler(steps=8)) | {"output": output}
        drawn = routes.plan({"node": node("FewStepSampler", sampler="euler"), "sigmas": split})
        assert [evaluation["sigma"] for evaluation in drawn["evaluations"]] == pytest.approx(part[:-1].tolist())
        assert not drawn["assumed"]
    with pytest.raises(ValueError, match="SplitSigmas leaves no step"):
        routes.plan(
            {
                "node": node("FewStepSampler", sampler="euler"),
                "sigmas": split | {"inputs": split["inputs"] | {"step": 8}},
            }
        )


@pytest.mark.parametrize("model_type", ["EPS", "FLOW"])
@pytest.mark.parametrize("name", ["normal", "simple", "fewstep_exponential"])
def test_levels_of_the_hosts_scheduler(comfyui, routes, model_type, name):
    import comfy.samplers

    model = small_model(model_type)
    levels = comfyui.nodes["FewStepScheduler"].execute(model, "karras", 8, 1.0).ui["fewstep_levels"][0]
    host = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), name, 16)[-9:]
    basic = node("BasicScheduler", scheduler=name, steps=8, denoise=0.5)
    drawn = routes.plan({"node": node("FewStepSampler", sampler="euler"), "sigmas": basic, "levels": levels})
    assert [evaluation["sigma"] for evaluation in drawn["evaluations"]] == pytest.approx(host[:-1].tolist())
    assert not drawn["assumed"]


def test_levels_of_the_host_that_are_not_known(routes):
    for schedule, levels, message in (
        (node("BasicScheduler", scheduler="mine", steps=8), None, "there is no 'mine'"),
        (node("BasicScheduler", scheduler="normal", steps=8), {"sigma_min": 0.002, "sigma_max": 80.0}, "when it runs"),
    ):
        with pytest.raises(ValueError, match=message):
            routes.plan({"node": node("FewStepSampler", sampler="euler"), "sigmas": schedule, "levels": levels})


def test_words_and_bounds_of_widgets(comfyui, routes):
    inputs = {input.id: input for input in comfyui.nodes["FewStepScheduler"].define_schema().inputs}
    (own,) = routes.options()["FewStepScheduler"]
    for name, words in own["words"].items():
        assert all(inputs[name].min <= float(value) <= inputs[name].max for value in words)
    assert own["bounds"]["karras"]["rho"][0] == 1.0
    for schedule, bounds in own["bounds"].items():
        for name, (low, high) in bounds.items():
            assert low <= own["widgets"][schedule][name] <= high, (schedule, name)


@pytest.mark.parametrize("model_type", ["EPS", "FLOW"])
def test_ramps_are_drawn_in_the_hosts_percent(comfyui, routes, model_type):
    """A linear ramp has come as far as sampling."""
    model = small_model(model_type)
    levels = comfyui.nodes["FewStepScheduler"].execute(model, "karras", 8, 1.0).ui["fewstep_levels"][0]
    ramp = node("FewStepGuidance", schedule="linear", cfg=5.0, cfg_end=2.0, values="")
    request = {"node": node("FewStepSampler", sampler="euler"), "sigmas": scheduler(), "guidance": ramp}
    drawn = routes.plan(request | {"levels": levels})
    sampling = model.get_model_object("model_sampling")
    for scale, evaluation in list(zip(drawn["guidance"], drawn["evaluations"], strict=True))[1:]:
        reached = float(sampling.percent_to_sigma((5.0 - scale) / 3.0))
        assert reached == pytest.approx(evaluation["sigma"], rel=1e-3)


def test_calibrated_plans(comfyui, routes):
    loaded = node("FewStepLoadPlan", file="built-in: amed_dpm_2m (SD1.5, 10 evaluations)", text="")
    sampler = node("FewStepPlanSampler", plan=loaded, see_bottleneck=True)
    drawn = routes.plan({"node": sampler, "guidance": 7.5})
    assert len(drawn["evaluations"]) == 10 and drawn["passes"] == 20 and not drawn["assumed"]
    plan = comfyui.nodes["FewStepLoadPlan"].execute(loaded["inputs"]["file"]).result[0]
    run = comfyui.nodes["FewStepPlanSampler"].execute(plan)
    drawn_at = [evaluation["sigma"] for evaluation in drawn["evaluations"]]  # what the model is told: scale_time
    assert drawn_at == pytest.approx(run.result[1][:-1].tolist(), rel=0.1)
    sampler["inputs"]["plan"] = node("FewStepLoadPlan", file="", text=run.ui["fewstep_plan"][0])  # as after a run
    assert routes.plan({"node": sampler})["evaluations"] == drawn["evaluations"]


PLAN = node("FewStepLoadPlan", file="built-in: amed_dpm_2m (SD1.5, 10 evaluations)", text="")
CHECKPOINT = node("CheckpointLoaderSimple", ckpt_name="mine.safetensors")


@pytest.fixture
def checkpoints(comfyui, monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def write_header(path, kind: str, prefix: str | None = None) -> None:
    """A file of which no more than the header is there, since no more is to be read."""
    _, tensors = network(kind)
    entries = {
        (name if prefix is None else name.replace("model.diffusion_model.", prefix)): {
            "dtype": "F16", "shape": list(tensor.shape), "data_offsets": [0, 0]
        } for name, tensor in tensors.items()
    }  # fmt: skip
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_a_plan_for_another_model_is_told_before_the_run(comfyui, routes, checkpoints):
    """By what the loader will load: the demo, or the header of a file. A fault there is for the loader to tell."""
    users = [
        node("FewStepPlanSampler", plan=PLAN, see_bottleneck=True),
        node("FewStepKSampler", sampler_name="euler", scheduler="karras", steps=10, plan=PLAN),
    ]
    for user in users:
        with pytest.raises(ValueError, match=r"plan is for SD1\.5; your model is the Few-Step demo"):
            routes.plan({"node": user, "loader": node("FewStepDemoModel", prompt="cat")})
        drawn = routes.plan({"node": user})
        write_header(checkpoints / "mine.safetensors", "SD15")
        assert routes.plan({"node": user, "loader": CHECKPOINT}) == drawn
        write_header(checkpoints / "mine.safetensors", "SDXL")
        with pytest.raises(ValueError, match=r"plan is for SD1\.5; your model is SDXL"):
            routes.plan({"node": user, "loader": CHECKPOINT})
        write_header(checkpoints / "mine.safetensors", "SDXL", prefix="")
        with pytest.raises(ValueError, match=r"your model is SDXL"):
            routes.plan({"node": user, "loader": node("UNETLoader", unet_name="mine.safetensors")})
        for damaged in (b"", b"\xff" * 20, struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 9) + b'{"a": {}}'):
            (checkpoints / "mine.safetensors").write_bytes(damaged)
            assert routes.plan({"node": user, "loader": CHECKPOINT}) == drawn
        assert routes.plan({"node": user, "loader": node("CheckpointLoaderSimple", ckpt_name="../gone")}) == drawn
        kind = {"levels": {"sigma_min": 0.03, "sigma_max": 14.6}, "model": {"family": "SDXL"}}  # of the last run
        with pytest.raises(ValueError, match=r"your model is SDXL"):
            routes.plan({"node": user, **kind})
    auto = node("FewStepAuto", evaluations=10, variety="exact seed", denoise=1.0, use_plans=False, cfg=7.5, plan=PLAN)
    labels = [routes.plan({"node": auto, "loader": node(kind)})["label"] for kind in ("Other", "FewStepDemoModel")]
    assert ["calibrated" in label for label in labels] == [True, False]  # it is left out, as in the run


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"node": scheduler(steps=0)}, "steps"),
        ({"node": scheduler(steps=5000)}, "not drawn"),
        ({"node": scheduler(denoise=0.0)}, "denoise is 0"),
        ({"node": scheduler(rho=0.1)}, "rho"),
        ({"node": scheduler("no such")}, "no such"),
        ({"node": node("FewStepCalibrate")}, "when it runs"),
        ({"node": node("FewStepPlanSampler", plan=None)}, "Connect a plan"),
    ],
)
def test_what_cannot_be_drawn_is_told(routes, request_, message):
    with pytest.raises((ValueError, KeyError), match=message):
        routes.sigmas(request_)


def test_adaptive_samplers_have_no_plan(routes):
    with pytest.raises(ValueError, match="no plan"):
        routes.plan({"node": node("FewStepSampler", sampler="dpm_adaptive")})


def test_widgets_of_each_choice(comfyui, routes):
    for kind, choices in routes.options().items():
        inputs = {i.id: i for i in comfyui.nodes[kind].define_schema().inputs}
        for table in choices:
            if table["choice"] is None:
                assert table["words"].keys() <= inputs.keys() and not table["widgets"]
                continue
            assert list(table["widgets"]) == inputs[table["choice"]].options
            for names in table["widgets"].values():
                assert names.keys() <= inputs.keys()


def test_samplers_are_listed_family_by_family(comfyui, routes):
    for kind, choice in (("FewStepSampler", "sampler"), ("FewStepKSampler", "sampler_name")):
        inputs = {i.id: i for i in comfyui.nodes[kind].define_schema().inputs}
        (table,) = [table for table in routes.options()[kind] if table["choice"] == choice]
        families = [table["families"][id] for id in inputs[choice].options]
        assert sorted(inputs[choice].options) == sorted(SAMPLERS)
        assert list(dict.fromkeys(families)) == [
            "multistep", "singlestep", "added noise", "AMED", "adaptive", "distilled models"
        ]  # fmt: skip
        assert len([1 for a, b in itertools.pairwise(families) if a != b]) == 5
    found = routes.options()["FewStepSampler"][0]["families"]
    known = {"dpmpp_2m": "multistep", "euler": "singlestep", "rk4": "singlestep", "er_sde": "added noise"}
    known |= {"amed_dpm_2m": "AMED", "dpm_adaptive": "adaptive", "consistency": "distilled models"}
    assert {id: found[id] for id in known} == known


def test_samplers_are_listed_with_their_other_names(routes):
    """Users of other packs know them by these; their own name, and the host's for another device, say nothing new."""
    also = routes.options()["FewStepSampler"][0]["also"]
    assert also["res_multistep"] == ["res_2m", "res_3m"]
    assert also["consistency"] == ["lcm"] and also["dpm_2s"] == ["dpm_2"]
    assert also.keys() <= SAMPLERS.keys() and not {name for names in also.values() for name in names} & SAMPLERS.keys()
    assert "res_3s" not in also, "what is only the nearest is no other name"


def test_over_http(running_host):
    missing = {"node": node("FewStepPlanSampler", see_bottleneck=True)}
    assert running_host.post("/fewstep/plan", missing)[1]["not_yet"]  # which is no error
    status, answer = running_host.post("/fewstep/sigmas", {"node": scheduler(steps=3)})
    assert status == 200 and len(answer["sigmas"]) == 4
    status, answer = running_host.post("/fewstep/sigmas", {"node": scheduler(steps=0)})
    assert status == 200 and "steps" in answer["error"]  # shown in the node
    assert "dpmpp_2m" in running_host.get("/fewstep/options")["FewStepSampler"][0]["widgets"]
    assert running_host.post("/fewstep/check", {"steps": "5, x"})[1]["faults"].keys() == {"steps"}
    assert {"samplers", "schedules"} == running_host.get("/fewstep/names").keys()
    levels = {"sigma_min": 0.0292, "sigma_max": 14.6146, "flow": False, "shift": 1.0}
    kind = {"sampling": "ModelSamplingDiscrete", "prediction": "EPS", "shift": 1.0, "sigma_max": 14.6146}
    request = {"node": node("FewStepSampler", sampler="amed_dpm_2m"), "sigmas": scheduler(steps=10), "levels": levels}
    for family, published in (("SD15", True), ("SDXL", False)):  # what a node has told of its model decides
        status, answer = running_host.post("/fewstep/plan", {**request, "model": {**kind, "family": family}})
        assert (status, answer["published"], answer["unknown"]) == (200, published, False)


def test_what_may_be_named_in_compare(comfyui, routes):
    """All that the list offers is read without a complaint, and each option that it tells of; ours come first."""
    names = module(comfyui, "ui.names")
    for kind, entries in names.known_names().items():
        ours = [entry for entry in entries if "label" in entry]
        assert entries[: len(ours)] == ours and len(ours) < len(entries)
        lines = [" ".join([entry["name"], *entry.get("options", [])]) for entry in entries]
        assert routes.check({kind: "\n".join(entry["name"] for entry in entries)}) == {"faults": {}}
        read = names.READERS[kind]("\n".join(line for line in lines if not line.endswith("=")))
        assert [named.name for named in read][: len(ours)] == [entry["name"] for entry in ours]
    faults = routes.check({"samplers": "euler\nnone", "schedules": "karras", "steps": "0"})["faults"]
    assert list(faults) == ["samplers", "steps"] and faults["samplers"].startswith("samplers, line 2: ")
    for wrong in ([], {"samplers": 1}, {"steps": None}):
        with pytest.raises(ValueError, match="must be"):
            routes.check(wrong)


def test_what_auto_chooses(comfyui, routes):
    model = small_model("EPS")
    for budget in (4, 9):
        inputs = {"evaluations": budget, "variety": "exact seed", "denoise": 1.0, "use_plans": False}
        run = comfyui.nodes["FewStepAuto"].execute(model, **inputs)
        drawn = routes.plan({"node": node("FewStepAuto", **inputs), "levels": run.ui["fewstep_levels"][0]})
        assert drawn["evaluations"][0]["sigma"] == run.result[1][0] and not drawn["assumed"]
        assert f"{len(drawn['evaluations'])} evaluations" in run.result[2]
