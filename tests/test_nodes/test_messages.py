"""What the pack says while it works, in other languages: every message has a template, by which it is found again."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
from browser import node
from host import ROOT, SetupError
from in_the_host import module
from messages import messages, of_javascript, of_python, of_workflow
from translations import LOCALES

LANGUAGES = sorted(path.parent.name for path in LOCALES.glob("*/main.json"))
HOLE = re.compile(r"\{\w+\}")


def translations(language: str) -> dict[str, str]:
    return json.loads((LOCALES / language / "main.json").read_text(encoding="utf-8"))["fewstep"]


def in_the_browser(language: str, texts: list[str], words: dict[str, str] | None = None) -> list[str]:
    """The texts as web/messages.js translates them, run by Node.js."""
    try:
        command = [node(), "--input-type=module", "-e", _SCRIPT]
    except SetupError as missing:
        pytest.skip(str(missing))
    source = (ROOT / "web" / "messages.js").read_text(encoding="utf-8")
    given = json.dumps([source, translations(language), words or {}, texts])
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


_SCRIPT = """
import { readFileSync } from "node:fs";
const [source, translations, words, texts] = JSON.parse(readFileSync(0));
const { Messages } = await import("data:text/javascript," + encodeURIComponent(source));
const messages = new Messages(translations, words);
console.log(JSON.stringify(texts.map((text) => messages.translated(text))));
"""


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_message_is_translated(language):
    found = translations(language)
    assert sorted(found) == messages(), "run tools/translations.py, then translate what is empty in main.json"
    assert not [english for english, text in found.items() if not text.strip()]
    for english, text in found.items():
        assert sorted(HOLE.findall(text)) == sorted(HOLE.findall(english)), english


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_message_is_found_by_its_own_template(language):
    filled, wanted = [], []
    for english, text in translations(language).items():
        values = {hole: f"value{i}" for i, hole in enumerate(HOLE.findall(english))}
        filled.append(HOLE.sub(lambda hole, values=values: values[hole[0]], english))
        wanted.append(HOLE.sub(lambda hole, values=values: values[hole[0]], text))
    assert in_the_browser(language, filled) == wanted


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("ComfyUI knows no such text", "ComfyUI knows no such text"),
        ("saved as /models/plan.safetensors", "已保存为 /models/plan.safetensors"),
        # messages within messages, and names of inputs
        ("samples = 0 must be at least 1", "样本数 = 0 必须至少为 1"),
        (
            "samplers - samplers, line 3: there is no sampler 'foo'; did you mean heun or euler?",
            "采样器列表：采样器列表，第 3 行：没有名为 'foo' 的采样器；您是不是想用 heun 或 euler？",
        ),
        ("edm: option rho = 500 must lie between 1 and 100", "edm：选项 rho = 500 必须介于 1 与 100 之间"),
        # quotes hold what would end a value elsewhere
        (
            "filename = 'a b: c' holds ':', which not every system takes in the name of a file: leave it out",
            "“文件名”= 'a b: c' 含有 ':'，并非所有系统都允许文件名中出现它：请去掉",
        ),
        # in the host's own words
        (
            "Custom validation failed for node: filename - filename = 'a*b' holds '*', which not every system takes in "
            "the name of a file: leave it out",
            "Custom validation failed for node: filename："
            "“文件名”= 'a*b' 含有 '*'，并非所有系统都允许文件名中出现它：请去掉",
        ),
        # of others: a template of few letters, here {1} of {2}: {3}, takes no sentence for a value
        ("3 of 12: dpmpp_2m, karras, 8 steps", "第 3 项，共 12 项：dpmpp_2m，karras，8 步"),
        ("an image of a cat: nothing to see here", "an image of a cat: nothing to see here"),
        ("Uploading the image to a server", "Uploading the image to a server"),
        # of work that goes on
        ("Reference images 3/32, about 6 min left", "参考图像 3/32，约剩 6 分钟"),
        ("Sampling, step 7/20, about 45 s left", "采样，步 7/20，约剩 45 秒"),
        # several messages: lines, sentences, parts
        (
            "It was made at guidance 7: set cfg to this. It was not finished.\nnobody knows this line",
            "它是在引导强度 7 下制作的：请把 CFG 设为此值。它没有制作完成。\nnobody knows this line",
        ),
        (
            "ipndm_v, 6 evaluations, sigma 14.6 to 0; for SD15; guidance 7; error 0.03 -> 0.02 (33 % less)",
            "ipndm_v，6 次求值，sigma 14.6 到 0；用于 SD15；引导强度 7；误差 0.03 -> 0.02（减少 33 %）",
        ),
    ],
)
def test_messages_are_put_together_as_they_were(english, chinese):
    words = {"samples": "样本数", "samplers": "采样器列表"}
    assert in_the_browser("zh", [english], words) == [chinese]


def raised(function: Any, *given: Any, **named: Any) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        function(*given, **named)
    return str(caught.value)


def test_what_nodes_answer_is_translated(comfyui):
    """Errors and texts as they come out of the nodes: nothing but names and numbers stays English."""
    nodes = comfyui.nodes
    compare, plan, name = nodes["FewStepCompare"], nodes["FewStepLoadPlan"], nodes["FewStepSavePlan"]
    built_in = plan.define_schema().inputs[0].options[0]
    said = [
        raised(compare.validate_inputs, samplers="unipc order=9"),
        raised(compare.validate_inputs, samplers="eulr"),
        raised(compare.validate_inputs, samplers="fewstep_euler order=2"),
        raised(compare.validate_inputs, schedules="#"),
        raised(compare.validate_inputs, steps="5, x"),
        plan.validate_inputs(file="none.safetensors", text=""),
        name.validate_inputs(filename="a:b"),
        name.validate_inputs(filename="../b"),
        raised(plan.execute, built_in, "[]"),
        raised(plan.execute, built_in, '{"base": "ddim"}'),
        plan.execute(built_in).result[1],
        raised(compare.validate_inputs, schedules="fewstep_karras rho=-1"),
    ]
    assert_chinese(said)


def assert_chinese(said: list[str]) -> None:
    for text, chinese in zip(said, in_the_browser("zh", said), strict=True):
        assert re.search("[\u4e00-\u9fff]", chinese), text
        assert not re.search(r"[a-z]+ [a-z]+ [a-z]+", chinese), f"{text}\n{chinese}"


def test_what_auto_says_of_models_is_translated(comfyui):
    """Of every family, with a run that differs from what is recommended, and of distilled models."""
    auto, families = module(comfyui, "auto"), module(comfyui, "host.families")
    said = []
    for family in families.families():
        facts = {"family": family.classes[0], "prediction": family.prediction or "EPS", "sigma_max": 4518.7}
        levels = module(comfyui, "host.model").LevelRange(0.001, 1.0, True, 17.5)
        said += auto._advice(family, facts["family"], levels, 40.0, "exact seed")
    facts = {"family": "SDXL", "prediction": "EPS", "sigma_max": 14.6, "distilled": "sdxl_lightning"}
    levels = module(comfyui, "host.model").LevelRange(0.03, 14.6, False, 1.0)
    for named in ({}, {"distilled_steps": 1}, {"distilled_steps": 6}):
        choice = auto.choose(levels, facts | named, evaluations=8, variety="exact seed", denoise=1.0)
        said += choice.text.split("\n")
    assert_chinese(said)


# Collecting


COUNTED = {"batch": "batches", "pass": "passes", "trajectory": "trajectories"} | {
    one: f"{one}s"
    for one in ("step", "evaluation", "run", "image", "number", "prediction", "point", "channel", "prompt", "picture")
}
MANY = ("more than {1} steps are", "dpm_adaptive cannot meet", "Measured on the demo model at")  # never of one


def test_one_of_a_thing_is_no_several():
    """Each message with a number of things has a twin for one of them."""
    known = set(messages())
    for one, many in COUNTED.items():
        for text in known:
            for match in re.finditer(rf"\{{(\w+)\}}( linear)? {many}\b", text):
                number = "1" if match[1] == "n" else f"{{{match[1]}}}"  # the browser's own are whole
                twin = f"{text[: match.start()]}{number}{match[2] or ''} {one}{text[match.end() :]}"
                assert twin in known or text.startswith(MANY), text


def test_messages_are_read_from_python():
    source = """
