"""Few-Step Compare and Few-Step Film Strip in the real host, with the demo model and small ones."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace

import in_the_host
import numpy as np
import pytest
import torch
from host import import_pack
from in_the_host import module
from machine import moment
from small_models import conditioning, small_model

CFG, SEED = 3.0, 7


@pytest.fixture(scope="module")
def small(comfy_process) -> SimpleNamespace:
    return SimpleNamespace(model=small_model("EPS"), positive=conditioning(1), negative=conditioning(2))


@pytest.fixture
def demo(comfyui) -> SimpleNamespace:
    model, positive, negative = comfyui.nodes["FewStepDemoModel"].execute("red apple", "").result
    (latent,) = comfyui.nodes["FewStepDemoLatent"].execute(1).result
    return SimpleNamespace(model=model, positive=positive, negative=negative, latent=latent)


@pytest.fixture(autouse=True)
def forget(comfy_process):
    """Nothing is left from another test."""
    module(comfy_process, "host.comparison").FINISHED.__init__()


@pytest.fixture
def temp(comfy_process, monkeypatch, tmp_path):
    """The host's folder for pictures that are shown."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def compare(comfyui, of, **changed):
    """Grid, chart, table and latents."""
    inputs = {
        "latent_image": {"samples": torch.zeros(1, 4, 8, 8)}, "samplers": "dpmpp_2m", "schedules": "karras",
        "steps": "4", "cfg": CFG, "seed": SEED, "denoise": 1.0, "reference_steps": 0, "tile": 64, **changed,
    }  # fmt: skip
    return comfyui.nodes["FewStepCompare"].execute(of.model, of.positive, of.negative, **inputs).result


def ksample(comfyui, of, sampler: str, scheduler: str, steps: int, latent=None, denoise: float = 1.0):
    options = {"scheduler": scheduler, "seed": SEED, "steps": steps, "cfg": CFG, "denoise": denoise}
    prompts = {"positive": of.positive, "negative": of.negative}
    return in_the_host.ksample(comfyui, of.model, sampler, latent, **options, **prompts)


def rows(table: str) -> list[list[str]]:
    """Of the table, between its head and the words below."""
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in table.split("\n\n")[0].splitlines()[2:]]


def holds(sheet: torch.Tensor, tile: torch.Tensor, within: float) -> bool:
    """Whether a picture is on a sheet: looked for by some of its pixels, then by all."""
    high, wide = tile.shape[:2]
    down, right = (sheet.shape[k + 1] - tile.shape[k] + 1 for k in (0, 1))
    near = torch.ones(down, right, dtype=torch.bool)
    for y in range(0, high, 8):
        for x in range(0, wide, 8):
            near &= ((sheet[0, y : y + down, x : x + right] - tile[y, x]).abs() <= within).all(dim=-1)
    places = (sheet[0, y : y + high, x : x + wide] for y, x in near.nonzero().tolist())
    return any((place - tile).abs().max() <= within for place in places)


@pytest.fixture
def counted(small):
    """The model, counting what it is asked; `calls` may be set to stop at."""
    asked = SimpleNamespace(calls=0, stop_at=None)

    def count(function, arguments):
        asked.calls += 1
        if asked.calls == asked.stop_at:
            import comfy.model_management

            comfy.model_management.interrupt_current_processing()
        return function(arguments["input"], arguments["timestep"], **arguments["c"])

    model = small.model.clone()
    model.set_model_unet_function_wrapper(count)
    return SimpleNamespace(model=model, positive=small.positive, negative=small.negative, asked=asked)


# What is compared


@pytest.mark.network
def test_cells_are_runs_of_the_host(comfyui, small, temp):
    """To the last bit, for the host's samplers and ours, of every kind: one that leaves out a level, one with noise."""
    samplers = ["dpmpp_2m", "uni_pc", "heun", "euler_ancestral", "fewstep_dpmpp_2s", "fewstep_dpmpp_sde"]
    schedules, counts = ["karras", "fewstep_time_uniform"], [3, 5]
    wide = {"samples": torch.zeros(2, 4, 8, 8)}
    *_, table, out = compare(
        comfyui, small, samplers="\n".join(samplers), schedules="\n".join(schedules), steps="3, 5", latent_image=wide
    )
    wanted = [ksample(comfyui, small, a, b, n, wide) for n in counts for a in samplers for b in schedules]
    assert torch.equal(out["samples"], torch.cat(wanted))
    named = {(row[0], row[1], int(row[2])): int(row[3]) for row in rows(table)}
    assert list(named) == [(a, b, n) for a in samplers for b in schedules for n in counts]
    assert [named["heun", "karras", n] for n in counts] == [5, 9], "evaluations are counted, not steps"
    assert [named["uni_pc", "karras", n] for n in counts] == [3, 5]


