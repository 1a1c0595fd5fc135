/** A node that chooses a sampler or schedule offers the options of all: shows those of the choice, and their defaults. */

import { t } from "./translate.js";

const UNSET = [-1, "default"]; // what stands in a widget that leaves its option at the default of the choice

/** Hides the widgets that the choice does not have. Their values stay, and are saved with the others, in order. */
export function fitWidgets(node, { choice, widgets }) {
  const known = new Set(Object.values(widgets).flatMap(Object.keys));
  const chosen = widgets[find(node, choice).value];
  if (!chosen) return; // a choice of another version, or a widget that is fed by a link
  for (const widget of node.widgets) {
    if (known.has(widget.name)) show(widget, widget.name in chosen || isLinked(node, widget));
  }
  node.setSize([node.size[0], node.computeSize()[1]]);
  node.setDirtyCanvas(true, true);
  if (LiteGraph.vueNodesMode && node.graph) lookAgain(node);
}

function show(widget, visible) {
  widget.hidden = !visible;
  widget.options.hidden = !visible; // for Vue nodes
  if (visible) delete widget.computeSize;
  else widget.computeSize = () => [0, -4]; // takes no room: the canvas adds 4
}

/** Vue nodes draw a copy of the widgets, which is made when a node is added: announces it to the graph once more. */
function lookAgain(node) {
  const callbacks = node.widgets.map(({ callback }) => callback);
  node.graph.onNodeAdded?.(node);
  node.widgets.forEach((widget, i) => (widget.callback = callbacks[i])); // each time they are wrapped anew
}

function isLinked(node, widget) {
  const slot = node.inputs.findIndex((input) => input.widget?.name === widget.name);
  return Boolean(node.graph) && slot >= 0 && node.isInputConnected(slot);
}

/** Shows what "default" means for the choice, "default: midpoint" in the place of "default" or -1, and "auto" for 0. */
export function showDefaults(node, { choice, widgets, automatic = [] }) {
  for (const widget of node.widgets) {
    const plain = accessor(widget, "_displayValue");
    if (!plain || widget.name === choice) continue;
    Object.defineProperty(widget, "_displayValue", {
      get() {
        if (automatic.includes(widget.name) && this.value === 0) return t("auto");
        const value = widgets[find(node, choice).value]?.[widget.name];
        return UNSET.includes(this.value) && value != null ? t("default: {value}", { value: written(value) }) : plain.call(this);
      },
    });
  }
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

function find(node, name) {
  return node.widgets.find((widget) => widget.name === name);
}