import logging
'''A docstring is not shown.'''
HEADING = "not a message"  # yet it is a text of several words

def f(n: "a note on types"):
    '''Nor is this one.'''
    logging.warning("this goes to the log: %s", n)
    Input("n", tooltip="this is in nodeDefs.json")
    if n < 1:
        raise ValueError(f"n = {n} must be at least {g('what is inside a value')}: "
                         f"raise {'it' if n else 'the number'}")
    return f"{n} step{'s' * (n > 1)} left\\n{n:.2f} done" + (" of all" if n else "") + f"{n}"
"""
    assert of_python(source) == {
        "not a message",
        "what is inside a value",
        "n = {1} must be at least {2}: raise it",
        "n = {1} must be at least {2}: raise the number",
        "{1} step left",
        "{1} steps left",
        "{1} done of all{2}",
        "{1} done{2}",
    }


def test_messages_are_read_from_javascript_and_workflows():
    assert of_javascript('t("auto"); at("no"); t(\n  "{n} \\"steps\\"", { n })') == {"auto", '{n} "steps"'}
    assert of_javascript('counted("1 pass", "{n} passes", n)') == {"1 pass", "{n} passes"}
    assert of_python('counted(n, "run")\nf"it makes {counted(n, \'pass\', \'passes\')}"') == {
        "{1} run", "{1} runs", "it makes {1} pass", "it makes {1} passes"
    }  # fmt: skip
    inner = {"nodes": [{"type": "KSampler", "title": "4. Inner"}]}
    workflow = {
        "nodes": [{"type": "MarkdownNote", "title": "Read me", "widgets_values": ["## Title\n\nA line.\n* `code`"]}],
        "groups": [{"title": "1. Model"}],
        "definitions": {"subgraphs": [inner]},
    }
    assert of_workflow(workflow) == {"## Title", "A line.", "Read me", "Model", "Inner"}