@pytest.mark.network
def test_image_to_image_and_masks_as_the_host(comfyui, small, temp):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    samples = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    image = {"samples": samples, "noise_mask": mask}
    names = "dpm_2\nfewstep_dpm_2m"
    *_, out = compare(comfyui, small, samplers=names, steps="4", denoise=0.6, latent_image=image, reference_steps=8)
    wanted = [ksample(comfyui, small, name, "karras", 4, image, 0.6) for name in names.split("\n")]
    assert torch.equal(out["samples"], torch.cat(wanted))


@pytest.mark.network
def test_errors_are_distances_to_the_run_of_many_steps(comfyui, small, temp):
    names = ["dpmpp_2m", "fewstep_ipndm_v"]
    *_, table, out = compare(comfyui, small, samplers="\n".join(names), steps="4, 8", reference_steps=40)
    reference = ksample(comfyui, small, "fewstep_dpmpp_2m", "fewstep_exponential", 40)
    errors = [(x - reference[0]).square().mean().sqrt() for x in out["samples"]]
    told = {(row[0], row[2]): float(row[4]) for row in rows(table)}
    for (steps, name), error in zip([(n, name) for n in ("4", "8") for name in names], errors, strict=True):
        assert told[name, steps] == pytest.approx(float(error), rel=1e-3)
    assert told["dpmpp_2m", "8"] < told["dpmpp_2m", "4"]


@pytest.mark.network
def test_runs_of_a_published_plan_are_one_image(comfyui, small, temp):
    """In 10 steps on SD1.5 the sampler leaves the schedule: there is one image, which says so. Other cells are runs
    of their schedules."""
    model = small_model("EPS")
    type(model.model.model_config).__name__ = "SD15"
    of = SimpleNamespace(model=model, positive=small.positive, negative=small.negative)
    names = ["karras", "exponential", "fewstep_time_uniform"]
    inputs = {"samplers": "fewstep_amed_dpm_2m", "schedules": "\n".join(names), "steps": "9, 10", "reference_steps": 20}
    *_, table, out = compare(comfyui, of, **inputs)
    wanted = [ksample(comfyui, of, "fewstep_amed_dpm_2m", name, n) for n in (9, 10) for name in names]
    for same in wanted[4:]:  # their first levels are one, up to rounding
        torch.testing.assert_close(same, wanted[3], rtol=1e-3, atol=1e-3)
    assert torch.equal(out["samples"], torch.cat(wanted[:4]))
    told = {(row[1], row[2]) for row in rows(table)}
    assert told == {(name, "9") for name in names} | {(f"{name} (published plan)", "10") for name in names}
    assert "published plan: the sampler follows the plan that its authors published, whatever the schedule" in table

    module_ = module(comfyui, "compare")
    work = module_.Comparison(
        model, of.positive, of.negative, {"samples": torch.zeros(1, 4, 8, 8)}, cfg=CFG, seed=SEED,
        samplers=module_.read_samplers(inputs["samplers"]), schedules=module_.read_schedules(inputs["schedules"]),
        steps=[9, 10], reference_steps=20,
    )  # fmt: skip
    shown = module(comfyui, "ui.comparison").Shown(work)
    tiles = [shown.tiles[module(comfyui, "host.comparison").Cell(*row, 10)] for row in work.rows]
    assert tiles[0].picture is not None and tiles[0].caption.endswith("published plan")
    assert all(tile.picture is None and "the same run as on karras" in tile.fault for tile in tiles[1:])
    assert all("whatever the schedule" in tile.fault for tile in tiles[1:])


@pytest.mark.network
def test_equal_levels_are_one_run(comfyui, counted, temp):
    *_, table, out = compare(comfyui, counted, schedules="fewstep_exponential\nlu_lambda")
    assert counted.asked.calls == 4 and len(out["samples"]) == 1
    first, second = rows(table)
    assert first[3:] == second[3:] and [first[1], second[1]] == ["fewstep_exponential", "lu_lambda"]


