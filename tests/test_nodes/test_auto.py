"""Few-Step Auto in the real host: it follows what was measured, keeps to its budget, and says why."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import pytest
import torch
from in_the_host import module
from safetensors.torch import save_file
from small_models import conditioning, small_model
from tables import PICKS, QUALITY, picks, picks_text

from samplers import SAMPLERS
from samplers.calibrated.about import About
from samplers.calibrated.plan import CalibratedPlan
from samplers.calibrated.recipe import Recipe
from samplers.checks import counted

EXACT, VARIED = "exact seed", "more variety"
KINDS = ("EPS", "FLOW")


def choose(comfyui, model, evaluations: int, variety: str = EXACT, denoise: float = 1.0, **inputs):
    """SAMPLER, SIGMAS and the text, which is also shown on the node."""
    out = comfyui.nodes["FewStepAuto"].execute(model, evaluations, variety, denoise, **inputs)
    assert out.ui["text"] == (out.result[2],)
    return out.result


def evaluations_of(comfyui, model, sampler, sigmas, image=None) -> int:
    """How often a run of SamplerCustom really asks the model, guidance counted once."""
    asked = []

    def count(function, arguments):
        asked.append(len(arguments["input"]))
        return 0.5 * arguments["input"]

    counting = model.clone()
    counting.set_model_unet_function_wrapper(count)
    image = image or {"samples": torch.zeros(1, 4, 8, 8)}
    arguments = (counting, True, 3, 1.0, conditioning(1), conditioning(2), sampler, sigmas, image)
    out = comfyui.nodes["SamplerCustom"].execute(*arguments).result[0]["samples"]
    assert out.isfinite().all()
    return len(asked)


# The table


def test_the_table_is_that_of_the_benchmark():
    assert PICKS.read_text() == picks_text(), "run `python tools/tables.py`"


def test_exact_picks_have_the_least_error_measured():
    """Looked up in the benchmark again, by other means."""
    with QUALITY.open() as file:
        rows = [r for r in csv.DictReader(file) if r["source"] == "ours" and r["median"] and r["budget"]]
    budgets = sorted({int(row["budget"]) for row in rows})
    table = picks()["noise prediction"][EXACT]
    assert [row["start"] for row in table] == [1, *budgets[1:]]
    for budget, pick in zip(budgets, table, strict=True):
        errors = {
            (r["sampler"].split()[0], r["schedule"]): float(r["median"]) for r in rows if r["budget"] == str(budget)
        }
        assert errors[pick["sampler"], pick["schedule"] + "*" * pick["discard_penultimate"]] == min(errors.values())
        assert f"{min(errors.values()):.2g}" in pick["why"]


def test_every_pick_is_one_that_there_is():
    """Samplers without noise for the exact seed, with noise for variety; the choices are the node's."""
    for kind in picks().values():
        assert list(kind) == [EXACT, VARIED]
        for variety, rows in kind.items():
            assert rows[0]["start"] == 1
            for row in rows:
                plan = SAMPLERS[row["sampler"]].plan([9.0, 4.0, 2.0, 1.0, 0.0], **row["options"])
                assert any(stage.noise for stage in plan) == (variety == VARIED)


# Budgets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variety", [EXACT, VARIED])
def test_the_budget_is_kept(comfyui, folder, kind, variety):
    """Counted in the host; and so used that one step more would not fit."""
    model, auto = small_model(kind), module(comfyui, "auto")
    levels = module(comfyui, "host.model").level_range(model.get_model_object("model_sampling"))
    for budget in (1, 2, 3, 4, 7, 8, 9, 13, 15, 16, 40):
        sampler, sigmas, text = choose(comfyui, model, budget, variety)
        made = evaluations_of(comfyui, model, sampler, sigmas)
        assert 1 <= made <= budget and f"{counted(made, 'evaluation')}." in text
        row = auto.pick(kind == "FLOW", variety, budget)
        assert row.evaluations(levels, len(sigmas)) > budget
        assert row.sampler in text and row.why in text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variety", [EXACT, VARIED])
def test_a_thousand_evaluations(comfyui, folder, kind, variety):
    _, sigmas, _ = choose(comfyui, small_model(kind), 1000, variety)
    assert 500 < len(sigmas) <= 1001 and (sigmas.diff() < 0).all()


