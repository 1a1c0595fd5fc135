"""Schedules whose levels are given: by the makers of a distilled model, or by the user."""

import re
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st
from machine import moment
from small_models import small_model

from samplers import SCHEDULES
from samplers.schedules.trained import Distilled, steps_of, trained_models

MIN, MAX = 0.0292, 14.6146
TABLE = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
SIGMAS = np.sqrt((1 - TABLE) / TABLE)  # of the time steps 0 ... 999 of Stable Diffusion

FLOW = [id for id, entry in trained_models().items() if "shift" in entry or "sigmas" in entry]
VP = [id for id in trained_models() if id not in FLOW]


def trained(id, n, **options):
    ends = (0.001, 1.0) if id in FLOW else (MIN, MAX)
    return SCHEDULES["trained"].function(n, *ends, flow=id in FLOW, distilled=id, **options)


def manual(text, n, low=MIN, high=MAX, **options):
    return SCHEDULES["manual"].function(n, low, high, sigmas=text, **options)


# Distilled models


def test_every_entry_can_be_chosen_and_names_where_it_was_read():
    page = (Path(__file__).parents[2] / "docs" / "MODELS.md").read_text()
    assert list(get_args(Distilled)) == list(trained_models())
    for id, entry in trained_models().items():
        assert entry["sources"] and all(source.startswith("https://") for source in entry["sources"])
        rows = [line for line in page.splitlines() if line.startswith(f"| `{id}` |")]  # of more than one table
        assert any(entry["name"] in row and all(source in row for source in entry["sources"]) for row in rows)


@pytest.mark.parametrize("id", trained_models())
def test_levels_descend_from_the_models_highest(id):
    for n in steps_of(trained_models()[id]):
        sigmas = trained(id, n)
        assert sigmas.shape == (n + 1,) and (sigmas.float().diff() < 0).all() and sigmas[-1] == 0
        begins_lower = id == "hyper_sdxl_unet" or (id, n) == ("dmd2_sdxl", 1)
        assert sigmas[0] < 6 if begins_lower else sigmas[0] == (1.0 if id in FLOW else MAX)


def times(id, n):
    """The time step of each level."""
    return np.interp(np.log(trained(id, n)[:-1].numpy()), np.log(SIGMAS), np.arange(1000))


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("sdxl_turbo", [999, 899, 799, 699]),
        ("sdxl_lightning", [999, 499]),
        ("sdxl_lightning", [999, 749, 499, 249]),
        ("lcm", [999, 759, 499, 259]),
        ("tcd", [999, 759, 499, 259]),
        ("hyper_sdxl_unet", [800]),
        ("dmd2_sdxl", [999, 749, 499, 249]),
        ("dmd2_sdxl", [399]),
    ],
)
def test_published_time_steps(id, expected):
    np.testing.assert_allclose(times(id, len(expected)), expected, atol=0.01)  # the first is MAX, rounded


@pytest.mark.parametrize("id", ["sdxl_lightning", "hyper_sd", "hyper_sd_cfg"])
def test_lightning_and_hyper_are_trailing(id):
    """`timestep_spacing="trailing"` of diffusers: round(1000 - 1000 i / n) - 1."""
    for n in steps_of(trained_models()[id]):
        np.testing.assert_allclose(times(id, n), np.round(np.arange(1000, 0, -1000 / n)) - 1, atol=0.01)


@pytest.mark.parametrize("id", ["lcm", "tcd"])
def test_consistency_models_take_their_steps_from_a_grid_of_50(id):
    """As LCMScheduler and TCDScheduler do: some of 999, 979 ... 19."""
    grid = np.arange(1, 51)[::-1] * 20 - 1
    for n in range(1, 51):
        chosen = np.floor(np.linspace(0, 50, num=n, endpoint=False)).astype(int)
        np.testing.assert_allclose(times(id, n), grid[chosen], atol=0.01)


