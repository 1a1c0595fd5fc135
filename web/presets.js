/**
 * Presets: values of a node's widgets under a name, saved and picked by the user. The host keeps them as a file of the user's,
 * so that they outlive a browser. Whole nodes and groups are what the host's own templates and blueprints are for.
 */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { element } from "./elements.js";
import { toast } from "./toast.js";
import { t } from "./translate.js";
import { choicesOf, isLinked, set } from "./widgets.js";
import { actionsOf, openTable, openWindow, renaming } from "./window.js";

const FILE = "fewstep.presets.json"; // in the user's folder of the host
const PER_IMAGE = ["seed", "noise_seed", "control_after_generate"]; // what a preset has only if the user wants it
const LONGEST = 80; // letters of a name
const SHOWN = 40; // letters of a value

let presets = []; // [{type, name, values: {widget: value}}], as they were read last

/** Whether presets can be made of a node: it is ours, and has values. */
export function takesPresets(node) {
  return Boolean(node?.comfyClass?.startsWith("FewStep")) && valued(node).length > 0;
}

/** What the context menu of a node offers. */
export function presetItems(node) {
  if (!takesPresets(node)) return [];
  read().catch(() => {}); // for the next time
  const own = presetsOf(node.comfyClass);
  const options = own.map((preset) => ({ content: inMenu(preset.name), callback: () => apply(node, preset) }));
  if (own.length) options.push(null);
  options.push({ content: t("Save as preset..."), callback: () => save(node) });
  options.push({ content: t("Manage presets..."), callback: () => managePresets(node) });
  return [null, { content: t("Presets"), has_submenu: true, submenu: { options } }];
}

/** Reads the presets for the menus to come. */
export function readPresets() {
  read().catch((error) => console.warn(`Few-Step: ${error.message}`));
}

/** The node that is selected, if presets can be made of it. */
export function selectedNode() {
  return [...(app.canvas.selectedItems ?? [])].find(takesPresets);
}

/** Opens the window of the presets of a node, or of all. */
export function managePresets(node) {
  const title = node ? t("Presets of {node}", { node: nameOf(node.comfyClass) }) : t("Presets");
  const add = element("button", { type: "button", textContent: t("Save as preset..."), onclick: () => save(node) });
  return openTable("fewstep-presets", {
    title,
    search: t("Search presets"),
    columns: [t("Name"), ...(node ? [] : [t("Node")]), t("Values"), ""],
    tools: node ? [add] : [],
    lines: async (dialog) => {
      await read();
      const shown = node ? presetsOf(node.comfyClass) : presets;
      dialog.say(shown.length ? "" : t("There are none yet. Right-click a node of Few-Step, and choose Presets."));
      return shown.map((preset) => row(dialog, preset, node));
    },
  });
}

function row(dialog, preset, node) {
  const { type, name, values } = preset;
  const cell = element("td", { className: "name", textContent: name });
  const text = Object.entries(values).map(([input, value]) => `${input} ${short(value)}`).join(", "); // prettier-ignore
  const line = element("tr", {}, cell);
  if (!node) line.append(element("td", { textContent: nameOf(type) }));
  line.append(element("td", { className: "values", textContent: text }));
  const edit = async (change) => {
    try {
      await store(change);
    } catch (error) {
      return dialog.say(error.message);
    }
    await dialog.refresh();
  };
  const rename = (to) =>
    edit((all) => {
      const wanted = to.trim();
      const taken = wanted !== name && all.some((one) => is(one, type, wanted));
      const fault = faultOf(to) ?? (taken ? t("There is a preset of this name already") : null);
      if (fault) throw new Error(fault);
      return all.map((one) => (is(one, type, name) ? { ...one, name: wanted } : one));
    });
  const actions = {
    use: node && (() => (dialog.close(), apply(node, preset))),
    rename: () => renaming(cell, name, rename),
    remove: () => edit((all) => all.filter((one) => !is(one, type, name))),
  };
  line.append(actionsOf(name, actions, t("Delete the preset?")));
  return line;
}

/** Asks for a name, and for which of the values of a node are meant: "6 steps" may be no more than that. */
function save(node) {
  const name = element("input", { maxLength: LONGEST, placeholder: t("Name, such as 6 steps or portrait"), ariaLabel: t("Name") });
  const boxes = valued(node).map((widget) => {
    const box = element("input", { type: "checkbox", checked: !PER_IMAGE.includes(widget.name) });
    const label = element("label", {}, box, element("span", { textContent: labelOf(widget) }), element("span", { textContent: shownValue(widget) }));
    return { widget, box, label };
  });
  const button = element("button", { textContent: t("Save") });
  const form = element(
    "form",
    {},
    element("div", { className: "row" }, name, button),
    element("p", { textContent: t("Values that the preset sets:") }),
    element("fieldset", {}, ...boxes.map(({ label }) => label)),
  );
  const dialog = openWindow("fewstep-preset", t("Save as preset"), [], form);
  name.oninput = () => (dialog.say(""), (button.textContent = t("Save")));
  form.onsubmit = async (event) => {
    event.preventDefault();
    const own = { type: node.comfyClass, name: name.value.trim() };
    const values = Object.fromEntries(boxes.filter(({ box }) => box.checked).map(({ widget }) => [widget.name, widget.value]));
    const fault = faultOf(name.value) ?? (Object.keys(values).length ? null : t("Choose at least one value"));
    if (fault) return dialog.say(fault);
    try {
      const taken = (await read()).some((one) => is(one, own.type, own.name));
      if (taken && button.textContent !== t("Replace")) {
        button.textContent = t("Replace");
        return dialog.say(t("There is a preset of this name already. Replace it?"));
      }
      await store((all) => [...all.filter((one) => !is(one, own.type, own.name)), { ...own, values }]);
    } catch (error) {
      return dialog.say(error.message);
    }
    dialog.close();
    tell("success", t("Saved as preset {name}", { name: own.name }));
  };
  name.focus();
}