def test_any_sampler_keeps_the_budget(comfyui):
    """Whatever a later measurement will pick."""
    model, auto = small_model("EPS"), module(comfyui, "auto")
    levels = module(comfyui, "host.model").level_range(model.get_model_object("model_sampling"))
    for spec in SAMPLERS.values():
        if spec.adaptive:
            continue
        row = auto.Pick(1, spec.id, {}, "karras", False, "")
        for budget in (3, 4, 8, 11):
            assert row.evaluations(levels, row.steps(levels, budget)) <= budget, spec.id


def test_between_two_budgets_the_lower_one_decides(comfyui):
    auto = module(comfyui, "auto")
    table = picks()["noise prediction"][EXACT]
    for row, following in zip(table, [*table[1:], {"start": 1001}], strict=True):
        for budget in {row["start"], following["start"] - 1}:
            found = auto.pick(False, EXACT, budget)
            assert (found.sampler, found.start) == (row["sampler"], row["start"])


def test_image_to_image_takes_the_last_levels(comfyui, folder):
    model = small_model("EPS")
    _, whole, _ = choose(comfyui, model, 16)
    sampler, part, _ = choose(comfyui, model, 8, denoise=0.5)
    assert len(part) == 9 and part[0] < whole[0]
    image = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))}
    assert evaluations_of(comfyui, model, sampler, part, image) == 8
    assert len(choose(comfyui, model, 8, denoise=0.0)[1]) == 0


def test_a_flow_model_is_told_where_its_choice_comes_from(comfyui, folder):
    _, sigmas, text = choose(comfyui, small_model("FLOW"), 8)
    assert sigmas[0] == 1 and "flow models" in text


# Plans


def plan(comfyui, model, nfe: int = 8, **about) -> CalibratedPlan:
    sigmas = [14.6 * (1 - k / nfe) ** 3 for k in range(nfe + 1)]
    kind = module(comfyui, "host.model").fingerprint(model)
    return CalibratedPlan(Recipe("dpmpp_2m", sigmas), about=About(**{"model": kind, "guidance": 3.0, **about}))


def test_a_saved_plan_for_the_model_is_found_and_followed(comfyui, folder):
    """The one that makes as many evaluations as the budget, or one less; of those alike the one that gained most."""
    model = small_model("EPS")
    plan(comfyui, model, 7, error_before=1.0, error_after=0.1).save(folder / "seven.safetensors")
    plan(comfyui, model, 8, error_before=1.0, error_after=0.9).save(folder / "little.safetensors")
    wanted = plan(comfyui, model, 8, error_before=1.0, error_after=0.5)
    wanted.save(folder / "much.safetensors")
    plan(comfyui, model, 8, error_before=1.0, error_after=0.2, improved=False).save(folder / "worse.safetensors")
    plan(comfyui, small_model("V_PREDICTION"), 8, error_after=0.0).save(folder / "other.safetensors")
    (folder / "broken.safetensors").write_bytes(b"broken")
    sampler, sigmas, text = choose(comfyui, model, 8)
    torch.testing.assert_close(sigmas, torch.tensor(wanted.recipe.sigmas, dtype=torch.float32))
    assert text.startswith("much.safetensors") and "guidance 3" in text
    assert evaluations_of(comfyui, model, sampler, sigmas) == 8
    assert choose(comfyui, model, 7)[2].startswith("seven")
    for unwanted in ({"use_plans": False}, {"variety": VARIED}, {"denoise": 0.5}, {"evaluations": 12}):
        assert "safetensors" not in choose(comfyui, model, **{"evaluations": 8, **unwanted})[2]


@pytest.mark.parametrize(
    "about",
    [
        {"interrupted": True, "error_before": 1.0, "error_after": 0.1},
        {"error_before": 1.0, "error_after": 1.0},
        {"error_before": 1.0, "error_after": 1.3},
        {"error_before": 1.0, "error_after": -1e9},
    ],
)
def test_a_plan_that_gives_no_gain_never_wins(comfyui, folder, about):
    """Nor one that was not finished, or claims what cannot be."""
    model = small_model("EPS")
    plan(comfyui, model, 8, **about).save(folder / "mine.safetensors")
    assert "safetensors" not in choose(comfyui, model, 8)[2]
    plan(comfyui, model, 7, error_before=1.0, error_after=0.9).save(folder / "other.safetensors")
    assert choose(comfyui, model, 8)[2].startswith("other.safetensors")


