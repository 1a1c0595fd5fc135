/** A node that chooses a sampler or schedule offers the options of all: shows those of the choice, and their defaults. */

import { app } from "../../scripts/app.js";
import { short } from "./numbers.js";
import { t } from "./translate.js";

const UNSET = [-1, "default"]; // what stands in a widget that leaves its option at the default of the choice
const PLACES = 8; // of a number that is kept as typed
const [DIGITS, HIDDEN] = [4, 1e-3]; // shown on a node, where its places would leave out more than that share of a number

/**
 * Hides the widgets that the choices do not have. Their values stay, and are saved with the others, in order.
 *
 * The node becomes as much lower or higher as they need, and keeps what it was made higher by hand; one that has just been
 * loaded keeps its height.
 *
 * @param own for each widget that chooses its name, and by choice the widgets that belong to it, with their defaults;
 *   `needs` names the option without which another one does nothing
 */
export function fitWidgets(node, own, { saved = false } = {}) {
  const more = Math.max(0, node.size[1] - node.computeSize()[1]);
  for (const { choice, widgets, needs = {} } of own) {
    const known = namesOf(widgets);
    const chosen = widgets[find(node, choice)?.value];
    if (!chosen) continue; // a choice of another version, or none here
    const idle = ({ name }) => needs[name] !== undefined && find(node, needs[name]).value === chosen[needs[name]];
    for (const widget of node.widgets) {
      if (known.has(widget.name)) show(widget, (widget.name in chosen && !idle(widget)) || isLinked(node, widget));
    }
  }
  const least = node.computeSize()[1];
  node.setSize([node.size[0], saved ? Math.max(least, node.size[1]) : least + more]);
  node.setDirtyCanvas(true, true);
  if (LiteGraph.vueNodesMode && node.graph) lookAgain(node);
}

/** Refuses numbers that the choice does not take: one beyond a bound becomes the bound, or the default below the lowest. */
export function keepBounds(node, own, widget) {
  const { choice, bounds = {} } = own.find(({ widgets }) => namesOf(widgets).has(widget.name)) ?? {};
  const [low, high] = (choice && bounds[find(node, choice).value]?.[widget.name]) ?? [];
  const { value } = widget;
  if (low !== undefined && !UNSET.includes(value)) {
    const least = widget.options.min < low && widget.lastKept >= low ? UNSET[0] : low; // on the way down
    if (value < low) widget.value = least;
    if (value > high) widget.value = high;
    if (widget.value !== value && LiteGraph.vueNodesMode && node.graph) lookAgain(node);
  }
  widget.lastKept = widget.value;
}

function namesOf(widgets) {
  return new Set(Object.values(widgets).flatMap(Object.keys));
}

function show(widget, visible) {
  widget.hidden = !visible;
  widget.options.hidden = !visible; // for Vue nodes
  if (visible) delete widget.computeSize;
  else widget.computeSize = () => [0, -4]; // takes no room: the canvas adds 4
}

/** Vue nodes draw a copy of the widgets, which is made when a node is added: announces it to the graph once more. */
export function lookAgain(node) {
  const callbacks = node.widgets.map(({ callback }) => callback);
  node.graph.onNodeAdded?.(node);
  node.widgets.forEach((widget, i) => (widget.callback = callbacks[i])); // each time they are wrapped anew
}

/** Whether a link feeds a widget. */
export function isLinked(node, { name }) {
  const slot = node.inputs?.findIndex((input) => input.widget?.name === name) ?? -1;
  return Boolean(node.graph) && slot >= 0 && node.isInputConnected(slot);
}

/**
 * Shows what a value means that stands for another: "default: midpoint" in the place of "default" or -1, and the words of
 * `words`, such as "auto" for 0.
 */
export function showDefaults(node, own) {
  for (const { choice, widgets, words = {} } of own) {
    const known = namesOf(widgets);
    for (const widget of node.widgets) {
      if (!known.has(widget.name) && !(widget.name in words)) continue;
      say(widget, () => {
        const word = words[widget.name]?.[widget.value];
        if (word !== undefined) return t(word);
        const value = widgets[find(node, choice)?.value]?.[widget.name];
        return UNSET.includes(widget.value) && value != null ? t("default: {value}", { value: written(value) }) : null;
      });
    }
  }
}

/**
 * Keeps numbers as they are typed, and shows them in full: with `round: false` the front ends round to the places of the
 * step all the same, 0.00003 to 0; Vue nodes of 1.32.9 show and take three places, whatever the step.
 */
export function keepDigits(node) {
  const { required, optional } = node.constructor.nodeData.input;
  const given = { ...required, ...optional };
  for (const widget of node.widgets ?? []) {
    const { options, callback } = widget;
    if (given[widget.name]?.[1]?.round !== false) continue;
    options.round = 0;
    options.maxFractionDigits = PLACES;
    widget.callback = function (...args) {
      callback?.apply(this, args);
      const bounded = Math.min(Math.max(Number(this.value), options.min), options.max);
      this.value = Number(bounded.toFixed(PLACES)); // 0.1 + 0.2
    };
    say(widget, () => {
      const value = Number(widget.value); // a saved workflow may have a text there
      const hidden = Math.abs(value - Number(value.toFixed(options.precision)));
      return hidden > HIDDEN * Math.abs(value) ? short(value, DIGITS) : null;
    });
  }
}

/** Shows beside the name of each choice what else it is called and its family, in the list and on the node. The value stays the name. */
export function showFamilies(node, own) {
  for (const { choice, families, also } of own) {
    const widget = families && find(node, choice);
    if (!widget) continue;
    const named = (value) => (also[value] ? `${value} (${also[value].join(", ")})` : value);
    widget.options.getOptionLabel = (value) => (families[value] ? `${named(value)} · ${t(families[value])}` : (value ?? ""));
  }
}

/**
 * Shows a text in the place of a value wherever `text` gives one, and not null; what was said before comes first.
 * `widget.said` gives it to Vue nodes, which do not ask for it.
 */
function say(widget, text) {
  const { said } = widget;
  const plain = accessor(widget, "_displayValue");
  widget.said = () => said?.() ?? text();
  if (plain) Object.defineProperty(widget, "_displayValue", { get: () => widget.said() ?? plain.call(widget), configurable: true });
}

function accessor(object, name) {
  for (let at = object; at; at = Object.getPrototypeOf(at)) {
    const found = Object.getOwnPropertyDescriptor(at, name);
    if (found) return found.get;
  }
}

function written(value) {
  if (typeof value === "boolean") return value ? t("on") : t("off");
  return typeof value === "number" ? String(+value.toFixed(4)) : value;
}

export function find(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** What a widget offers to choose from; undefined of one that is no choice. */
export function choicesOf(widget, node) {
  const values = widget.options?.values;
  return typeof values === "function" ? values(widget, node) : values;
}

/** Sets a widget as a user does; nothing where it has the value, or is not there. */
export function set(node, name, value) {
  const widget = find(node, name);
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  node.setDirtyCanvas(true, true);
}
