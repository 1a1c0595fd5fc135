"""The quality benchmark: its distances, and that it counts, chooses and goes on as it says."""

from __future__ import annotations

import copy
import csv
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import distances

pytestmark = pytest.mark.slow

SETTINGS = ["--quick", "--samplers", "ipndm_v heun calibrated-4", "--schedules", "karras exponential beta simple"]


@pytest.fixture(scope="module")
def bench(comfy_process) -> SimpleNamespace:
    """The modules of the benchmark, which need the host."""
    from bench import cells, distributions, errors, jobs, quality, results, settings, subjects

    return SimpleNamespace(
        cells=cells, distributions=distributions, errors=errors, jobs=jobs, quality=quality, results=results,
        settings=settings, subjects=subjects, demo=subjects.Demo(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: two samplers of ours and two of the host, in `cache` and `out`."""
    folder = tmp_path_factory.mktemp("quality")
    assert run(bench, folder).calls > 0
    return folder


def run(bench, folder: Path):
    return bench.quality.main([*SETTINGS, "--cache", str(folder / "cache"), "--out", str(folder / "out")])


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "quality.csv").open() as file:
        return list(csv.DictReader(file))


def take(files: list[Path], folder: Path) -> None:
    """Begin a folder with a cache of these files."""
    (folder / "cache").mkdir()
    for path in files:
        (folder / "cache" / path.name).hardlink_to(path)


def test_table_has_every_cell(finished: Path):
    rows = {(r["source"], r["sampler"], r["budget"]): r for r in read(finished) if r["status"] == "ok"}
    for source in ("ours", "host"):
        for sampler in ("ipndm_v", "heun"):
            for budget in ("4", "6"):
                row = rows[source, sampler, budget]
                assert 0 < float(row["median"]) <= float(row["p90"]) < 1
                assert 1 <= float(row["nfe"]) <= int(budget)
                assert int(row["images"]) == 2
    assert ("borrowed", "ipndm_v", "6") in rows
    assert (finished / "out" / "quality.png").stat().st_size > 10_000
    text = (finished / "out" / "QUALITY.md").read_text()
    assert "as good as the best host sampler at" in text and "| 4 | " in text


def test_calibrated_plans_stand_beside_the_plain_samplers(bench, finished: Path):
    """The committed plan for 4 evaluations, on prompts and seeds that it was not fitted to, and its line."""
    from demo.learn import PROMPTS, SAMPLES, SEED

    row = next(r for r in read(finished) if r["source"] == "calibrated")
    assert (row["sampler"], row["nfe"], row["images"]) == ("calibrated-4", "4", "2") and 0 < float(row["median"]) < 0.2
    fitted = range(SEED, SEED + 2 * SAMPLES)
    reported = bench.settings.Size().reported_on(bench.demo)
    assert not {pair.prompt for pair in reported} & set(PROMPTS)
    assert not {pair.seed for pair in reported} & set(fitted)
    text = (finished / "out" / "QUALITY.md").read_text()
    assert f"| {float(row['median']):.4f} (" in text


def test_errors_are_those_of_samples(bench, finished: Path):
    """A cell of the table, sampled again beside a finer reference."""
    cells, demo = bench.cells, bench.demo
    row = next(r for r in read(finished) if (r["source"], r["sampler"], r["budget"]) == ("host", "ipndm_v", "6"))
    entry, pairs = cells.Entry("host", "ipndm_v"), tuple(cells.Pair(demo.prompts[i], i) for i in (8, 9))
    levels = cells.make_levels(demo, entry, cells.Schedule("host", row["schedule"]), int(row["steps"]))
    x, nfe = cells.sample(demo, entry, levels, pairs)
    reference = bench.settings.LIMITS[False].reference
    exact, _ = cells.sample(demo, reference[0], cells.make_levels(demo, *reference, 60), pairs)
    assert nfe == float(row["nfe"]) == 6
    assert (x - exact).square().mean((1, 2, 3)).sqrt().mean() == pytest.approx(float(row["median"]), rel=0.1)


def test_second_run_asks_the_model_nothing(bench, finished: Path, monkeypatch: pytest.MonkeyPatch):
    before = read(finished)

    def unexpected(*_):
        raise AssertionError("the model was called")

    monkeypatch.setattr(bench.jobs, "perform", unexpected)
    assert run(bench, finished).calls == 0
    assert read(finished) == before


def test_stopped_run_goes_on(bench, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped in the middle of a job after 5 of them, it makes the rest; the end is the same."""
    take(sorted((finished / "cache").iterdir(), key=lambda path: path.stat().st_mtime)[:-8], tmp_path)
    sample, runs = bench.cells.sample, []

    def stopping(*arguments, **more):
        if len(runs) == 5:
            raise KeyboardInterrupt
        runs.append(arguments)
        return sample(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(bench.cells, "sample", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(bench, tmp_path)
    assert run(bench, tmp_path).calls == 3
    assert read(tmp_path) == read(finished)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_time_limit_leaves_what_is_known(bench, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bench.quality.main(
        [*SETTINGS, "--minutes", "0", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    )
    assert "Run it again to continue" in capsys.readouterr().out
    assert read(tmp_path) == []


@pytest.mark.parametrize("size", ["QUICK", "FULL", "Size"])
def test_choice_and_report_share_no_pair(bench, size: str):
    size = getattr(bench.settings, size)
    size = size() if isinstance(size, type) else size
    chosen, reported = size.chosen_on(bench.demo), size.reported_on(bench.demo)
    assert not {pair.seed for pair in chosen} & {pair.seed for pair in reported}
    assert len(set(reported)) == len(reported) == size.pairs
    if len(chosen) + len(reported) <= 40:
        assert not {pair.prompt for pair in chosen} & {pair.prompt for pair in reported}


def test_no_sampler_gets_more_evaluations_than_the_budget(bench):
    """The fitted levels cost at most the budget, and one step more would cost more."""
    cells = bench.cells
    for entry in cells.our_entries(bench.settings.VARIANTS) + cells.host_entries():
        if entry.adaptive:
            continue
        schedule = cells.Schedule(entry.source, "karras")
        for budget in (4, 9):
            levels = cells.fit_levels(bench.demo, entry, schedule, budget)
            _, made = cells.sample(bench.demo, entry, levels, (bench.cells.Pair("", 0),), network=False)
            assert made <= budget, (entry, budget)
            more = cells.make_levels(bench.demo, entry, schedule, len(levels))
            assert cells.count_evaluations(bench.demo, entry, more) > budget, (entry, budget)


def test_stochastic_samplers_are_told_from_the_others(bench):
    found = defaultdict(set)
    for entry in bench.cells.our_entries({}) + bench.cells.host_entries():
        found[entry.source, bench.cells.is_stochastic(bench.demo, entry)].add(entry.name)
    assert {"dpmpp_2m_sde", "euler_ancestral", "ddpm"} <= found["ours", True] & found["host", True]
    assert {"dpmpp_2m", "euler", "ddim", "deis"} <= found["ours", False] & found["host", False]


@pytest.mark.parametrize("id", ["sa_solver", "euler_ancestral", "dpmpp_2m"])
def test_samplers_are_told_of_the_noise_of_the_model_as_by_the_nodes(bench, id):
    """Of its scale and the time shift, on which the added noise depends, in what is run and in the key."""
    import comfy.samplers

    @dataclass(frozen=True)
    class Scaled(bench.subjects.Demo):
        @property
        def patcher(self):
            return patcher

    cells, demo = bench.cells, bench.subjects.Demo("rectified flow")
    patcher = demo.patcher.clone()
    sampling = copy.deepcopy(patcher.get_model_object("model_sampling"))
    sampling.set_parameters(shift=3.0)
    sampling.noise_scale = 8.0
    patcher.add_object_patch("model_sampling", sampling)
    scaled = Scaled("rectified flow")
    assert demo.space == (("flow", True),) and bench.demo.space == ()
    assert dict(scaled.space) == {"flow": True, "model_shift": pytest.approx(3.0), "noise_scale": 8.0}

    def noise(sigma, sigma_next):
        return torch.cos(torch.arange(math.prod(demo.shape)) * (1 + sigma + 2 * sigma_next)).reshape(1, *demo.shape)

    levels, pairs = (0.95, 0.8, 0.5, 0.2, 0.0), (cells.Pair(demo.prompts[0], 1),)
    entry = cells.Entry("ours", id, (("noise_sampler", noise),) if id != "dpmpp_2m" else ())
    found, _ = cells.sample(scaled, entry, levels, pairs)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_cfg(scaled.guidance)
    spec, function = cells.SAMPLERS[id], bench.subjects.pack().nodes.host.sampling.sampler_function
    sampler = comfy.samplers.KSAMPLER(function(spec), dict(entry.options))
    torch.testing.assert_close(found, cells.run(scaled, guider, sampler, levels, pairs), rtol=0, atol=0)
    keys = {bench.jobs.Job(one, cells.Entry("ours", id), levels, pairs).key for one in (demo, scaled)}
    assert len(keys) == (1 if id == "dpmpp_2m" else 2)


def test_failing_sampler_is_recorded(bench, tmp_path: Path):
    """A level that repeats is an error of ours: an outcome like another, which is kept."""
    cells, jobs = bench.cells, bench.jobs
    cache = jobs.Cache(tmp_path)
    entry = cells.Entry("host", "dpmpp_2m")
    job = jobs.Job(bench.demo, entry, (14.6, 1.0, 1.0, 1.0, 0.0), (bench.cells.Pair("", 0),))
    assert jobs.perform(job, cache).failed == cache.load(job.key).failed == "not finite"
    greedy = jobs.Job(bench.demo, entry, (14.6, 1.0, 0.5, 0.0), (bench.cells.Pair("", 0),), budget=2)
    assert jobs.perform(greedy, cache).failed == "made 3 evaluations, 2 were allowed"


def test_key_changes_with_what_counts(bench):
    cells, jobs, pair = bench.cells, bench.jobs, bench.cells.Pair("cat", 0)
    levels = (14.6, 1.0, 0.3, 0.0)

    def key(entry, levels=levels, pair=pair, **more):
        return jobs.Job(bench.demo, entry, levels, (pair,), **more).key

    ours, host = cells.Entry("ours", "dpmpp_2m"), cells.Entry("host", "dpmpp_2m")
    others = [
        key(host),
        key(cells.Entry("ours", "dpmpp_2m", (("corrected_start", True),))),
        key(ours, (14.6, 1.1, 0.3, 0.0)),
        key(ours, pair=bench.cells.Pair("cat", 1)),
        key(ours, reference="a"),
        key(ours, basis="a"),
    ]
    assert len({key(ours), *others}) == 7
    assert key(cells.Entry("ours", "euler")) == key(cells.Entry("ours", "ddim"))  # they do the same


def test_verdict_says_where_ours_is_worse(bench):
    cells, errors, results = bench.cells, bench.errors, bench.results

    def duel(budget, ours, host):
        sides = [errors.Cell(cells.Entry(s, "x"), cells.Schedule(s, "y"), budget) for s in ("ours", "host")]
        return results.Duel(budget, *sides, tuple(errors.Score(torch.full((8,), error)) for error in (ours, host)))

    even, better, worse = duel(4, 3.0, 3.0), duel(6, 1.0, 2.0), duel(8, 3.0, 2.0)
    assert results.verdict([even, better]).endswith("at 4, 6 evaluations: at all of them.")
    assert results.verdict([even, worse]).endswith("at 4 evaluations; NOT at 8 (1.500 times its error, 1.50 to 1.50).")


def test_stochastic_stages(bench, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Few samples: the distances are there, with their spread, and the next run finds them."""
    take(sorted((finished / "cache").iterdir()), tmp_path)
    images = torch.rand(30, *bench.demo.shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(bench.distributions, "load_data", lambda: (images, list(bench.demo.prompts)))
    monkeypatch.setattr(bench.distributions, "AXES", 4)
    arguments = [*SETTINGS[:2], "ipndm_v heun ddpm", *SETTINGS[3:], "--samples", "12"]
    arguments += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert bench.quality.main(arguments).calls > 0
    rows = {(r["source"], r["sampler"]): r for r in read(tmp_path) if r["frechet_many"]}
    assert {("ours", "ddpm"), ("host", "ddpm"), ("host", "ipndm_v")} <= set(rows)
    for row in rows.values():
        for distance in ("wasserstein_many", "wasserstein_data", "frechet_many", "frechet_data"):
            assert float(row[distance]) > 0 and float(row[f"{distance}_error"]) > 0
        assert float(row["frechet_data"]) > float(row["frechet_many"])  # the images are noise here
    assert "Stochastic samplers" in (tmp_path / "out" / "QUALITY.md").read_text()
    assert bench.quality.main(arguments).calls == 0


# Distances of known Gaussians


def gaussian(mean: torch.Tensor, deviation: torch.Tensor, n: int = 10_000, seed: int = 0) -> torch.Tensor:
    return mean + deviation * torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed))


def test_frechet_closed_form():
    """|m_a - m_b|^2 + sum (s_a - s_b)^2 for independent axes, in any rotation."""
    mean = torch.tensor([1.0, -2.0, 0.5])
    first, second = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([2.0, 0.5, 0.5])
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1))).Q
    found = distances.frechet(gaussian(torch.zeros(3), first) @ turn, gaussian(mean, second, seed=2) @ turn)
    assert found == pytest.approx(float(mean.square().sum() + (first - second).square().sum()), rel=0.03)
    same = gaussian(mean, first)
    assert distances.frechet(same, same) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("count", [3000, 2001])
def test_sliced_wasserstein_of_a_shift(count: int):
    """In d dimensions a shift v is |v| / sqrt(d) in the mean over all directions; a scale s is s - 1."""
    size, shift = 5, 2.0
    axes = distances.directions(size, 400)
    assert torch.allclose(axes.norm(dim=0), torch.ones(400))
    one = gaussian(torch.zeros(size), torch.ones(size), 3000) @ axes
    moved = gaussian(torch.tensor([shift, 0, 0, 0, 0]), torch.ones(size), count, seed=3) @ axes
    wider = gaussian(torch.zeros(size), 3 * torch.ones(size), count, seed=3) @ axes
    assert distances.sliced_wasserstein(one, moved) == pytest.approx(shift / math.sqrt(size), rel=0.05)
    assert distances.sliced_wasserstein(one, wider) == pytest.approx(2, rel=0.05)
    assert distances.sliced_wasserstein(one, one) == 0


def test_principal_axes_find_the_widest():
    samples = gaussian(torch.ones(4), torch.tensor([0.1, 3.0, 0.1, 1.0]))
    axes = distances.principal_axes(samples, 2)
    assert torch.allclose(axes.abs(), torch.eye(4)[:, [1, 3]], atol=0.03)


def test_jackknife_finds_the_error_of_a_mean():
    """The standard error of a mean of n values is their deviation / sqrt(n)."""
    zero, groups = torch.zeros(10, 1), (torch.arange(1000) % 10, torch.arange(10))
    values = [gaussian(torch.zeros(1), torch.ones(1), 1000, seed) for seed in range(40)]
    errors = [distances.with_error(lambda a, b: float(a.mean() - b.mean()), v, zero, groups)[1] for v in values]
    assert sum(errors) / len(errors) == pytest.approx(1 / math.sqrt(1000), rel=0.1)