def test_the_demo_model_without_a_vae(comfyui, demo, temp):
    """The sheet has a place for every image, its labels and the reference; its size follows from them."""
    grid, chart, table, out = compare(
        comfyui, demo, latent_image=demo.latent, samplers="dpmpp_2m\neuler", schedules="karras\nfewstep_karras*",
        steps="2, 4", reference_steps=6, tile=64,
    )  # fmt: skip
    pictures = module(comfyui, "ui.pictures")
    assert out["samples"].shape == (8, 12, 16, 16)
    assert grid.shape[0] == chart.shape[0] == 1 and grid.shape[-1] == chart.shape[-1] == 3
    small_tile = pictures.decode(demo.model, out["samples"])
    assert small_tile.shape == (8, 128, 128, 3)
    colours = out["samples"].view(8, 3, 4, 16, 16).mean(dim=2).clamp(0, 1).movedim(1, -1)
    assert ((small_tile[:, ::8, ::8] - colours).abs() * 255).max() < 1.0001  # the host cuts off to a level of grey
    first = pictures.to_picture(small_tile[0]).resize((64, 64), 1)
    assert holds(grid, pictures.to_tensor(first), within=1e-6)
    assert len(rows(table)) == 8 and "6 steps of dpmpp_2m" in table


def test_with_a_vae(comfyui, small, temp):
    class Vae:
        """Stands for any: the node wants `decode` alone."""

        def decode(self, samples):
            return samples[:, :3].movedim(1, -1).sigmoid().repeat_interleave(8, 1).repeat_interleave(8, 2)

    grid, *_, out = compare(comfyui, small, vae=Vae())
    picture = Vae().decode(out["samples"])[0]
    assert holds(grid, picture, within=0.5001 / 255)  # the nearest level of grey: where two are as near, either


# What goes wrong


def test_a_sampler_that_fails_is_a_tile_and_the_others_go_on(comfyui, small, temp):
    """The fault is in the table, too."""
    *_, table, out = compare(comfyui, small, samplers="fewstep_dpmpp_3s r1=0.6 r2=0.4\neuler")
    assert len(out["samples"]) == 1
    failed, fine = rows(table)
    assert "r1" in failed[-1] and "r2" in failed[-1]
    assert fine[0] == "euler" and fine[3] == "4"


@pytest.mark.parametrize("kind", ["samplers", "schedules"])
def test_what_is_proposed_for_a_known_name_can_be_written(comfyui, kind):
    """Each is one of the lists, or is answered with a line that the box takes."""
    pack = import_pack().nodes.ui
    known = {name for names in pack.menu.KNOWN_NAMES[kind].values() for name in names}
    refused = {name: fault[kind] for name in known if (fault := pack.names.faults({kind: name}))}
    assert len(refused) > len(known) / 3  # the others are names of a list
    for name, fault in refused.items():
        found = re.search(r"(?:here it is|the nearest here is) (.+)$", fault)
        assert found, f"{name}: {fault}"
        (named,) = pack.names.READERS[kind](found[1])
        assert named.spec is not None


