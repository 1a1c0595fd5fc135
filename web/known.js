/** What is known of models: a node tells its levels and kind when it runs, and they hold for all nodes with that model. */

import { origin } from "./graph.js";

const FAR = 50; // nodes that are followed at most
const KEPT = 50; // models
const PLACE = "fewstep.levels"; // in the browser, since a run whose results are kept tells nothing
const LEVELS_STAY = ["FewStepGuidancePatch", "CFGOverride", "LoraLoader", "LoraLoaderModelOnly"]; // what these patch

const byModel = stored();

/** {levels, model} of the model that a node is connected to, or undefined. */
export function known(node) {
  if (!node) return undefined;
  const { levels, model, levels_of } = node.properties;
  const key = modelOf(node);
  return (key && byModel.get(key)) || (levels && (!levels_of || !key || levels_of === key) ? { levels, model } : undefined);
}

/** What a node has told of its model. */
export function learn(node, levels, model) {
  const key = modelOf(node);
  Object.assign(node.properties, { levels, model, levels_of: key });
  if (!key) return;
  byModel.delete(key);
  byModel.set(key, { levels, model });
  try {
    localStorage.setItem(PLACE, JSON.stringify([...byModel].slice(-KEPT)));
  } catch {
    // of a browser that keeps nothing
  }
}

/** The node that loads the model of a node, {type, inputs}: what is known of a model that has not run. Null without one. */
export function loaderOf(node) {
  const loader = node && chainOf(node).at(-1);
  if (!loader) return null;
  const texts = (loader.widgets ?? []).filter(({ value }) => typeof value === "string");
  return { type: loader.comfyClass, inputs: Object.fromEntries(texts.map(({ name, value }) => [name, value])) };
}

/** A model as text: the nodes that it comes from, with their values. Null where none is connected. */
function modelOf(node) {
  const chain = chainOf(node).filter((at) => !LEVELS_STAY.includes(at.comfyClass));
  return chain.length ? JSON.stringify(chain.map((at) => [at.comfyClass, ...values(at)])) : null;
}

/** The nodes that the model of a node comes through, from the last to the first. */
function chainOf(node) {
  const chain = [];
  let at = origin(origin(node, "guider") ?? node, "model");
  for (let i = 0; at && i < FAR; i++) {
    chain.push(at);
    const input = at.inputs?.find(({ type }) => type === "MODEL");
    at = input && origin(at, input.name);
  }
  return chain;
}

function values(node) {
  return (node.widgets ?? []).filter((widget) => widget.serialize !== false).map((widget) => widget.value);
}

/** What the browser has kept; nothing where that cannot be read. */
function stored() {
  try {
    return new Map(JSON.parse(localStorage.getItem(PLACE)) ?? []);
  } catch {
    return new Map();
  }
}
