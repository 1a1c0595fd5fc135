/**
 * The texts of locales/ in the language of the user. Names of nodes are translated by ComfyUI itself, but its front end
 * 1.32.9 forgets those of packs as soon as it loads its own for a language other than English. Messages, which Python
 * sends in English, and notes in workflows are translated here alone.
 */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Messages } from "./messages.js";

let texts = {}; // of our nodes, by type
let messages = new Messages();

/**
 * A text of the browser in the language of the user. tools/messages.py finds the English in the calls, so that it has to
 * stand there, in double quotes: with {placeholders} for the values, which are given by name.
 */
export const t = (english, values) => messages.t(english, values);

/** A number of things: counted("1 step", "{n} steps", n), with other values as for `t`. */
export const counted = (one, many, n, values) => t(n === 1 ? one : many, { n, ...values });

/** A text that came from Python in English, or a note, as far as its lines are known. */
export const translated = (text) => messages.translated(text);

/** Puts names, descriptions and tooltips into the definitions of our nodes. */
export async function translateDefinitions(definitions) {
  const all = await (await api.fetchApi("/i18n")).json();
  const own = all[app.extensionManager.setting.get("Comfy.Locale")];
  texts = Object.fromEntries(Object.entries(own?.nodeDefs ?? {}).filter(([type]) => type.startsWith("FewStep")));
  messages = new Messages(own?.fewstep, names());
  for (const [type, definition] of Object.entries(definitions)) {
    const own = texts[type];
    if (!own) continue;
    definition.display_name = own.display_name ?? definition.display_name;
    definition.description = own.description ?? definition.description;
    for (const specs of [definition.input.required ?? {}, definition.input.optional ?? {}]) {
      for (const [name, [, settings]] of Object.entries(specs)) {
        if (settings && own.inputs?.[name]?.tooltip) settings.tooltip = own.inputs[name].tooltip;
        if (settings?.placeholder) settings.placeholder = translated(settings.placeholder);
      }
    }
    definition.output_tooltips = definition.output_tooltips?.map((tip, i) => own.outputs?.[i]?.tooltip ?? tip);
  }
}

const LISTS = { samplers: ["FewStepSampler", "sampler"], schedules: ["FewStepScheduler", "schedule"] };

/** What the tooltip of our lists says of one of our `samplers` or `schedules`; undefined where it is in English only. */
export function saysOf(kind, name) {
  const [type, input] = LISTS[kind];
  const lines = texts[type]?.inputs?.[input]?.tooltip?.split("\n") ?? [];
  return lines.find((line) => line.startsWith(`${name}：`))?.slice(name.length + 1);
}

/** Puts the names of widgets, inputs and outputs into a new node. */
export function translateNode(node) {
  const own = texts[node.comfyClass];
  if (!own) return;
  for (const widget of node.widgets ?? []) widget.label = own.inputs?.[widget.name]?.name ?? widget.label;
  for (const input of node.inputs ?? []) input.localized_name = own.inputs?.[input.name]?.name ?? input.localized_name;
  node.outputs?.forEach((output, i) => (output.localized_name = own.outputs?.[i]?.name ?? output.localized_name));
}

/** What a message may call an input, and what the node calls it. */
function names() {
  const inputs = Object.values(texts).flatMap((own) => Object.entries(own.inputs ?? {}));
  return Object.fromEntries(inputs.map(([name, own]) => [name, own.name ?? name]));
}

const SPOKEN = { progress_text: "text", execution_error: "exception_message" }; // events with a message, and its field

/** Translates what Python says before the host shows it: on nodes while they work, and in errors. */
export function translateMessages() {
  const { dispatchCustomEvent, queuePrompt } = api;
  api.dispatchCustomEvent = function (event, detail) {
    const field = SPOKEN[event];
    const said = detail?.[field] === undefined ? detail : { ...detail, [field]: translated(detail[field]) };
    return dispatchCustomEvent.call(this, event, said);
  };
  api.queuePrompt = async function (...given) {
    try {
      return await queuePrompt.apply(this, given);
    } catch (error) {
      const { node_errors = {}, error: whole } = error.response ?? {};
      const ours = Object.values(node_errors).filter((node) => node.class_type in texts);
      for (const fault of ours.flatMap(({ errors }) => errors)) fault.details = translated(fault.details);
      if (ours.length && whole?.details) whole.details = translated(whole.details);
      throw error;
    }
  };
}

/** Translates the notes and titles of a workflow that is one of ours: it has a note that is known. */
export function translateWorkflow(workflow) {
  const graphs = [workflow, ...(workflow.definitions?.subgraphs ?? [])];
  const nodes = graphs.flatMap((graph) => graph.nodes ?? []);
  const notes = nodes.filter(({ type, widgets_values }) => /Note$/.test(type) && Array.isArray(widgets_values));
  const known = notes.filter((note) => translated(note.widgets_values[0]) !== note.widgets_values[0]);
  if (!known.length) return;
  for (const note of known) note.widgets_values = note.widgets_values.map(translated);
  for (const part of [...nodes, ...graphs.flatMap((graph) => graph.groups ?? [])]) {
    part.title = part.title?.replace(/^(\d+\. )?(.*)$/s, (_, number = "", title) => number + translated(title));
    if (part.title === undefined) delete part.title;
  }
}