def test_turbo_is_the_hosts(comfyui):
    from comfy_extras.nodes_custom_sampler import SDTurboScheduler

    model = small_model("EPS")
    for n in (1, 2, 3, 4):
        run = comfyui.nodes["FewStepScheduler"].execute(model, "trained", n, 1.0, distilled="sdxl_turbo")
        torch.testing.assert_close(run.result[0], SDTurboScheduler.execute(model, n, 1.0).result[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("flux_schnell", [1, 0.75, 0.5, 0.25]),
        ("flux2_dev_turbo", [1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031]),
        ("wan22_lightning", [1, 0.9375, 5 / 6, 0.625]),
        ("wan21_lightx2v", [1, 0.9375, 5 / 6, 0.625]),
        ("qwen_image_lightning", [1, 0.9, 0.75, 0.5]),
        ("z_image_turbo", [1, 21 / 22, 0.9, 5 / 6, 0.75, 9 / 14, 0.5, 0.3]),
        ("fast_hunyuan", [1, 85 / 86, 34 / 35, 17 / 18, 34 / 38, 17 / 22]),
    ],
)
def test_published_flow_levels(id, expected):
    np.testing.assert_allclose(trained(id, len(expected))[:-1], expected, rtol=1e-13)


def test_hyper_flux_has_the_levels_of_flux_at_1024():
    for n in (8, 16):
        flux = SCHEDULES["flux"].function(n, 0.001, 1.0, flow=True, width=1024, height=1024)
        torch.testing.assert_close(trained("hyper_flux", n), flux, rtol=1e-13, atol=0)


@pytest.mark.parametrize("id", trained_models())
def test_other_numbers_of_steps_are_refused(id):
    known = steps_of(trained_models()[id])
    told = "1 to 50" if "grid" in trained_models()[id] else re.sub(r", (\d+)$", r" or \1", ", ".join(map(str, known)))
    for n in {3, 5, 7, 9, 51, 1000} - set(known):
        with pytest.raises(ValueError, match=f"distilled = {id}: .* was trained for {told} steps?, .* has {n} "):
            trained(id, n)


@pytest.mark.parametrize("id", trained_models())
def test_levels_of_another_kind_are_refused(id):
    n = steps_of(trained_models()[id])[0]
    kinds = ["Stable Diffusion", "rectified-flow"]
    theirs, loaded = kinds[id in FLOW], kinds[id not in FLOW]
    with pytest.raises(ValueError, match=f"distilled = {id}: .* of a {theirs} model, .* those of a {loaded} model"):
        SCHEDULES["trained"].function(n, 0.01, 1.0, flow=id not in FLOW, distilled=id)


def test_denoise_takes_the_last_steps_of_what_was_trained():
    assert torch.equal(trained("sdxl_lightning", 2, denoise=0.5), trained("sdxl_lightning", 4)[-3:])
    assert torch.equal(trained("sdxl_lightning", 4, start_step=1), trained("sdxl_lightning", 4)[1:])
    with pytest.raises(ValueError, match="trained for 4 steps, and the whole schedule has 8"):
        trained("wan22_lightning", 4, denoise=0.5)


def test_the_shift_of_the_loaded_model_makes_no_difference():
    for shift in (1.0, 3.0, 12.0):
        assert torch.equal(trained("wan22_lightning", 4, model_shift=shift), trained("wan22_lightning", 4))


# A typed list

LIST = [14.6, 5.2, 1.4, 0.01]


@pytest.mark.parametrize(
    "text",
    [
        "14.6, 5.2, 1.4, 0.01",
        "14.6 5.2 1.4 1e-2",
        "14.6;5.2;1.4;.01;0",
        "14.6\n5.2\r\n1.4\n+1.0E-02\n0.0\n",
        "[14.6, 5.2, 1.4, 0.01, 0.]",
        "(14.6, 5.2,\t1.4, 0.01,)",
        "sigmas = [14.6, 5.2, 1.4, 0.01]",
        "tensor([14.6000, 5.2000, 1.4000, 0.0100, 0.0000])",
        "tensor([14.6, 5.2, 1.4, 0.01], device='cuda:0', dtype=torch.float64)",
        'array([[14.6], ["5.2"], [1.4], [0.01]])',
        '{"sigmas": [14.6, 5.2, 1.4, 0.01]}',
        "14.6 | 5.2 | 1.4 | 0.01",
        "14.6，5.2、1.4；0.01",
        "14.6, 5.2, 1.4, 0.01, -0",
        "[np.float64(14.6), np.float64(5.2), np.float64(1.4), np.float64(0.01)]",
        "np.float64(14.6), np.float64(5.2), np.float64(1.4), np.float64(0.01)",
        "[tensor(14.6, device='cuda:0'), tensor(5.2), tensor(1.4, dtype=torch.float64), tensor(0.01)]",
        "14.6 -> 5.2 -> 1.4 -> 0.01 -> 0",
        "14.6->5.2->1.4->1e-2->0",
        "14.6 → 5.2 → 1.4 → 0.01",
        "14.6 > 5.2 > 1.4 > 0.01",
        "14.6 => 5.2 => 1.4 => 0.01",
        "sigmas: 14.6, 5.2, 1.4, 0.01, 0",
        "Sigmas：14.6，5.2，1.4，0.01",
        "sigmas = 14.6, 5.2, 1.4, 0.01",
        "14.6/5.2/1.4/0.01",
        "14.6 / 5.2 / 1.4 / 0.01 / 0",
        "14.6,5.2,1.4,0.01",
    ],
)
def test_a_list_is_read_in_any_form(text):
    assert manual(text, 4).tolist() == [*LIST, 0]


