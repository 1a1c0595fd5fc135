/** Sets the nodes of the graph that choose a sampler and a schedule to a pair of Few-Step Compare, or adds such nodes. */

import { t } from "./translate.js";
import { choicesOf, find, set } from "./widgets.js";

const BOTH = {
  FewStepKSampler: { sampler: "sampler_name", schedule: "scheduler", own: true },
  FewStepKSamplerAdvanced: { sampler: "sampler_name", schedule: "scheduler", own: true },
  KSampler: { sampler: "sampler_name", schedule: "scheduler" },
  KSamplerAdvanced: { sampler: "sampler_name", schedule: "scheduler" },
};
const SAMPLERS = { FewStepSampler: { input: "sampler", own: true }, KSamplerSelect: { input: "sampler_name" } };
const SCHEDULES = { FewStepScheduler: { input: "schedule", own: true }, BasicScheduler: { input: "scheduler" } };

/**
 * The places of the graph that a pair fits, and a new one: [{title, set}]. A pair is {sampler, schedule, steps}, of which
 * the first two have a `name` as in the lists of KSampler, `ours` (an id of ours, or null), and `options`.
 */
export function placesFor(compare, pair) {
  const nodes = compare.graph._nodes.filter((node) => node !== compare);
  const of = (kinds) => nodes.filter((node) => kinds[node.comfyClass]);
  const places = of(BOTH)
    .filter((node) => takes(node, BOTH[node.comfyClass], pair))
    .map((node) => ({
      title: titled(node),
      nodes: [node],
      set() {
        const { sampler, schedule, own } = BOTH[node.comfyClass];
        choose(node, sampler, pair.sampler, own);
        choose(node, schedule, pair.schedule, own);
        set(node, "steps", pair.steps);
      },
    }));
  const samplers = of(SAMPLERS).filter((node) => fits(node, SAMPLERS[node.comfyClass], pair.sampler));
  const schedules = of(SCHEDULES).filter((node) => fits(node, SCHEDULES[node.comfyClass], pair.schedule));
  for (const sampler of samplers) {
    for (const schedule of together(sampler, schedules)) {
      places.push({
        title: both(titled(sampler), titled(schedule)),
        nodes: [sampler, schedule],
        set: () => setPair(sampler, schedule, pair),
      });
    }
  }
  if (fitsNew(pair)) places.push({ title: t("New nodes"), nodes: [], set: () => addPair(compare, pair) });
  return places;
}

/** Why there is none. */
export function whyNone({ sampler, schedule }) {
  const at = [sampler, schedule].find(({ ours, options }) => !ours && Object.keys(options).length) ?? sampler;
  return t("No node takes {name}: ComfyUI's lists have no options.", { name: at.label });
}

/** Of the schedules those that go to the same node as a sampler; all if there are none. */
function together(sampler, schedules) {
  const takers = (node) => (node.outputs ?? []).flatMap((_, i) => node.getOutputNodes(i) ?? []);
  const its = takers(sampler);
  const same = schedules.filter((schedule) => takers(schedule).some((taker) => its.includes(taker)));
  return same.length ? same : schedules;
}

function takes(node, { sampler, schedule, own }, pair) {
  return fits(node, { input: sampler, own }, pair.sampler) && fits(node, { input: schedule, own }, pair.schedule);
}

/** Whether a widget can be set to what a name stands for: a list of the host has names alone, without options. */
function fits(node, { input, own }, named) {
  const widget = find(node, input);
  const choices = (widget && choicesOf(widget, node)) ?? [];
  return choices.includes(nameIn(own, named)) && (own || !changed(named));
}

/** A name in a list of ours, which has ours alone, or in one of the host, where ours have a prefix. */
function nameIn(own, { name, ours }) {
  if (own) return ours;
  return ours ? `fewstep_${ours}` : name;
}

function changed({ options }) {
  return Object.keys(options).length > 0;
}

function fitsNew({ sampler, schedule }) {
  return [sampler, schedule].every((named) => named.ours || !changed(named));
}

function setPair(sampler, schedule, pair) {
  choose(sampler, SAMPLERS[sampler.comfyClass].input, pair.sampler, SAMPLERS[sampler.comfyClass].own);
  choose(schedule, SCHEDULES[schedule.comfyClass].input, pair.schedule, SCHEDULES[schedule.comfyClass].own);
  set(schedule, "steps", pair.steps);
}

/** Adds two nodes below the one that compares, with its model. */
function addPair(compare, pair) {
  const types = [pair.sampler.ours ? "FewStepSampler" : "KSamplerSelect", pair.schedule.ours ? "FewStepScheduler" : "BasicScheduler"];
  const made = types.map((type, i) => {
    const node = LiteGraph.createNode(type);
    node.pos = [compare.pos[0] + 360 * i, compare.pos[1] + compare.size[1] + 80];
    compare.graph.add(node);
    return node;
  });
  setPair(...made, pair);
  set(made[1], "denoise", find(compare, "denoise").value);
  const link = compare.getInputLink(compare.inputs.findIndex(({ name }) => name === "model"));
  const to = made[1].inputs.findIndex(({ name }) => name === "model");
  if (link) feed(compare.graph, link, made[1], to);
  return made;
}

/** Connects an input to what a link comes from: a node, or an input of the subgraph around it. */
function feed(graph, { origin_id: id, origin_slot: slot }, node, to) {
  const from = graph.getNodeById(id);
  if (from) from.connect(slot, node, to);
  else graph.inputs?.[slot]?.connect(node.inputs[to], node);
}

/** Sets a choice, and the options of it: those that are not given to their defaults. */
function choose(node, input, named, own) {
  const { ours, options } = named;
  set(node, input, nameIn(own, named));
  if (!own) return;
  const defaults = node.fewstepOptions?.find(({ choice }) => choice === input)?.widgets[ours] ?? {};
  for (const widget of node.widgets) {
    if (widget.name in options) set(node, widget.name, asShown(widget, options[widget.name]));
    else if (widget.name in defaults) set(node, widget.name, unset(widget, defaults[widget.name]));
  }
}

/** A default as the widget has it: "default" and -1 where choices differ in it. */
function unset(widget, value) {
  if (widget.options?.values?.includes?.("default")) return "default";
  return typeof value === "number" && widget.options?.min === -1 ? -1 : asShown(widget, value);
}

function asShown(widget, value) {
  return typeof value === "boolean" && widget.options?.values ? (value ? "on" : "off") : value;
}

/** A node by its title and number. */
export function titled(node) {
  return `${node.title} (${node.id})`;
}

/** One or two names in a text. */
export function both(one, other) {
  return other === undefined ? one : t("{one} and {other}", { one, other });
}
