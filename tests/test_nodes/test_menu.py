"""Where the nodes are found: their places in the menu, and the words of the search box."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from host import GIVEN, ROOT, import_pack
from tables import _read

from samplers import SAMPLERS, SCHEDULES

KNOWN = json.loads((ROOT / "nodes" / "known_names.json").read_text())
NODES = {"samplers": "FewStepSampler", "schedules": "FewStepScheduler"}
REGISTRIES = {"samplers": SAMPLERS, "schedules": SCHEDULES}
ENTRIES = [
    (kind, whose, name) for kind, by_whose in KNOWN.items() for whose, names in by_whose.items() for name in names
]


@pytest.fixture
def menu(comfyui):
    return import_pack().nodes.ui.menu


@pytest.fixture
def nodes(comfyui) -> dict:
    return {node.__name__: node for node in import_pack().nodes.loaded()}


def test_every_node_is_beside_the_hosts_own_and_few_are_in_one_list(comfyui, nodes):
    """In new hosts that is model/sampling. A list of more than a dozen is not read."""
    places = [node.define_schema().category for node in nodes.values()]
    root = f"{comfyui.nodes['KSampler'].CATEGORY}/Few-Step"
    assert {place.partition(root)[0] for place in places} == {""}
    assert {place.removeprefix(root) for place in places} == {
        "", "/guidance", "/plans", "/editing", "/comparing", "/demo",
    }  # fmt: skip
    assert max(places.count(place) for place in places) <= 8


WITH_BRACKETS = ("Demo Model (emoji)", "Few-Step KSampler (Advanced)")


def test_every_node_has_search_words_and_no_title_has_them(menu, nodes):
    for node in nodes.values():
        schema, words = node.define_schema(), menu.words_of(node)
        assert words and all(isinstance(word, str) and word for word in words), node
        assert len(set(words)) == len(words)
        assert "(" not in schema.display_name or schema.display_name in WITH_BRACKETS
        told = getattr(schema, "search_aliases", words)  # by hosts that have it
        assert list(told) == words


@pytest.mark.parametrize(
    ("word", "node"),
    [
        ("lcm", "FewStepSampler"),
        ("lcm", "FewStepScheduler"),
        ("sigma", "FewStepScheduler"),
        ("turbo", "FewStepScheduler"),
        ("grid", "FewStepCompare"),
        ("xy plot", "FewStepCompare"),
        ("inpaint", "FewStepDiffEditMask"),
        ("karras", "FewStepScheduler"),
    ],
)
def test_what_is_searched_for_is_among_the_words(menu, nodes, word, node):
    assert word in menu.words_of(nodes[node])


@pytest.mark.parametrize(("kind", "whose", "name"), ENTRIES)
def test_a_known_name_leads_to_one_of_ours(menu, nodes, kind, whose, name):
    """To a sampler or schedule that has the options; and it is a search word of the node."""
    entry = KNOWN[kind][whose][name]
    entry = entry if isinstance(entry, str) else entry[0]
    id, options = _read(entry, REGISTRIES[kind])
    known = {option.name: option for option in REGISTRIES[kind][id].options}
    for option, value in options.items():
        assert not known[option].choices or value in known[option].choices
    assert name in menu.words_of(nodes[NODES[kind]])


@pytest.mark.skipif(GIVEN is not None, reason="a host to come may have more")
def test_every_name_of_the_host_is_known(comfyui):
    import comfy.samplers

    lists = {"samplers": comfy.samplers.KSampler.SAMPLERS, "schedules": comfy.samplers.KSampler.SCHEDULERS}
    for kind, names in lists.items():
        assert {name for name in names if not name.startswith("fewstep_")} <= set(KNOWN[kind]["ComfyUI"])


def test_every_scheduler_of_diffusers_is_known():
    """Or is for something that is not done here, and the list says for what."""
    listed = json.loads(Path(__file__).with_name("diffusers_schedulers.json").read_text())
    known = {name for name in KNOWN["samplers"]["diffusers"] if name.endswith("Scheduler")}
    assert known | listed["not_here"].keys() == {*listed["schedulers"]}
    assert not known & listed["not_here"].keys() and all(listed["not_here"].values())


@pytest.mark.skipif(GIVEN is not None, reason="a host to come may have more")
def test_every_node_of_the_host_that_gives_a_sampler_or_sigmas_is_known(comfyui):
    """Those that are called so: the others cut or change what they are given."""
    from comfy_extras import nodes_advanced_samplers, nodes_custom_sampler

    general = {"SamplerCustom", "SamplerCustomAdvanced", "SamplerLCMUpscale"}
    for kind, word in (("samplers", "Sampler"), ("schedules", "Scheduler")):
        names = {
            name
            for part in (nodes_advanced_samplers, nodes_custom_sampler)
            for name, cls in vars(part).items()
            if hasattr(cls, "define_schema") and (name.startswith if kind == "samplers" else name.endswith)(word)
        }
        assert names - general <= {*KNOWN[kind]["ComfyUI"]}


def test_the_front_end_gets_the_words(menu, nodes):
    from importlib import import_module

    words = import_module("fewstep.nodes.routes").words()
    assert words == {name: menu.words_of(node) for name, node in nodes.items()}
    assert "gauss-legendre_2s" in words["FewStepSampler"]


def test_the_demo_model_says_which_words_it_does_not_know(comfyui, nodes, monkeypatch):
    """On the node, with words that are alike and some that it knows. The front end takes that away when the node runs
    again; nothing is kept from run to run, since another node of it may have run in between."""
    from importlib import import_module

    demo, said = import_module("fewstep.demo.nodes"), []
    monkeypatch.setattr(demo, "say", said.append)
    nodes["FewStepDemoModel"].execute("a zeppelin and a strawbery", "quux")
    assert "does not know: zeppelin, strawbery, quux." in said[0] and "strawberry" in said[0].split("such as")[1]
    nodes["FewStepDemoModel"].execute("cat face", "")
    nodes["FewStepDemoModel"].execute("dog face", "")
    assert said[1:] == []