@settings(max_examples=100, deadline=None)
@over(
    numbers=st.lists(st.floats(2**-10, 14.0, width=32), min_size=1, max_size=30, unique=True),
    between=st.sampled_from([", ", " ", "\n", "; ", ",\n ", "\t"]),
)
def test_a_printed_list_is_read_to_the_last_bit(numbers, between):
    numbers = sorted(numbers, reverse=True)
    assert manual(between.join(map(repr, numbers)), len(numbers)).tolist() == [*numbers, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sigmas: there is none above 0"),
        (" [ ] ", "sigmas: there is none above 0"),
        ("0", "sigmas: there is none above 0"),
        ("14, 5, x, 1", "sigmas: 'x' is not a number"),
        ("14, 5, nan, 1", "sigmas: 'nan' is not a number"),
        ("inf, 5, 2, 1", "sigmas: 'inf' is not a number"),
        ("[14, 5, 1.4.1, 1]", r"sigmas: '1\.4\.1' is not a number"),
        ("1_4, 5, 2, 1", "sigmas: '1_4' is not a number"),
        ("14, 5, 6, 1", "sigmas: number 3, 6, is above the one before, 5: give them from high to low"),
        ("0, 1, 5, 14", "sigmas: number 2, 1, is above the one before, 0: give them from high to low"),
        ("14, 5, 5, 1", "sigmas: number 3, 5, repeats the one before"),
        ("14, 5, 0, 0", "sigmas: number 4, 0, repeats the one before"),
        ("14, 5, 1, -1", "sigmas: number 4, -1, is below 0"),
        ("80, 5, 2, 1", r"sigmas: number 1, 80, is above 14\.6146, the highest level of this model"),
        ("1e999, 5, 2, 1", r"sigmas: number 1, inf, is above 14\.6146"),
        ("14, 5, 1, 0", "sigmas: there are 3 above 0, and the whole schedule has 4 .*: set steps to 3, or give 4"),
        ("14 5 4 3 1", "sigmas: there are 5 above 0, and the whole schedule has 4 .*: set steps to 5, or give 4"),
        ("14, np.sqrt(9), 2, 1", r"sigmas: 'np\.sqrt' is not a number"),
        ("14, 5, 2, 1/x", "sigmas: 'x' is not a number"),
        ("14, 5 - 2, 1", "sigmas: '-' is not a number"),
        ("14,6; 5,2; 1,4; 0,1", r"sigmas: '14,6' may be one number or two: write 14\.6 or 14, 6"),
        ("14,6 5,2 1,4 0,1", r"sigmas: '14,6' may be one number or two"),
        ("14,6, 5,2, 1,4, 0,1", r"sigmas: '14,6' may be one number or two"),
        ("[14,6\n5,2\n1,4\n0,1]", r"sigmas: '14,6' may be one number or two"),
        ("14,6 → 5,2 → 1,4 → 0,1", r"sigmas: '14,6' may be one number or two"),
        ("14.6; 5,2; 1", r"sigmas: '5,2' may be one number or two: write 5\.2 or 5, 2"),
        (
            "999, 749, 499, 249",
            "sigmas: these look like time steps of 1000, not noise levels: choose the schedule trained",
        ),
        ("14, 5, 4.99999999, 1", "manual: with 4 steps, levels 1 and 2 are both 5 in float32"),
    ],
)
def test_what_is_wrong_with_a_list_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        manual(text, 4)


