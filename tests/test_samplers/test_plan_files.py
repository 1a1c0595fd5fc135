"""Files and texts of calibrated plans, and the numbers that were published."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from machine import moment
from mixture import X1, denoiser
from mutations import mutated
from safetensors.torch import load_file, save_file

from samplers.calibrated import recipe as recipes
from samplers.calibrated.about import About
from samplers.calibrated.file import LIMIT, FileError
from samplers.calibrated.plan import CalibratedPlan, load, parse
from samplers.calibrated.predictor import Predictor
from samplers.calibrated.published import AMED_SD15, PUBLISHED
from samplers.calibrated.recipe import Recipe
from samplers.calibrated.tuning import Tuning
from samplers.processes import stable_diffusion_sigma

SIGMAS = (14.0, 6.0, 2.5, 1.0, 0.4, 0.0)
MODEL = {"family": "SD15", "prediction": "EPS", "sigma_max": 14.6146, "channels": 4}
ABOUT = {"model": MODEL, "guidance": 7.5, "seeds": [1, 2], "prompts": ["a cat, “naïve”", "犬"], "error_after": 0.0123}
RECORD = About.from_dict(ABOUT)
PLAN = CalibratedPlan(
    Recipe("ipndm_v", SIGMAS, tunings=tuple(Tuning(slope=k / 7, scale_time=1 + k / 30) for k in range(5))), about=RECORD
)


def amed() -> CalibratedPlan:
    torch.manual_seed(0)
    return CalibratedPlan(Recipe("amed", SIGMAS, afs=True), Predictor(0.02, 0.1), RECORD)


@pytest.fixture
def files(tmp_path):
    """Both kinds of file, each with its contents."""
    found = {}
    for calibrated in (PLAN, amed()):
        path = tmp_path / f"{calibrated.kind}.safetensors"
        calibrated.save(path)
        found[calibrated.kind] = path
    return found


def rewritten(path, tensors=(), **metadata):
    """The file with other metadata (None: without it) and tensors (None: without it)."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        kept = file.metadata() | metadata
    changed = load_file(path) | dict(tensors)
    changed = {key: tensor for key, tensor in changed.items() if tensor is not None}
    save_file(changed, path, {key: value for key, value in kept.items() if value is not None})
    return path


# There and back


def test_a_plan_there_and_back(files):
    back = load(files["plan"])
    assert back.recipe == PLAN.recipe and back.kind == "plan" and back.predictor is None
    assert back.about == RECORD


def test_a_predictor_there_and_back_bit_for_bit(files):
    back, calibrated = load(files["amed"]), amed()
    assert back.recipe == calibrated.recipe and back.kind == "amed" and back.about == RECORD
    assert back.predictor.bounds == (0.02, 0.1)
    before, after = calibrated.predictor.state_dict(), back.predictor.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not back.predictor.training and not any(p.requires_grad for p in back.predictor.parameters())
    bottleneck = torch.randn(3, 5, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        back.function(denoiser, 14 * X1, disable=True, bottleneck=lambda: bottleneck),
        calibrated.function(denoiser, 14 * X1, disable=True, bottleneck=lambda: bottleneck),
    )


def test_text_there_and_back():
    assert "\n" not in PLAN.text()
    back = parse(f"\n  {PLAN.text()}\n")
    assert back.recipe == PLAN.recipe and back.about == RECORD
    assert parse(json.dumps(PLAN.recipe.as_dict())).recipe == PLAN.recipe
    of_predictor = parse(amed().text())
    assert of_predictor.predictor is None and of_predictor.recipe == amed().recipe


