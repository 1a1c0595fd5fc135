"""The window of plans: what it shows, and that renaming and deleting reach plans of the user's and nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from in_the_host import module
from safetensors.torch import save_file

BUILT_IN = "built-in: amed_dpm_2m (SD1.5, 10 evaluations)"


@pytest.fixture
def files(comfyui):
    return module(comfyui, "host.plan_files")


@pytest.fixture
def make(comfyui, files, folder):
    """Writes a plan into models/fewstep, or elsewhere."""
    plans = module(comfyui, "plans")

    def write(name: str, into: Path = folder, **about) -> Path:
        found = plans.CalibratedPlan(
            files.BUILT_IN[BUILT_IN].recipe,
            about=dataclasses.replace(files.BUILT_IN[BUILT_IN].about, **about),
        )
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
        return path

    return write


@pytest.fixture
def told(comfyui, files, monkeypatch) -> list:
    """What is sent to the front ends."""
    sent = []
    monkeypatch.setattr(files, "tell", lambda event, content: sent.append((event, content)))
    return sent


def test_what_is_shown_of_a_plan(routes, make):
    make("mine.safetensors", guidance=3.0, error_before=0.03, error_after=0.017)
    make("deep/interrupted.safetensors", interrupted=True)
    make("interrupted_00001_.safetensors")
    (built_in, deep, old, mine) = routes.plans()["plans"]
    assert built_in["file"] == BUILT_IN and built_in["built_in"] and not built_in["unfinished"]
    assert mine == {
        "file": "mine.safetensors", "built_in": False, "sampler": "amed_dpm_2m", "predictor": False, "evaluations": 10,
        "model": "SD1.5", "guidance": 3.0, "before": 0.03, "after": 0.017, "unfinished": False,
    }  # fmt: skip
    assert deep["unfinished"] and deep["file"] == str(Path("deep", "interrupted.safetensors"))
    assert old["unfinished"], "files from before there was a mark are known by their name"


def test_a_file_that_is_no_plan_is_shown_with_its_fault(routes, make, folder):
    make("mine.safetensors")
    save_file({"lora": torch.zeros(2)}, folder / "lora.safetensors")
    faults = {plan["file"]: plan.get("fault") for plan in routes.plans()["plans"]}
    assert faults["mine.safetensors"] is None and "not a file of Few-Step" in faults["lora.safetensors"]


def test_a_plan_gets_another_name(routes, files, make, folder, told):
    path = make("mine_00001_.safetensors")
    content = path.read_bytes()
    assert routes.rename_plan({"file": path.name, "name": "portraits/soft"}) == {
        "file": str(Path("portraits", "soft.safetensors"))
    }
    assert (folder / "portraits" / "soft.safetensors").read_bytes() == content and not path.exists()
    assert told == [("fewstep.plans", {"files": [BUILT_IN, str(Path("portraits", "soft.safetensors"))]})]


def test_a_plan_is_deleted(routes, make, folder, told):
    make("mine.safetensors")
    other = make("other.safetensors")
    assert routes.delete_plan({"file": "mine.safetensors"}) == {}
    assert [*folder.iterdir()] == [other]
    assert told == [("fewstep.plans", {"files": [BUILT_IN, "other.safetensors"]})]


def test_no_file_is_replaced(routes, make, folder):
    one, two = make("one.safetensors"), make("two.safetensors", guidance=1.0)
    content = two.read_bytes()
    for name in ("two", "two.safetensors", "one"):
        with pytest.raises(ValueError, match=f"filename = '{name}' is taken"):
            routes.rename_plan({"file": "one.safetensors", "name": name})
    assert one.exists() and two.read_bytes() == content


def test_what_was_not_finished_stays_so_under_another_name(comfyui, routes, files, make, folder):
    """Few-Step Auto knows old files by their name alone: the mark goes into the file."""
    auto = module(comfyui, "auto")
    model = dict(files.BUILT_IN[BUILT_IN].about.model)
    errors = {"error_before": 1.0, "error_after": 0.1, "improved": True}
    make("interrupted_00001_.safetensors", **errors)
    make("marked.safetensors", interrupted=True, **errors)
    for file, name in (("interrupted_00001_.safetensors", "fine"), ("marked.safetensors", "good")):
        routes.rename_plan({"file": file, "name": name})
    assert sorted(path.name for path in folder.iterdir()) == ["fine.safetensors", "good.safetensors"]
    assert all(plan["unfinished"] for plan in routes.plans()["plans"][1:])
    taken = auto.best_plan(model, 10)
    assert taken is None or taken[0] == BUILT_IN
    make("whole.safetensors", **errors)
    assert auto.best_plan(model, 10)[0] == "whole.safetensors"


# Attacks

OUT = (
    "../out.safetensors", "..\\out.safetensors", "/etc/passwd", "{root}/out.safetensors", "deep/../../out.safetensors",
    "out.safetensors\x00", "", ".", "..", "C:\\out.safetensors", "file:///out.safetensors",
    "mine.safetensors/../../out.safetensors", BUILT_IN,
)  # fmt: skip
ODD = ("a/../../out", "con", "a\nb", "x" * 300, "a/" * 150 + "b", "..\\..\\b")


@pytest.mark.parametrize("file", [*OUT, "./out.safetensors", "~/out.safetensors"])
def test_nothing_outside_is_deleted_or_renamed(routes, make, folder, file):
    outside, inside = make("out.safetensors", folder.parent), make("mine.safetensors")
    file = file.format(root=folder.parent)
    with pytest.raises(ValueError, match="file: "):
        routes.delete_plan({"file": file})
    with pytest.raises(ValueError, match="file: "):
        routes.rename_plan({"file": file, "name": "stolen"})
    assert outside.exists() and [*folder.iterdir()] == [inside]


@pytest.mark.parametrize("name", [*OUT, *ODD])
def test_no_new_name_leads_outside(routes, make, folder, name):
    make("mine.safetensors")
    name = name.format(root=folder.parent)
    with pytest.raises(ValueError, match="filename = "):
        routes.rename_plan({"file": "mine.safetensors", "name": name})
    assert [path.name for path in folder.iterdir()] == ["mine.safetensors"]
    assert [*folder.parent.glob("**/out*")] == []


def test_links_lead_nowhere(routes, make, folder):
    """Behind a link to another folder nothing is changed; of a link to a file the link itself is removed."""
    elsewhere = folder.parent / "elsewhere"
    real = make("real.safetensors", elsewhere)
    make("mine.safetensors")
    (folder / "away").symlink_to(elsewhere, target_is_directory=True)
    (folder / "linked.safetensors").symlink_to(real)
    behind = str(Path("away", "real.safetensors"))
    assert behind in [plan["file"] for plan in routes.plans()["plans"]]
    for change in (routes.delete_plan, lambda given: routes.rename_plan(given | {"name": "stolen"})):
        with pytest.raises(ValueError, match="lies outside of models/fewstep"):
            change({"file": behind})
    for name in ("away/new", "away/deeper/new"):
        with pytest.raises(ValueError, match="leads out of models/fewstep"):
            routes.rename_plan({"file": "mine.safetensors", "name": name})
    assert [*elsewhere.iterdir()] == [real] and (folder / "mine.safetensors").exists()
    routes.delete_plan({"file": "linked.safetensors"})
    assert real.exists() and not os.path.lexists(folder / "linked.safetensors")


@pytest.mark.parametrize("kind", ["lora", "text", "pickle"])
def test_what_is_no_plan_is_left_alone(routes, folder, kind):
    folder.mkdir(parents=True)
    path = folder / "theirs.safetensors"
    if kind == "lora":
        save_file({"lora": torch.zeros(2)}, path, {"format": "pt"})
    elif kind == "text":
        path.write_text("a text")
    else:
        torch.save({"a": 1}, path)
    for change in (routes.delete_plan, lambda given: routes.rename_plan(given | {"name": "stolen"})):
        with pytest.raises(ValueError, match=r"theirs\.safetensors"):
            change({"file": path.name})
    assert [*folder.iterdir()] == [path]


@pytest.mark.parametrize("given", [None, [], "file", {}, {"file": 1}, {"file": None}, {"file": ["a"], "name": "b"}])
def test_odd_requests_are_refused(comfyui, routes, given):
    for change in (routes.delete_plan, routes.rename_plan):
        with pytest.raises(module(comfyui, "requests").RequestError):
            change(given)


def test_what_the_system_refuses_is_said(routes, files, make, folder, monkeypatch):
    make("mine.safetensors")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(files, "moved", refuse)
    monkeypatch.setattr(files.Path, "unlink", refuse)
    for change in (routes.delete_plan, lambda given: routes.rename_plan(given | {"name": "new"})):
        with pytest.raises(ValueError, match="the system refuses it: Permission denied") as raised:
            change({"file": "mine.safetensors"})
        assert str(folder) not in str(raised.value)


def test_over_http_another_site_changes_nothing(running_host):
    """A form of a page elsewhere can send text, but no JSON that says that it is."""
    import urllib.error
    import urllib.request

    def post(route: str, content: dict, kind: str) -> int:
        body = json.dumps(content).encode()
        request = urllib.request.Request(running_host.url + route, body, {"Content-Type": kind})
        try:
            return urllib.request.urlopen(request).status
        except urllib.error.HTTPError as error:
            return error.code

    assert any(plan["file"] == BUILT_IN for plan in running_host.get("/fewstep/plans")["plans"])
    for route in ("/fewstep/plans/delete", "/fewstep/plans/rename"):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            assert post(route, {"file": "a", "name": "b"}, kind) == 415
        status, answer = running_host.post(route, {"file": "../a.safetensors", "name": "b"})
        assert status == 200 and "is not in models/fewstep" in answer["error"]
        assert running_host.post(route, {"file": 1})[0] == 400