/** Sets the widgets of a node to a preset, in one step of the history. What cannot be set is left as it is, and said. */
function apply(node, { name, values }) {
  const left = Object.keys(values).filter((input) => !node.widgets.some((widget) => widget.name === input));
  const faults = left.map((input) => t("{input}: the node has no such value any more", { input }));
  app.canvas.emitBeforeChange?.();
  try {
    for (const widget of [...node.widgets]) { // in the order of the node: choices before their options
      if (!Object.hasOwn(values, widget.name)) continue;
      const fault = whyNot(node, widget, values[widget.name]);
      if (fault) faults.push(fault);
      else set(node, widget.name, values[widget.name]);
    }
  } finally {
    app.canvas.emitAfterChange?.();
  }
  if (faults.length) tell("warn", `${t("Preset {name} was set, except for:", { name })}\n${faults.join("\n")}`);
}

/** Why a widget is not set to a value; null if nothing is against it. */
function whyNot(node, widget, value) {
  const input = labelOf(widget);
  if (isLinked(node, widget)) return t("{input} is set by a link", { input });
  const { min = -Infinity, max = Infinity } = widget.options ?? {};
  const choices = choicesOf(widget, node);
  const fits = Array.isArray(choices)
    ? choices.includes(value)
    : typeof value === typeof widget.value && (typeof value !== "number" || (value >= min && value <= max));
  return fits ? null : t("{input}: {value} is no choice any more", { input, value: short(value) });
}

/** The widgets whose values a preset may have: those that are seen, and not given by a link. */
function valued(node) {
  const saved = (widget) => widget.serialize !== false && widget.options?.serialize !== false && widget.type !== "button";
  return (node.widgets ?? []).filter((w) => saved(w) && !w.hidden && !w.options?.hidden && !isLinked(node, w));
}

function presetsOf(type) {
  return presets.filter((preset) => preset.type === type);
}

function is(preset, type, name) {
  return preset.type === type && preset.name === name;
}

function faultOf(name) {
  return name.trim() ? null : t("Give it a name");
}

// The file

/** All presets as they are in the file; none if there is no file. */
async function read() {
  const answer = await api.getUserData(FILE).catch(() => null);
  if (!answer || (!answer.ok && answer.status !== 404)) throw new Error(t("ComfyUI does not answer"));
  presets = answer.ok ? checked(await answer.text()) : [];
  return presets;
}

function checked(text) {
  let found;
  try {
    found = JSON.parse(text).presets;
  } catch {
    found = null;
  }
  const whole = ({ type, name, values }) => typeof type === "string" && typeof name === "string" && values && typeof values === "object";
  if (Array.isArray(found) && found.every((one) => one && whole(one))) return found;
  throw new Error(t("The file {file} of your presets is damaged. Repair or remove it; nothing is saved until then.", { file: FILE }));
}

let last = Promise.resolve();

/** Changes the presets as they are in the file now, one change after another: another window may have changed them. */
function store(change) {
  const write = async () => {
    const changed = change(await read());
    const answer = await api.storeUserData(FILE, { presets: changed }, { overwrite: true, stringify: true, throwOnError: false });
    if (!answer.ok) throw new Error(t("ComfyUI could not save it"));
    presets = changed;
  };
  last = last.catch(() => {}).then(write);
  return last;
}

// Texts

function tell(severity, detail) {
  toast(severity, t("Presets"), detail);
}

function nameOf(type) {
  return LiteGraph.registered_node_types[type]?.title ?? type;
}

function labelOf(widget) {
  return widget.label ?? widget.name;
}

function shownValue(widget) {
  return short(widget.said?.() ?? widget.value);
}

function short(value) {
  const text = String(value).replace(/\s+/g, " ");
  return text.length > SHOWN ? `${text.slice(0, SHOWN)}...` : text;
}

/** A name for the menu, which is HTML in some front ends and text in others: signs that mean something there are wider. */
function inMenu(name) {
  return name.replace(/[<>&]/g, (sign) => String.fromCharCode(sign.charCodeAt(0) + 0xfee0));
}