@pytest.mark.parametrize(
    "piece", ["1", "1.", ".", " ", "a", "a ", "-", "dtype=a", "np.", "float1", "1,", "[", "1e", "e+1", "=", "\u0661"]
)
@pytest.mark.parametrize("before", ["", "14, 5, ", "tensor([14, "])
def test_a_list_is_read_in_time_that_grows_with_its_length(before, piece):
    """The front end asks for it while it is typed; a pattern holds the lock of Python."""
    start = time.process_time()
    with pytest.raises(ValueError, match=r"^(sigmas|manual): "):
        manual(before + piece * (100_000 // len(piece)) + "x", 4)
    assert time.process_time() - start < 5 * moment()


def test_a_flow_model_takes_levels_up_to_1():
    assert manual("1, .9, .5", 3, 0.001, 1.0, flow=True).tolist() == [1, 0.9, 0.5, 0]
    with pytest.raises(ValueError, match=r"sigmas: number 1, 1\.01, is above 1, the highest level"):
        manual("1.01, .5", 2, 0.001, 1.0, flow=True)


def test_whole_numbers_between_commas_are_as_many_numbers():
    assert manual("14,5,2,1", 4).tolist() == [14, 5, 2, 1, 0]
    assert manual("14,5", 2).tolist() == [14, 5, 0]


def test_time_steps_of_a_flow_model_are_refused_with_the_levels_to_paste():
    with pytest.raises(ValueError, match=r"these look like time steps of 1000, .*: write 1, ") as refused:
        manual("1000, 937.5, 833.3, 625", 4, 0.001, 1.0, flow=True)
    pasted = str(refused.value).partition(": write ")[2]
    assert manual(pasted, 4, 0.001, 1.0, flow=True).tolist() == [1, 0.9375, 0.8333, 0.625, 0]
    with pytest.raises(ValueError, match="is for another model"):  # levels of SDXL
        manual("14.6, 5, 1", 3, 0.001, 1.0, flow=True)


def test_time_steps_are_no_levels_of_a_model_that_starts_from_pure_noise_either():
    """Whose highest level is above 1000."""
    with pytest.raises(ValueError, match="these look like time steps of 1000"):
        manual("999, 749, 499, 249", 4, MIN, 4518.0)
    assert manual("4518, 900, 14.6, 0.5", 4, MIN, 4518.0).tolist() == [4518, 900, 14.6, 0.5, 0]


def test_a_first_level_that_is_the_models_rounded_is_the_models():
    """14.615 in the tables of papers."""
    assert manual("14.615, 5, 1", 3).tolist() == [MAX, 5, 1, 0]
    float32 = 0.99999994
    assert manual("1, .5", 2, 0.001, float32, flow=True).tolist() == [float32, 0.5, 0]


def test_a_list_may_be_cut_as_others_are():
    text = "14.6, 5.2, 1.4, 0.01"
    assert manual(text, 4, start_step=1, end_step=3).tolist() == LIST[1:]
    assert manual(text, 2, denoise=0.5).tolist() == [1.4, 0.01, 0]
    assert manual(text, 3, discard_penultimate=True).tolist() == [14.6, 5.2, 1.4, 0]


def test_the_node_reads_the_list_and_says_what_is_wrong(comfyui):
    run, model = comfyui.nodes["FewStepScheduler"].execute, small_model("EPS")
    widgets = {i.id: i for i in comfyui.nodes["FewStepScheduler"].define_schema().inputs}
    assert widgets["sigmas"].multiline and widgets["sigmas"].default == ""
    sigmas = run(model, "manual", 4, 1.0, sigmas="14, 5\n2; 1", distilled="default").result[0]
    assert sigmas.tolist() == [14, 5, 2, 1, 0]
    for text, said in (("on", "sigmas: 'on' is not a number"), ("default", "sigmas: there is none above 0")):
        with pytest.raises(ValueError, match=said):
            run(model, "manual", 4, 1.0, sigmas=text)