def metadata_of(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def test_files_and_texts_are_written_again_as_they_were_read(tmp_path):
    """To the byte: the fields of `about` in their order, and those that this version does not know."""
    paths = sorted((Path(__file__).parents[2] / "demo" / "plans").glob("*.safetensors"))
    assert len(paths) > 40
    for path in paths:
        calibrated = load(path)
        again = metadata_of(calibrated.save(tmp_path / path.name))
        fields = {key: entry for key, entry in metadata_of(path).items() if key != "sha256"}
        assert {key: entry for key, entry in again.items() if key != "sha256"} == fields
        assert parse(calibrated.text()).text() == calibrated.text()
    for odd in (
        {"seeds": [3, 4], "mood": {"b": 1, "a": [2]}, "guidance": 7, "model": {}, "improved": False, "latent": []},
        {"prompts": ["a", "b"], "latent": "large", "texts": [1], "teacher": None, "baseline": 3, "more": 1},
        {"interrupted": False, "written": ["x"], "error_after": 0, "trained": [], "iterations": 2.5},
        {},
    ):
        text = json.dumps({**PLAN.as_dict(), "about": odd})
        assert parse(text).text() == text
        there = parse(text).save(tmp_path / "odd.safetensors")
        assert metadata_of(there)["about"] == json.dumps(odd)


def test_what_a_plan_says_of_itself_is_read_by_field():
    """A field that holds something else than today's is kept, and is not known."""
    about = About.from_dict({"prompts": 3, "seeds": [1, 2], "latent": "large", "mood": 1, "improved": False})
    assert (about.prompts, about.seeds, about.latent, about.improved) == (3, (1, 2), (), False)
    assert about.more == {"latent": "large", "mood": 1} and about.guidance is None and about.model == {}
    stopped = dataclasses.replace(about, interrupted=True).as_dict()
    assert list(stopped) == ["prompts", "seeds", "latent", "mood", "improved", "interrupted"]
    assert dataclasses.replace(about, latent=(4, 8, 8)).as_dict()["latent"] == [4, 8, 8]
    assert About(error_before=2.0, error_after=1.0).gain == 0.5 and About(error_after=1.0).gain == 1
    assert About().as_dict() == {} and not About(error_after=1.0).measured


def test_saving_makes_the_folder_and_replaces_what_is_there(tmp_path):
    path = tmp_path / "new" / "folder" / "plan.safetensors"
    PLAN.save(path)
    amed().save(path)
    assert load(path).kind == "amed"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fault", ["write", "replace", "metadata"])
def test_saving_that_fails_leaves_what_was_there(files, monkeypatch, fault):
    path = files["plan"]
    before = path.read_bytes()

    def broken(*args, **kwargs):
        if fault == "write":
            args[1].write_bytes(b"half")
        raise OSError("no space left on device")

    calibrated = PLAN
    if fault == "write":
        monkeypatch.setattr("safetensors.torch.save_file", broken)
    elif fault == "replace":
        monkeypatch.setattr("os.replace", broken)
    else:
        calibrated = CalibratedPlan(PLAN.recipe, about=About(model={"weights": object()}))
    with pytest.raises((OSError, TypeError)):
        calibrated.save(path)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == sorted(files.values())


def numbered(folder: Path):
    return (folder / f"plan_{number:05}_.safetensors" for number in count(1))


def save_many(folder: Path, copies: int) -> list[Path]:
    return [PLAN.save_new(numbered(folder)) for _ in range(copies)]


@pytest.mark.slow
def test_writers_in_threads_and_processes_overwrite_nothing(tmp_path):
    """Every file that was reported is there, and is one of its own."""
    code = f"""
import sys
sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:3]]!r}
from pathlib import Path
from test_plan_files import save_many
print(*save_many(Path({str(tmp_path)!r}), 25), sep="\\n")
"""
    command = [sys.executable, "-c", code]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    reported: list[Path] = []
    threads = [threading.Thread(target=lambda: reported.extend(save_many(tmp_path, 25))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        written, _ = other.communicate(timeout=120)
        assert other.returncode == 0
        reported += map(Path, written.splitlines())
    assert len(set(reported)) == 100
    assert set(tmp_path.iterdir()) == set(reported)
    assert all(load(path).recipe == PLAN.recipe for path in reported)


def test_without_hard_links_nothing_is_overwritten_either(tmp_path, monkeypatch):
    def no_links(*paths):
        raise PermissionError("this drive has no hard links")

    monkeypatch.setattr("os.link", no_links)
    assert save_many(tmp_path, 2) == [tmp_path / "plan_00001_.safetensors", tmp_path / "plan_00002_.safetensors"]
    monkeypatch.setattr("os.replace", no_links)
    with pytest.raises(PermissionError):
        save_many(tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 2


# Files at fault


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off(files, share):
    for path in files.values():
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(FileError, match=rf"{path.name} is damaged or was cut off .*download it again"):
            load(path)


@pytest.mark.parametrize("size", [1, 8, 100, 5000])
def test_a_file_of_random_bytes(tmp_path, size):
    path = tmp_path / "noise.safetensors"
    for seed in range(5):
        path.write_bytes(bytes(torch.randint(256, (size,), generator=torch.Generator().manual_seed(seed)).tolist()))
        with pytest.raises(FileError, match=r"noise\.safetensors is damaged"):
            load(path)


def test_pickles_are_never_read(tmp_path, monkeypatch):
    class Fatal:
        def __reduce__(self):
            return pytest.fail, ("a pickle was executed",)

    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    path = tmp_path / "plan.safetensors"
    for content in (pickle.dumps(Fatal()), b"PK\x03\x04" + pickle.dumps(Fatal())):
        path.write_bytes(content)
        with pytest.raises(FileError, match="is damaged"):
            load(path)


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path):
    with pytest.raises(FileError, match=r"lost\.safetensors is not there: choose another file"):
        load(tmp_path / "lost.safetensors")
    with pytest.raises(FileError, match="damaged"):
        load(tmp_path)


def test_a_file_too_large_is_not_even_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(LIMIT + 1)
    with pytest.raises(FileError, match=r"too large for a plan \(50,000,001 bytes\): is it a checkpoint"):
        load(path)


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"ss_output_name": "my lora", "format": "pt"}, {"modelspec.title": "SDXL"}]
)
def test_another_safetensors_file(tmp_path, metadata):
    path = tmp_path / "lora.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata)
    with pytest.raises(FileError, match=r"lora\.safetensors: field format is .*not a file of Few-Step"):
        load(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": None}, "field format is None"),
        ({"format": "other-plan"}, "field format is 'other-plan'"),
        ({"version": "2"}, "field version is 2 and this Few-Step reads up to 1: update Few-Step"),
        ({"version": "0"}, "field version is 0: it must be a whole number"),
        ({"version": "true"}, "field version is True"),
        ({"version": "1.5"}, "field version is 1.5"),
        ({"version": None}, "field version is None"),
        ({"kind": "lora"}, "field kind is 'lora': it must be plan or amed"),
        ({"kind": None}, "field kind is None"),
        ({"recipe": "{"}, "field recipe is not valid JSON"),
        ({"recipe": "[" * 100_000}, "field recipe is not valid JSON"),
        ({"recipe": None}, "field recipe: field 'base' is missing"),
        ({"recipe": "9" * 5000}, "field recipe is not valid JSON"),
        ({"recipe": "[]"}, "field recipe: a plan is an object"),
        ({"recipe": '{"base": "dpmpp_2m", "sigmas": [2.0, NaN]}'}, r"field recipe: sigmas: sigmas\[1\] = nan"),
        ({"recipe": '{"base": "dpmpp_2m", "sigmas": [1e999, 1]}'}, r"field recipe: sigmas: sigmas\[0\] = inf"),
        ({"about": "3"}, "field about must be an object"),
        ({"about": '{"model": "SD15"}'}, "field about must be an object, and its field model too"),
    ],
    ids=str,
)
def test_a_field_at_fault_is_named(files, metadata, message):
    for path in files.values():
        with pytest.raises(FileError, match=rf"{path.name}: {message}"):
            load(rewritten(path, **metadata))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"predictor": None}, "field predictor must give scale_dir and scale_time"),
        ({"predictor": '{"scale_dir": 0.1}'}, "field predictor .*scale_time"),
        ({"predictor": '{"scale_dir": "x", "scale_time": 0}'}, "field predictor"),
        ({"predictor": '{"scale_dir": NaN, "scale_time": 0}'}, "field predictor"),
        ({"predictor": '{"scale_dir": 1, "scale_time": 0}'}, "field predictor .*below 1"),
        ({"predictor": f'{{"scale_dir": {10**400}, "scale_time": 0}}'}, "field predictor"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_predictor_without_its_bounds(files, metadata, message):
    with pytest.raises(FileError, match=message):
        load(rewritten(files["amed"], **metadata))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"level.weight": torch.zeros(8, 9)}, r"tensor level.weight has shape \[8, 9\] and should have \[8, 8\]"),
        ({"level.weight": None}, "tensor level.weight is missing"),
        ({"extra": torch.zeros(2)}, "tensor extra is unknown"),
        ({"heads.0.bias": torch.tensor([math.nan])}, "tensor heads.0.bias holds NaN"),
        ({"heads.2.bias": torch.tensor([-math.inf])}, "tensor heads.2.bias holds NaN or infinity"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_tensor_at_fault_is_named(files, tensors, message):
    with pytest.raises(FileError, match=rf"amed\.safetensors: {message}"):
        load(rewritten(files["amed"], tensors))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the text is not a plan: .* at line 1, column 1; paste all of it, from the first \{ to the last \}"),
        (PLAN.text()[:-5], "the text is not a plan: .* column"),
        (PLAN.text()[3:], "the text is not a plan: .* column"),
        ("[" * 100_000, "the text is not a plan: maximum recursion depth"),
        ('{"version": ' + "9" * 5000 + "}", "the text is not a plan: "),
        ("[]", "field format is None"),
        ("3", "field format is None"),
        ("{}", "field 'base' is missing"),
        ('{"format": "fewstep-plan"}', "field version is None"),
        ('{"format": "fewstep-plan", "version": 9}', "update Few-Step"),
        ('{"base": "dpmpp_2m", "sigmas": [3, 2, 2]}', "sigmas"),
    ],
    ids=lambda value: value[:30],
)
def test_a_text_at_fault(text, message):
    with pytest.raises(FileError, match=message):
        parse(text)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_every_floating_type_are_read(files, dtype):
    weights = load_file(files["amed"])
    back = load(rewritten(files["amed"], {key: t.to(dtype) for key, t in weights.items()}, sha256=None))
    for key, tensor in back.predictor.state_dict().items():
        torch.testing.assert_close(tensor, weights[key].to(dtype).float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
def test_other_weights_are_refused_by_name(files, dtype):
    changed = {"level.weight": torch.ones(8, 8).to(dtype)}
    with pytest.raises(FileError, match=r"amed\.safetensors: tensor level.weight is of type .*floating-point"):
        load(rewritten(files["amed"], changed, sha256=None))


def test_weights_beyond_float32_are_refused(files):
    changed = {"level.weight": torch.full((8, 8), 1e300, dtype=torch.float64)}
    with pytest.raises(FileError, match=r"tensor level\.weight holds numbers above"):
        load(rewritten(files["amed"], changed, sha256=None))


@pytest.mark.parametrize(
    ("about", "named"),
    [
        ({"error_after": -1e9}, "field about: error_after = -1000000000.0 must be a finite number between 0 and"),
        ({"error_before": math.nan}, "field about: error_before = nan"),
        ({"error_after": math.inf}, "field about: error_after = inf"),
        ({"error_after": "0.1"}, "field about: error_after = '0.1' must be a number"),
        ({"error_after": True}, "field about: error_after = True must be a number"),
        ({"error_before": 10**400}, "field about: error_before = a whole number of more than"),
        ({"guidance": [7.5]}, "field about: guidance"),
        ({"improved": 1}, "field about: improved = 1 must be true or false"),
        ({"interrupted": "no"}, "field about: interrupted = 'no' must be true or false"),
        ({"model": {"sigma_min": 10**400}}, "field about: model: sigma_min = a whole number"),
        ({"model": {"sigma_max": math.nan}}, "field about: model: sigma_max = nan"),
        ({"seeds": [1, -(10**30)]}, "field about: seeds"),
        ({"teacher": [[[[[[[[[[1]]]]]]]]]]}, "field about: teacher is nested too deeply"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_plan_says_of_itself_is_checked(tmp_path, about, named):
    """In files, with a checksum that is right, and in texts."""
    calibrated, path = CalibratedPlan(PLAN.recipe, about=About(more={**ABOUT, **about})), tmp_path / "plan.safetensors"
    calibrated.save(path)
    with pytest.raises(FileError, match=named):
        load(path)
    with pytest.raises(FileError, match=named):
        parse(calibrated.text())


def test_a_recipe_has_at_most_a_thousand_levels():
    levels = [1000.0 - k for k in range(1000)]
    assert len(parse(json.dumps({"base": "euler", "sigmas": levels})).recipe.sigmas) == 1000
    with pytest.raises(FileError, match="sigmas: 1,001 levels, and a recipe has at most 1,000"):
        parse(json.dumps({"base": "euler", "sigmas": [1001.0, *levels]}))
    with pytest.raises(FileError, match=r"sigmas\[1\] = 1e-300 must be 0 or lie between"):
        parse(json.dumps({"base": "euler", "sigmas": [1.0, 1e-300, 0.0]}))


def test_a_plan_is_made_once(monkeypatch):
    made = []
    spec = recipes.SAMPLERS["euler"]

    def counted(levels):
        made.append(levels.sigmas)
        return spec.solver(levels)

    monkeypatch.setattr(recipes, "SAMPLERS", {"euler": dataclasses.replace(spec, solver=counted)})
    recipe = parse('{"base": "euler", "sigmas": [3, 2, 1, 0]}').recipe
    assert recipe.plan() is recipe.plan() and made.count((3.0, 2.0, 1.0, 0.0)) == 1


# Checksums


def test_a_file_with_other_contents_than_were_written_is_damaged(files):
    for path, changed in (
        (files["plan"], {"recipe": json.dumps(Recipe("euler", SIGMAS).as_dict())}),
        (files["amed"], {"about": "{}"}),
    ):
        with pytest.raises(FileError, match=rf"{path.name} is damaged or was cut off \(its checksum"):
            load(rewritten(path, **changed))
    other = {"level.weight": load_file(files["amed"])["level.weight"] + 1e-3}
    amed().save(files["amed"])
    with pytest.raises(FileError, match=r"amed\.safetensors is damaged"):
        load(rewritten(files["amed"], other))


def test_files_without_a_checksum_and_with_fields_of_other_programs_are_read(files):
    for path in files.values():
        recipe = load(path).recipe
        assert load(rewritten(path, **{"modelspec.title": "mine"})).recipe == recipe
        assert load(rewritten(path, sha256=None)).recipe == recipe
    for path in (Path(__file__).parents[2] / "demo" / "plans").glob("*.safetensors"):
        assert load(path).recipe.nfe > 0  # written by earlier versions


def test_the_fields_are_those_that_earlier_versions_read(files):
    """They take every entry but the format and the kind for JSON, and pass over what they do not know."""
    metadata = metadata_of(files["amed"])
    known = {"format", "version", "kind", "recipe", "predictor", "about"}
    assert metadata.keys() == known | {"sha256"}
    assert metadata["format"] == "fewstep-plan" and metadata["version"] == "1"
    assert len(json.loads(metadata["sha256"])) == 64


# Fuzz


ODD = (
    None, True, [], {}, "", "1", -1, 0, 0.5, 1e-320, 1e308, -1e9, math.nan, math.inf, 10**400, "x" * 5000, "\ud800",
    [[[[[[]]]]]], {"a": {"b": {}}}, [1] * 2000, [math.nan], ["a"],
)  # fmt: skip
NAMES = ("x", "slope", "guidance", "options", "afs")


def read_or_refused(read, given) -> CalibratedPlan | None:
    """What is read, which a sampler can follow; None if it was refused in words."""
    start, found, refused = time.process_time(), None, ""
    try:
        found = read(given)
    except FileError as error:
        refused = str(error)
    assert len(refused) < 2000 and time.process_time() - start < 25 * moment()
    if found is not None:
        assert all(math.isfinite(float(c)) for stage in found.recipe.plan() for c in stage.update.terms.values())
        assert 0 <= found.gain < math.inf and json.loads(found.text())
    return found


@pytest.mark.parametrize("seed", range(300))
def test_odd_texts_are_plans_or_refused(seed):
    source = random.Random(seed)
    fields = (PLAN if seed % 2 else amed()).as_dict()
    for _ in range(source.randint(1, 3)):
        fields = mutated(fields, source, ODD, NAMES)
    read_or_refused(parse, json.dumps(fields))
    if isinstance(fields, dict) and isinstance(fields.get("recipe"), dict):
        read_or_refused(parse, json.dumps(fields["recipe"]))
    text = PLAN.text()
    cut = source.randrange(len(text))
    read_or_refused(parse, text[:cut] + source.choice(["", "[", "}", "9" * 5000, "\0", "é"]) + text[cut + 1 :])


@pytest.mark.parametrize("seed", range(150))
def test_odd_files_are_plans_or_refused(files, seed):
    """Cut off, with other bytes or with odd fields; with the checksum no other plan than the one that was written."""
    source = random.Random(seed)
    kind = source.choice(["plan", "amed"])
    path, written = files[kind], load(files[kind])
    content = bytearray(path.read_bytes())
    for _ in range(source.randint(1, 4)):
        place = source.randrange(min(len(content), 3000) if source.random() < 0.7 else len(content))
        content[place] = source.randrange(256)
    path.write_bytes(content[: source.randrange(len(content))] if source.random() < 0.2 else content)
    found = read_or_refused(load, path)
    if found is not None and b"sha256" in content:
        assert found.recipe == written.recipe and found.about == written.about
    written.save(path)
    field = source.choice(["recipe", "about", "predictor", "version"])
    changed = mutated(json.loads(json.dumps(written.as_dict().get(field))), source, ODD, NAMES)
    read_or_refused(load, rewritten(path, sha256=None, **{field: json.dumps(changed)}))


def test_what_is_no_file_is_refused(tmp_path):
    for odd in (tmp_path, tmp_path / "a\0b", tmp_path / "\ud800", tmp_path / ("x" * 300), tmp_path / "x" / "y"):
        with pytest.raises(FileError):
            load(odd)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FileError, match="not a regular file"):
            load(tmp_path / "pipe")


# The model it was made for


def test_another_model_is_named_by_its_first_field_that_differs():
    PLAN.check_model(MODEL)
    PLAN.check_model({**MODEL, "sigma_max": 14.6150, "more": 1})
    PLAN.check_model({"family": "SD15"})
    with pytest.raises(ValueError, match="made for another model: prediction is EPS there and V_PREDICTION in"):
        PLAN.check_model({**MODEL, "prediction": "V_PREDICTION", "channels": 16})
    with pytest.raises(ValueError, match=r"sigma_max is 14\.615 there and 80 in the model"):
        PLAN.check_model({**MODEL, "sigma_max": 80.0})
    CalibratedPlan(PLAN.recipe).check_model(MODEL)


# Sampling


def test_a_plan_samples_as_its_recipe():
    assert torch.equal(
        PLAN.function(denoiser, 14 * X1, disable=True, bottleneck=lambda: pytest.fail("asked")),
        PLAN.recipe.function(denoiser, 14 * X1, disable=True),
    )


def test_a_predictor_is_asked_once_a_pair_and_guidance_is_set():
    calibrated, asked, factors = amed(), [], []
    recipe = Recipe("amed", SIGMAS, tunings=tuple(Tuning(guidance=1 + k / 10) for k in range(5)))
    predicted = CalibratedPlan(recipe, calibrated.predictor)

    def bottleneck():
        asked.append(len(factors))

    x = predicted.function(denoiser, 14 * X1, disable=True, set_guidance=factors.append, bottleneck=bottleneck)
    assert asked == [1, 3] and factors == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4])
    assert x.isfinite().all()
    with pytest.raises(ValueError, match="guidance"):
        predicted.function(denoiser, 14 * X1, disable=True, bottleneck=lambda: None)


# What was published


def test_the_levels_of_stable_diffusion():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    sigmas = ((1 - kept) / kept).sqrt()
    assert [stable_diffusion_sigma(step + 1) for step in (0, 500, 999)] == pytest.approx(sigmas[[0, 500, 999]].tolist())
    steps = [999, 885, 799, 705, 599, 492, 400, 329, 200, 73]
    recipe = AMED_SD15.recipe
    assert recipe.sigmas[:-1] == pytest.approx(sigmas[steps].tolist(), rel=1e-12)
    assert recipe.sigmas[-1] == 0 and recipe.nfe == 10
    assert recipe.sigmas[0] == pytest.approx(14.6146, rel=1e-5)


def test_the_published_numbers_are_at_the_inserted_levels():
    tunings = AMED_SD15.recipe.tunings
    assert all(tuning == Tuning() for tuning in tunings[::2])
    assert all(tuning.scale_dir != 1 and tuning.scale_time != 1 for tuning in tunings[1::2])
    assert all(0.99 <= t.scale_dir < 1 and 0.97 < t.scale_time < 1.02 for t in tunings[1::2])
    assert all(id == calibrated.recipe.base for id, calibrated in PUBLISHED.items())


def test_the_published_plan_as_text_and_file(tmp_path):
    AMED_SD15.save(tmp_path / "amed.safetensors")
    for back in (parse(AMED_SD15.text()), load(tmp_path / "amed.safetensors")):
        assert back.recipe == AMED_SD15.recipe and back.about == AMED_SD15.about
    x = AMED_SD15.function(denoiser, X1 * AMED_SD15.recipe.sigmas[0], disable=True)
    assert x.isfinite().all()