def test_a_model_that_returns_nan_is_told(comfyui, small, temp):
    broken = small.model.clone()
    broken.set_model_unet_function_wrapper(lambda f, a: torch.full_like(a["input"], torch.nan))
    of = SimpleNamespace(model=broken, positive=small.positive, negative=small.negative)
    with pytest.raises(ValueError, match=r"no sampler gave an image: euler, karras, 4 steps: .*NaN"):
        compare(comfyui, of, samplers="euler\nfewstep_dpmpp_2m")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"samplers": "euler\n\ndpmpp_2n"}, "samplers, line 3: there is no sampler 'dpmpp_2n'; did you mean dpmpp_2"),
        ({"schedules": "fewstep_karas"}, "schedules, line 1: there is no schedule 'fewstep_karas'; did you mean"),
        ({"samplers": "res_2m"}, "no sampler 'res_2m'; here it is fewstep_res_multistep (order=2)"),
        ({"samplers": "fewstep_res_2m order=2"}, "; here it is fewstep_res_multistep (order=2)"),
        ({"samplers": "DPM++ 2M SDE Heun"}, "; here it is fewstep_dpmpp_2m_sde (solver_type=heun)"),
        ({"samplers": "dpm++ 2m"}, "; here it is fewstep_dpmpp_2m"),
        ({"samplers": "gauss-legendre_2s"}, "; the nearest here is fewstep_res_5s"),
        (
            {"schedules": "Align Your Steps 32"},
            "no schedule 'Align Your Steps 32'; here it is fewstep_ays (table=sd15_32)",
        ),
        ({"schedules": "fewstep_SGM Uniform"}, "; here it is fewstep_sgm_uniform"),
        ({"samplers": "zzzz"}, "the names are those of KSampler's list"),
        ({"samplers": " \n# euler"}, "samplers: the text names none"),
        ({"samplers": "fewstep_unipc orde=2"}, "line 1: fewstep_unipc has no option 'orde'; its options are order,"),
        ({"samplers": "fewstep_unipc order=9"}, "line 1: unipc: option order = 9 must lie between"),
        ({"samplers": "fewstep_unipc order=two"}, "line 1: option order = 'two' must be a number"),
        ({"samplers": "euler fast"}, "line 1: 'fast' after euler is not an option"),
        ({"schedules": "karras*"}, "karras has no option 'discard_penultimate'; it has none"),
        ({"schedules": "fewstep_karras discard_penultimate=maybe"}, "must be on or off"),
        ({"steps": "4, five"}, "steps: 'five' must be a whole number"),
        ({"steps": ""}, "steps: '' must be a whole number"),
        ({"steps": "0"}, "steps: '0' must be a whole number from 1"),
        ({"steps": "9" * 5000}, "must be a whole number from 1 to 1000"),
        ({"samplers": "dpmpp_2m_sde eta=" + "9" * 400}, "must be a number"),
        ({"samplers": "dpmpp_2m_sde eta=nan"}, "option eta = 'nan' must be a number"),
        ({"samplers": "euler\n" * 5000}, "samplers: 30,000 characters, and at most 20,000 are read"),
        ({"steps": "4, " * 10_000}, "steps: 30,000 characters, and at most 20,000 are read"),
        ({"denoise": 0.0}, "denoise = 0 must be above 0"),
        ({"latent_image": {"samples": torch.ones(1, 7, 8, 8)}}, "latent_image has 7 channels and this model has 4"),
    ],
)
def test_bad_input_is_named(comfyui, small, inputs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compare(comfyui, small, **inputs)
    texts = {name: text for name, text in inputs.items() if name in ("samplers", "schedules", "steps")}
    if texts:
        with pytest.raises(ValueError, match=re.escape(message)):  # and before the run
            comfyui.nodes["FewStepCompare"].validate_inputs(**texts)
        (fault,) = module(comfyui, "routes").check(texts)["faults"].values()
        assert message in fault, "and while it is typed"


def test_options_of_both_are_taken(comfyui):
    names = module(comfyui, "ui.names")
    ours, theirs, bare = names.read_samplers("fewstep_unipc (order=2)\n dpmpp_2m_sde eta = 0.5, s_noise=1\n dpm_3m")
    assert ours.options == {"order": 2} and module(comfyui, "host.named").make_sampler(ours).extra_options == {
        "order": 2
    }
    assert module(comfyui, "host.named").make_sampler(theirs).extra_options == {"eta": 0.5, "s_noise": 1}
    assert bare.spec.id == "dpm_3m" and theirs.spec is None
    star, plain = names.read_schedules("fewstep_karras*\nkarras")
    assert star.options == {"discard_penultimate": True} and plain.spec is None


@pytest.mark.parametrize(
    "piece",
    [" ", "=", " =", "*", ",", "(", "\t", "a=", "eta=1 ", "#", "9", "\n", "euler\n", "dpmpp_2m_sde eta=1\n", "x"],
)
@pytest.mark.parametrize("before", ["", "dpmpp_2m", "dpmpp_2m_sde eta=", "fewstep_unipc "])
def test_texts_are_read_in_time_that_grows_with_their_length(comfyui, before, piece):
    """They are read in the event loop of the server: the longest in less than about a second, whatever is repeated."""
    text = before + piece * ((20_000 - len(before) - 1) // len(piece)) + "x"
    start = time.process_time()
    told = module(comfyui, "ui.names").faults({"samplers": text, "schedules": text, "steps": text})
    assert time.process_time() - start < 5 * moment()
    assert all(len(fault) < 2000 for fault in told.values())


# What is recognised


def test_content_takes_whatever_a_conditioning_holds(comfyui):
    """Equal numbers in other objects are the same; what cannot be read is the same while it is that object."""
    content = module(comfyui, "host.content").Content

    class Slots:
        __slots__ = ()

    slots, own = Slots(), object()
    itself: list = [1]
    itself.append(itself)
    deep: list = []
    for _ in range(3000):
        deep = [deep]
    wide = [0]
    for _ in range(100):
        wide = [wide, wide]

    def parts() -> list:
        return [
            np.float32(1), np.int64(2), np.bool_(True), np.arange(3), np.array("text"), b"bytes", bytearray(b"more"),
            torch.float16, torch.device("cpu"), 1 + 2j, None, True, "\ud800", 10**5000, torch.zeros(2).bool(),
            torch.zeros(2, dtype=torch.complex64), torch.zeros(2).to(torch.float8_e4m3fn), torch.zeros(()),
            torch.Size([2]), {1: {"a": (2,)}}, {np.float32(1): 2},
        ]  # fmt: skip

    for first, second in zip(parts(), parts(), strict=True):
        assert content(first).same(content(second)), repr(first)
    everything = [content(part) for part in parts()]
    for k, one in enumerate(everything):
        assert not any(one.same(other) for other in everything[k + 1 :])
    sparse = torch.eye(3).to_sparse()
    for same in (slots, own, object, len, {1, 2}, itself, deep, wide, sparse, np.array([object()]), torch.Generator()):
        assert content(same).same(content(same)), repr(same)[:50]
    assert not content([slots]).same(content([own]))
    assert not content(np.float32(1)).same(content(np.float64(1)))
    assert not content([b"ab", b"c"]).same(content([b"a", b"bc"]))


def test_a_conditioning_with_numbers_of_numpy_is_compared(comfyui, small, temp):
    positive = conditioning(1)
    positive[0][1].update(strength=np.float32(1), kind=torch.float16, tag=b"tag")
    of = SimpleNamespace(model=small.model, positive=positive, negative=small.negative)
    assert compare(comfyui, of)[3]["samples"].isfinite().all()


def test_pictures_that_cannot_be_written_lose_nothing(comfyui, counted, monkeypatch, tmp_path, caplog):
    """Neither the images of a run nor the interruption of one."""
    import comfy.model_management
    import folder_paths

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "file" / "temp"))
    assert len(compare(comfyui, counted)[3]["samples"]) == 1
    assert "the images cannot be shown" in caplog.text
    caplog.clear()
    counted.asked.calls, counted.asked.stop_at = 0, 6
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        compare(comfyui, counted, samplers="euler\nheun", seed=11)
    assert "the images cannot be shown" in caplog.text