def test_unfinished_plans_of_earlier_versions_are_known_by_their_name(comfyui, folder):
    model = small_model("EPS")
    (folder / "mine").mkdir(parents=True)
    for name in ("interrupted_00001_.safetensors", "mine/interrupted_00002_.safetensors"):
        plan(comfyui, model, 8, error_before=1.0, error_after=0.1).save(folder / name)
    assert "safetensors" not in choose(comfyui, model, 8)[2]
    text = choose(comfyui, model, 8, plan=plan(comfyui, model, 8, interrupted=True))[2]
    assert text.startswith("The connected plan") and "not finished" in text, "who connects one wants it"


def test_what_was_stopped_is_saved_as_unfinished(comfyui, folder):
    from samplers.calibrated.plan import load

    calibrated = plan(comfyui, small_model("EPS"))

    class Work:
        pass

    work = Work()
    work.plan = module(comfyui, "plans").parse(calibrated.text())
    with pytest.raises(KeyboardInterrupt), module(comfyui, "host.work").kept(work):
        raise KeyboardInterrupt
    (path,) = folder.glob("interrupted_*")
    assert load(path).about == dataclasses.replace(calibrated.about, interrupted=True)


def test_a_plan_for_another_guidance_is_left_out(comfyui, folder):
    """Where the guidance of the run is known. Where not, the text says what the plan was made for."""
    model = small_model("EPS")
    plan(comfyui, model, 8, error_before=1.0, error_after=0.1, guidance=7.5).save(folder / "strong.safetensors")
    plan(comfyui, model, 8, error_before=1.0, error_after=0.8, latent=[4, 8, 16]).save(folder / "mild.safetensors")
    text = choose(comfyui, model, 8)[2]
    assert text.startswith("strong") and "made at guidance 7.5: set cfg to this" in text
    assert choose(comfyui, model, 8, cfg=7.45)[2].startswith("strong"), "as good as the same"
    text = choose(comfyui, model, 8, cfg=3.0)[2]
    assert text.startswith("mild") and "It was made at guidance 3." in text and "size 8 x 16" in text
    assert "safetensors" not in choose(comfyui, model, 8, cfg=1.0)[2]
    text = choose(comfyui, model, 8, cfg=1.0, plan=plan(comfyui, model))[2]
    assert "connected plan is left out: it was made at guidance 3 and cfg is 1" in text


def test_a_plan_for_another_flow_shift_is_left_out(comfyui, folder):
    shifted = comfyui.nodes["ModelSamplingSD3"]()
    models = {shift: shifted.patch(small_model("FLOW"), shift=shift)[0] for shift in (3.0, 6.0)}
    sigmas = [1 - k / 8 for k in range(9)]
    kind = module(comfyui, "host.model").fingerprint(models[3.0])
    CalibratedPlan(Recipe("euler", sigmas, flow=True), about=About(model=kind)).save(folder / "mine.safetensors")
    assert choose(comfyui, models[3.0], 8)[2].startswith("mine")
    assert "safetensors" not in choose(comfyui, models[6.0], 8)[2]


def test_a_run_at_another_guidance_is_warned_of_on_the_node(comfyui, folder, monkeypatch, caplog):
    """That which samples, once a run."""
    model = small_model("EPS")
    plan(comfyui, model, 8, guidance=7.5).save(folder / "strong.safetensors")
    sampler, sigmas, _ = choose(comfyui, model, 8)
    shown: list[str] = []
    monkeypatch.setattr(module(comfyui, "host.display"), "say", shown.append)

    def sample(cfg: float) -> None:
        arguments = (model, True, 3, cfg, conditioning(1), conditioning(2), sampler, sigmas)
        comfyui.nodes["SamplerCustom"].execute(*arguments, {"samples": torch.zeros(1, 4, 8, 8)})

    sample(7.5)
    assert not shown
    sample(2.0)
    assert len(shown) == 1 and "Warning: this plan was made at guidance 7.5 and runs at 2" in shown[0]
    assert "set cfg to 7.5" in shown[0] and shown[0][len("Warning: ") : -1] in caplog.text


