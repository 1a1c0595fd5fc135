/**
 * Tooltips that fit the choice. The texts of our nodes tell of every choice and of every sampler that has an option, in a
 * line each, for hosts without this script and for help pages; a widget shows the lines of what is chosen.
 */

import { t } from "./translate.js";
import { find } from "./widgets.js";

const OWNERS = /\s*[(（]([\w, ，、]+)[)）]$/; // at the end of a line: the samplers that it is about
const CHOICES = /^([\w, 、]+)[:：]\s*/; // at its beginning: the choices
const DEFAULTS = /^(default|-1)\b/; // the defaults of all samplers, of which the widget shows its own

/**
 * @param text the whole tooltip
 * @param value that is chosen in the widget, and `values` that can be
 * @param owner the choice of the node that decides which options there are, and all `owners`
 */
function fittingTooltip(text, { value, values = [], owner, owners = [] }) {
  const lines = text.split("\n").flatMap((line) => {
    if (owners.length && DEFAULTS.test(line)) return [];
    const choices = named(line.match(CHOICES), values);
    if (choices) return choices.includes(value) ? [line] : [];
    const samplers = named(line.match(OWNERS), owners);
    if (samplers) return samplers.includes(owner) ? [line.replace(OWNERS, "")] : [];
    return [line];
  });
  return lines.length ? lines.join("\n") : text;
}

/** The names that a pattern has found, where all of them are known. */
function named(match, known) {
  const names = match?.[1].split(/[,，、]\s*/);
  return names?.every((name) => known.includes(name)) ? names : null;
}

const WALL = 400; // characters of a text that is cut where it cannot follow the choice
const whole = {}; // the texts as they were, by node and input

/** Cuts the lines of all choices out of the definitions: the tooltips of slots are taken from there. */
export function cutTooltips(definitions) {
  for (const [type, { input }] of Object.entries(definitions)) {
    if (!type.startsWith("FewStep")) continue;
    whole[type] = {};
    for (const [name, [kind, settings]] of Object.entries({ ...input?.required, ...input?.optional })) {
      if (!settings?.tooltip?.includes("\n")) continue;
      const [text, values] = [settings.tooltip, settings.options ?? (Array.isArray(kind) ? kind : [])];
      whole[type][name] = { text, values };
      const head = text.split("\n").filter((line) => !named(line.match(CHOICES), values));
      if (text.length > WALL && values.length) settings.tooltip = [...head, t("The description of what is chosen is shown when the cursor rests on its value.")].join("\n");
    }
  }
}

/** Has the widgets of a node show the lines that fit. `own` is what the server says of the node's choices, if anything. */
export function fitTooltips(node, own) {
  for (const [name, { text, values }] of Object.entries(whole[node.comfyClass] ?? {})) {
    const widget = find(node, name);
    if (!widget) continue;
    const group = own?.find(({ widgets }) => Object.values(widgets).some((names) => name in names));
    const owners = group ? Object.keys(group.widgets) : [];
    widget.shownTooltips = new Set();
    Object.defineProperty(widget, "tooltip", {
      configurable: true,
      enumerable: true,
      get() {
        const shown = fittingTooltip(text, { value: widget.value, values, owner: group && find(node, group.choice).value, owners });
        widget.shownTooltips.add(shown);
        return shown;
      },
      set() {}, // by the front end, of the whole text
    });
  }
}