# Stopping and going on


def stopped(comfyui, of, at: int, **inputs) -> None:
    import comfy.model_management

    of.asked.stop_at = at
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        compare(comfyui, of, **inputs)
    of.asked.stop_at = None


def test_out_of_memory_shows_what_is_done(comfyui, counted, temp, monkeypatch):
    """As an interruption does; the host hears of it."""
    sample = module(comfyui, "host.comparison").Comparison._sample
    finished = []

    def short_of_memory(self, run, progress):
        if finished:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finished.append(run)
        return sample(self, run, progress)

    monkeypatch.setattr(module(comfyui, "host.comparison").Comparison, "_sample", short_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        compare(comfyui, counted, samplers="euler\nheun", seed=12, reference_steps=0)
    assert len(list(temp.glob("*.png"))) == 1 + 1, "the sheet, and the finished image"


def test_stopping_keeps_what_is_done(comfyui, counted, temp):
    """The finished images are shown at once, and the next run does the rest alone."""
    inputs = {"samplers": "euler\nheun\nfewstep_dpmpp_2m", "steps": "2, 4", "reference_steps": 5}
    stopped(comfyui, counted, 5 + 2 + 3 + 1, **inputs)
    assert len(list(temp.glob("*.png"))) == 1 + 2, "the sheet, and each finished image for the table on the node"
    counted.asked.calls = 0
    *_, table, out = compare(comfyui, counted, **inputs)
    assert counted.asked.calls == 2 + 4 + 7 + 4, "the reference and the first two cells were there"
    wanted = [ksample(comfyui, counted, name, "karras", n) for n in (2, 4) for name in inputs["samplers"].split()]
    assert torch.equal(out["samples"], torch.cat(wanted))
    assert [row[3] for row in rows(table)] == ["2", "4", "3", "7", "2", "4"]


@pytest.mark.network
def test_only_what_is_new_is_run(comfyui, counted, temp):
    """A line more costs its own evaluations; other prompts, seeds, guidance, latents or models cost all of them."""
    compare(comfyui, counted)
    counted.asked.calls = 0
    compare(comfyui, counted, samplers="dpmpp_2m\nheun")
    assert counted.asked.calls == 7
    equal = SimpleNamespace(model=counted.model, positive=conditioning(1), negative=conditioning(2))
    compare(comfyui, equal, latent_image={"samples": torch.zeros(1, 4, 8, 8)})
    assert counted.asked.calls == 7, "the same content in other objects is the same"
    for number, changed in enumerate(
        ({"seed": 8}, {"cfg": 2.0}, {"latent_image": {"samples": torch.zeros(1, 4, 8, 16)}}), 1
    ):
        compare(comfyui, counted, **changed)
        assert counted.asked.calls == 7 + 4 * number
    for other in (
        SimpleNamespace(model=counted.model, positive=conditioning(3), negative=counted.negative),
        SimpleNamespace(model=counted.model.clone(), positive=counted.positive, negative=counted.negative),
    ):
        counted.asked.calls = 0
        compare(comfyui, other)
        assert counted.asked.calls == 4


def test_what_is_kept_holds_no_model_in_memory(comfyui, small, temp):
    import gc
    import weakref

    model = small.model.clone()
    compare(comfyui, SimpleNamespace(model=model, positive=small.positive, negative=small.negative))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_progress_goes_over_the_whole(comfyui, small, temp):
    import comfy.utils

    seen: list[tuple[float, float]] = []
    comfy.utils.set_progress_bar_global_hook(lambda done, total, preview, node_id=None: seen.append((done, total)))
    try:
        compare(comfyui, small, samplers="euler\nheun", steps="2, 3", reference_steps=4)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert [*dict.fromkeys(seen)] == [(k, 14) for k in range(15)]


# Film strip


def film(comfyui, of, sampler, sigmas, **changed):
    inputs = {"latent_image": {"samples": torch.zeros(1, 4, 8, 8)}, "cfg": CFG, "seed": SEED, "columns": 3, "tile": 64}
    arguments = (of.model, of.positive, of.negative, sampler, sigmas)
    return comfyui.nodes["FewStepFilmStrip"].execute(*arguments, **{**inputs, **changed}).result


@pytest.mark.network
def test_frames_are_the_predictions_of_all_evaluations(comfyui, demo, temp):
    """Also the second of a step; the last is the result. The strip goes on in rows."""
    (sampler,) = comfyui.nodes["FewStepSampler"].execute("dpmpp_2s").result
    (sigmas,) = comfyui.nodes["FewStepScheduler"].execute(demo.model, "karras", 3, 1.0).result
    predictions = []

    def record(arguments):
        predictions.append(arguments["denoised"].clone())
        return arguments["denoised"]

    watched = demo.model.clone()
    watched.set_model_sampler_post_cfg_function(record)
    of = SimpleNamespace(model=watched, positive=demo.positive, negative=demo.negative)
    strip, frames, out = film(comfyui, of, sampler, sigmas, latent_image=demo.latent)
    assert len(predictions) == len(frames) == 5
    decode = module(comfyui, "ui.pictures").decode
    wanted = torch.cat([demo.model.model.process_latent_out(p) for p in predictions])
    torch.testing.assert_close(frames, decode(demo.model, wanted))
    arguments = (demo.model, True, SEED, CFG, demo.positive, demo.negative, sampler, sigmas, demo.latent)
    host = comfyui.nodes["SamplerCustom"].execute(*arguments).result[0]["samples"]
    assert torch.equal(out["samples"], host)
    torch.testing.assert_close(frames[-1:], decode(demo.model, host))
    assert strip.shape[2] == 6 + 3 * (64 + 6) and strip.shape[1] > 2 * (64 + 17 + 6)


@pytest.mark.parametrize("sigmas", [[], [5.0], [5.0, 5.0], [0.0, 0.0]])
def test_film_of_no_steps(comfyui, small, sigmas):
    (sampler,) = comfyui.nodes["FewStepSampler"].execute("dpmpp_2m").result
    with pytest.raises(ValueError, match="sigmas hold no step to show"):
        film(comfyui, small, sampler, torch.FloatTensor(sigmas))


# What is shown


@pytest.fixture
def work(comfyui, small):
    """A comparison that is done, of five rows, of which the last has failed, and two columns."""
    compare_ = module(comfyui, "compare")
    samplers = "euler\ndpmpp_2m\nfewstep_dpmpp_2m\nfewstep_ipndm_v\nfewstep_dpmpp_3s r1=0.6 r2=0.4"
    work = compare_.Comparison(
        small.model, small.positive, small.negative, {"samples": torch.zeros(1, 4, 8, 8)}, cfg=CFG, seed=SEED,
        samplers=compare_.read_samplers(samplers), schedules=compare_.read_schedules("karras"), steps=[3, 5],
        reference_steps=12,
    )  # fmt: skip
    work.run(module(comfyui, "host.progress").Progress())
    return work


def test_the_best_of_each_column_is_marked(comfyui, work):
    """On the sheet, in the table and for the node in the browser: that of the least error, and no other."""
    shown = module(comfyui, "ui.comparison")
    told = shown.cells(work, {})
    for steps in work.columns:
        errors = {cell: work.error(cell) for cell in work.cells if cell.steps == steps and work.outcome(cell)}
        least = min(errors, key=errors.get)
        assert shown.best(work, steps) == least
        marked = [cell for cell, tile in shown.Shown(work).tiles.items() if tile.marked and cell.steps == steps]
        assert marked == [least]
        listed = [row for row in rows(shown.table(work)) if row[2] == str(steps) and row[5] == "best"]
        assert [(row[0], row[1]) for row in listed] == [(least.sampler.label, least.schedule.label)]
        assert [
            cell for cell, of in zip(work.cells, told["cells"], strict=True) if of["best"] and cell.steps == steps
        ] == [least]
    assert told["columns"] == [3, 5] and told["rows"][3][0] == {
        "label": "fewstep_ipndm_v", "name": "fewstep_ipndm_v", "ours": "ipndm_v", "options": {},
    }  # fmt: skip
    failed = told["cells"][4]
    assert failed["evaluations"] is None and "r1" in failed["fault"]


def test_the_sheet_says_what_was_run_and_has_the_reference_above(comfyui, work):
    """The head makes it higher, and the reference is the first picture from above; the theme is that of all around."""
    ui = module(comfyui, "ui.comparison")
    themes = module(comfyui, "ui.theme").THEMES
    about = {"model": "a", "prompt": "many words " * 20, "settings": "cfg 3, seed 7"}
    plain, told = (ui.Shown(work, about=given).sheet(64) for given in (None, about))
    assert told.shape[1] > plain.shape[1]
    reference = ui.Shown(work).reference.picture
    small_one = module(comfyui, "ui.pictures").to_picture(reference).resize((64, 64))
    tile = module(comfyui, "ui.pictures").to_tensor(small_one)
    assert holds(plain[:, : 64 + 2 * 17], tile, within=0.05)
    for name, theme in themes.items():
        sheet = ui.Shown(work, about=about, theme=theme).sheet(64)
        corner = [round(255 * float(part)) for part in sheet[0, -1, 0]]
        assert "#" + "".join(f"{part:02x}" for part in corner) == theme.paper, name


def test_colours_can_be_told_from_the_paper(comfyui):
    """By the contrast of WCAG 2: 4.5 for words, 3 for lines."""

    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    for theme in module(comfyui, "ui.theme").THEMES.values():
        words = (theme.ink, theme.quiet, theme.best, theme.fault)
        assert all(contrast(colour, theme.paper) >= 4.5 for colour in words)
        assert contrast(theme.fault, theme.empty) >= 4.5, "what went wrong is written on an empty place"
        assert all(contrast(colour, theme.paper) >= 3 for colour in theme.lines)
        assert len(set(theme.lines)) == len(theme.lines)


def test_the_table_reads_as_text_and_as_markdown(comfyui, work):
    """Columns one below the other; no line begins with white space, which Markdown takes for code."""
    text = module(comfyui, "ui.comparison").table(work)
    lines = text.split("\n\n")[0].splitlines()
    bars = [[k for k, letter in enumerate(line) if letter == "|"] for line in lines]
    assert len(bars[0]) == 7 and all(at == bars[0] for at in bars)
    assert all(re.fullmatch(r"\| (-+ \| )*-{2,}[-:]? \|", re.sub(r"-:", "--", line)) for line in lines[1:2])
    assert lines[1].count(":") == 3, "numbers are flush right"
    assert not any(line.startswith((" ", "\t")) for line in text.splitlines())
    table = module(comfyui, "ui.tables").text_table
    assert table([["a|b", "n"], ["x", "10"], ["long", "-"]]) == [
        "| a\\|b |   n |", "| ---- | --: |", "| x    |  10 |", "| long |   - |",
    ]  # fmt: skip


def test_a_legend_that_is_too_long_moves_below_the_axes(comfyui):
    """Nothing is drawn over the title, the lines or beside the panel; the picture is higher."""
    plots = module(comfyui, "ui.plots")
    line = [(4.0, 0.1), (8.0, 0.01)]
    few, many = (
        plots.line_plot([plots.Panel("t", "x", "error", {f"a rather long name {k}": line for k in range(count)})])
        for count in (2, 9)
    )
    above = slice(40, 54)
    assert (few[0, above, 100:] < 0.7).any() and not (many[0, above, 100:] < 0.7).any()
    assert few.shape[1] == plots.HEIGHT < many.shape[1]
    assert (many[0, plots.HEIGHT :] < 0.7).any() and not (many[0, :, -4:] < 0.7).any()


def test_a_line_that_another_hides_stays_in_sight(comfyui):
    plots, theme = module(comfyui, "ui.plots"), module(comfyui, "ui.theme").LIGHT
    line = [(4.0, 0.1), (8.0, 0.01)]

    def pixels(series, colour: str) -> int:
        drawn = plots.line_plot([plots.Panel("t", "x", "y", series, log_y=True, markers=True)])[0, 62:340, 90:520]
        wanted = torch.tensor([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        return int(((drawn - wanted).abs().amax(dim=-1) < 0.08).sum())

    assert pixels({"one": line, "other": line}, theme.lines[0]) > 200
    assert pixels({"other": line}, theme.lines[0]) > 200


def test_labels_are_broken_and_never_cut(comfyui):
    """Each part of a broken label is as wide as there is room for, and nothing of it is lost."""
    from PIL import ImageFont

    pictures = module(comfyui, "ui.pictures")
    font = ImageFont.load_default(13)
    for text in ("fewstep_unipc order=2 prediction=noise", "W" * 60, "", "one", "a " * 40):
        lines = pictures._wrapped(text, 90, font)
        assert "".join("".join(lines).split()) == "".join(text.split())
        assert all(font.getlength(line) <= 90 for line in lines)


# What the graph says


GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15\\dream shaper.safetensors"}},
    "2": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": "ink.safetensors"}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "a cat,\n on a mat"}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": ["5", 0]}},
    "5": {"class_type": "PrimitiveString", "inputs": {"value": "blurry"}},
    "6": {
        "class_type": "ControlNetApplyAdvanced",
        "inputs": {"positive": ["3", 0], "negative": ["4", 0], "control_net": ["8", 0], "strength": 1.0},
    },
    "7": {
        "class_type": "FewStepCompare",
        "inputs": {"model": ["2", 0], "positive": ["6", 0], "negative": ["6", 1]},
    },
    "9": {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["3", 0], "conditioning_2": ["4", 0]}},
}