def test_no_file_breaks_the_choice_and_no_claim_wins_it(comfyui, folder, caplog):
    """What cannot be read is left out with a warning; an error after that is above the one before is no gain."""
    model = small_model("EPS")
    kind = module(comfyui, "host.model").fingerprint(model)
    wanted = plan(comfyui, model, 8, error_before=1.0, error_after=0.5)
    odd = {
        "least": {"error_before": 1.0, "error_after": -1e9},
        "nan": {"error_before": 1.0, "error_after": math.nan},
        "text": {"error_before": 1.0, "error_after": "0"},
        "worse": {"error_before": 1.0, "error_after": 2.0},
        "digits": {"model": {**kind, "sigma_min": 10**400}},
    }
    for name, about in odd.items():
        CalibratedPlan(wanted.recipe, about=About(**{"model": kind, **about})).save(folder / f"{name}.safetensors")
    metadata = {key: part if isinstance(part, str) else json.dumps(part) for key, part in wanted.as_dict().items()}
    save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, folder / "float8.safetensors", metadata)
    assert "safetensors" not in choose(comfyui, model, 8)[2]
    assert all(f"{name}.safetensors" in caplog.text for name in (*odd, "float8") if name != "worse")
    wanted.save(folder / "wanted.safetensors")
    module(comfyui, "auto").folder_paths.filename_list_cache.clear()
    assert choose(comfyui, model, 8)[2].startswith("wanted")


def test_a_plan_that_goes_while_the_list_is_read(comfyui, folder, monkeypatch):
    node, model = comfyui.nodes["FewStepAuto"], small_model("EPS")
    plan(comfyui, model).save(folder / "gone.safetensors")
    monkeypatch.setattr(module(comfyui, "auto").folder_paths, "get_full_path", lambda *_: str(folder / "nowhere"))
    assert node.fingerprint_inputs(evaluations=8) == (("gone.safetensors", None),)


def test_new_plans_are_seen_without_a_restart(comfyui, folder):
    node, model = comfyui.nodes["FewStepAuto"], small_model("EPS")
    before = node.fingerprint_inputs(evaluations=8)
    plan(comfyui, model).save(folder / "new.safetensors")
    import folder_paths

    folder_paths.filename_list_cache.clear()  # the host looks at the time of the folder, which is coarse
    assert node.fingerprint_inputs(evaluations=8) != before
    assert node.fingerprint_inputs(evaluations=8, use_plans=False) is None


def test_a_connected_plan_comes_first(comfyui, folder):
    model = small_model("EPS")
    plan(comfyui, model, 8).save(folder / "saved.safetensors")
    mine = plan(comfyui, model, 5)
    _, sigmas, text = choose(comfyui, model, 8, plan=mine)
    assert len(sigmas) == 6 and text.startswith("The connected plan")


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"evaluations": 4}, "8 evaluations and evaluations = 4"),
        ({"variety": VARIED}, "plans add no noise"),
        ({"denoise": 0.7}, "denoise is below 1"),
        ({"model": "FLOW"}, "made for another model: sampling is"),
    ],
)
def test_why_a_connected_plan_is_left_out(comfyui, folder, inputs, why):
    given = plan(comfyui, small_model("EPS"))
    inputs = {"model": small_model(inputs.pop("model", "EPS")), "evaluations": 8, **inputs}
    sampler, sigmas, text = choose(comfyui, **inputs, plan=given)
    assert "connected plan is left out" in text and why in text
    assert evaluations_of(comfyui, inputs["model"], sampler, sigmas) <= inputs["evaluations"]


def test_the_published_plan_is_taken_for_its_model(comfyui, folder):
    """SD1.5 in 10 evaluations: AMED's own numbers."""
    from samplers.calibrated.published import PUBLISHED

    auto, published = module(comfyui, "auto"), PUBLISHED["amed_dpm_2m"]
    name, found = auto.best_plan(published.about.model, 10)
    assert name.startswith("built-in") and found.recipe.sigmas == published.recipe.sigmas
    assert auto.best_plan(published.about.model, 8) is None


def test_every_input_and_output_has_a_tooltip(comfyui):
    for id in ("Auto", "Compare", "FilmStrip"):
        schema = comfyui.nodes[f"FewStep{id}"].define_schema()
        assert schema.category.startswith(f"{comfyui.nodes['KSampler'].CATEGORY}/Few-Step") and schema.description
        assert all(part.tooltip for part in (*schema.inputs, *schema.outputs))
