"""The quality benchmark on a checkpoint of one's own, tried on a stand-in for SD1.5, and on the demo's flow form."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from standins import write_checkpoint

pytestmark = pytest.mark.slow

PROMPTS = ("a red apple on a table", "a cat in the snow, very long fur " * 12)  # the second fills two windows of CLIP


@pytest.fixture(scope="module")
def quality(comfy_process):
    from bench import quality

    return quality


@pytest.fixture(scope="module")
def given(quality, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and a file of prompts."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint("SD15", folder / "own.ckpt")
    (folder / "prompts.txt").write_text("\n\n".join(PROMPTS) + "\n")
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    size = ["--quick", "--budgets", "4", "--width", "64", "--height", "96", "--cfg", "5", "--images", "2"]
    wanted = ["--samplers", "dpmpp_2m", "--schedules", "karras"]
    files = ["--checkpoint", str(folder / "own.ckpt"), "--prompts", str(folder / "prompts.txt")]
    return [*size, *wanted, *files, "--cache", str(folder / "cache"), "--out", str(folder / "out"), *more]


def test_report_of_a_checkpoint(quality, given: Path, capsys: pytest.CaptureFixture[str]):
    """Errors of both kinds of samplers on its own prompts and size, a sheet of images, and nothing to do again."""
    assert quality.main(arguments(given)).calls > 0
    assert "evaluations of an image" in capsys.readouterr().err  # what it will cost, before it begins
    with (given / "out" / "quality.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    assert {row["source"] for row in rows} >= {"ours", "host"}
    assert all(float(row["median"]) > 0 and int(row["nfe"][0]) <= 4 and row["images"] == "2" for row in rows)
    text = (given / "out" / "QUALITY.md").read_text()
    assert "own.ckpt, 64 x 96, at guidance" in text and "demo" not in text
    with Image.open(given / "out" / "sheet.png") as sheet:
        assert sheet.width > 2 * 256 and sheet.height > 3 * 256  # two images; many steps, the host and ours
    assert quality.main(arguments(given)).calls == 0


def test_another_size_is_another_image(quality, given: Path):
    """Nothing is taken from the cache that was made with other settings."""
    from bench.jobs import Job
    from bench.settings import Pair
    from bench.subjects import Checkpoint

    files = given / "own.ckpt", (PROMPTS[0],)
    subjects = [
        Checkpoint(*files, *rest) for rest in ((64, 64, 5.0), (64, 96, 5.0), (64, 64, 6.0), (64, 64, 5.0, "blur"))
    ]
    entry, levels = quality.Entry("ours", "euler"), (14.6, 1.0, 0.0)
    keys = {Job(subject, entry, levels, (Pair(PROMPTS[0], 0),)).key for subject in subjects}
    assert len(keys) == 4
    assert [subject.shape for subject in subjects[:2]] == [(4, 8, 8), (4, 12, 8)]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (["--prompts", ""], "needs --prompts"),
        (["--prompts", "nowhere.txt"], "no file nowhere.txt"),
        (["--checkpoint", "nowhere.ckpt"], "no file nowhere.ckpt"),
        (["--plans", "nowhere.safetensors"], "no file nowhere.safetensors"),
    ],
)
def test_wrong_option_is_named(quality, given: Path, replaced: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        quality.main(arguments(given, *replaced))


def test_file_without_prompts_is_named(quality, given: Path):
    (given / "empty.txt").write_text("\n  \n")
    with pytest.raises(ValueError, match=r"empty\.txt holds no prompt"):
        quality.main(arguments(given, "--prompts", str(given / "empty.txt")))
    with pytest.raises(ValueError, match="must be one of"):
        quality.main(["--quick", "--form", "pixels"])


def test_flow_form_is_measured_as_a_flow(quality, tmp_path: Path):
    """Levels from 1 to 0, and each sampler in the form for rectified flow: near its own limit, not the other's."""
    from bench import cells
    from bench.settings import LIMITS
    from bench.subjects import Demo

    flow = Demo("rectified flow")
    levels = cells.make_levels(flow, cells.Entry("ours", "dpmpp_2m"), cells.Schedule("ours", "time_uniform"), 12)
    assert levels[0] == 1 and levels[-1] == 0
    pairs = (cells.Pair("cat face", 1), cells.Pair("red apple", 2))
    reference, check, _ = LIMITS[True]
    exact, other = (cells.sample(flow, w[0], cells.make_levels(flow, *w, 60), pairs)[0] for w in (reference, check))
    few, nfe = cells.sample(flow, cells.Entry("ours", "dpmpp_2m"), levels, pairs)
    assert nfe == 12
    apart, error = ((a - exact).square().mean().sqrt() for a in (other, few))
    assert apart < 0.2 * error < 0.2 * torch.tensor(0.1)
    run = ["--quick", "--form", "rectified flow", "--samplers", "euler", "--budgets", "4", "--pairs", "2"]
    quality.main([*run, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path)])
    text = (tmp_path / "QUALITY_FLOW.md").read_text()
    assert "form of rectified flow" in text and "one of 1000" not in text and (tmp_path / "quality_flow.csv").exists()