def test_the_graph_tells_prompts_and_models(comfyui):
    wiring = module(comfyui, "host.wiring")
    assert wiring.about(GRAPH, GRAPH["7"]) == {
        "model": "dream shaper + ink", "prompt": "a cat, on a mat", "negative prompt": "blurry",
    }  # fmt: skip
    both = {"inputs": {"model": ["44", 0], "positive": ["9", 0], "negative": []}}
    assert wiring.about(GRAPH, both) == {"prompt": "a cat, on a mat + blurry"}
    circle = {"1": {"class_type": "A", "inputs": {"model": ["1", 0], "positive": ["1", 0]}}}
    assert wiring.about(circle, circle["1"]) == {"model": "A"}
    demo = {"1": {"class_type": "FewStepDemoModel", "inputs": {"prompt": "cat", "negative": "dog"}}}
    wired = {"inputs": {name: ["1", k] for k, name in enumerate(("model", "positive", "negative"))}}
    assert list(wiring.about(demo, wired).values())[1:] == ["cat", "dog"]
    assert wiring.run_about(None) == {} == wiring.run_about(GRAPH), "no node is running"


# The node with two pictures


def test_two_pictures_are_shown(comfyui, temp):
    images = torch.rand(2, 8, 8, 3), torch.rand(1, 8, 8, 3)
    output = comfyui.nodes["FewStepSideBySide"].execute(*images).ui
    assert [len(output[name]) for name in ("a_images", "b_images")] == [2, 1]
    assert {file["filename"] for files in output.values() for file in files} == {
        path.name for path in temp.glob("*.png")
    }
