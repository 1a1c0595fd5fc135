/**
 * The boxes of Few-Step Compare that names and numbers are typed into: each with a heading, a list to add names from, and
 * below it what is wrong in it, asked of the server while one types. They are elements, which both designs of nodes show.
 */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { element } from "./elements.js";
import { answerTo } from "./server.js";
import { style } from "./style.js";
import { toast } from "./toast.js";
import { saysOf, t, translated } from "./translate.js";
import { find, isLinked } from "./widgets.js";

const PATIENCE = 250; // ms without a key before the server is asked
const BOXES = { samplers: 4, schedules: 2, steps: 1 }; // of FewStepCompare, with the lines that are seen
const LINE = 17; // px
const OVERLAY = "[data-testid=error-overlay]"; // of new front ends, which say themselves what cannot be queued

let names; // of GET /fewstep/names

/** Has the host make these boxes for the texts of a node. The inputs stay of the type STRING. */
export function boxesIn(definitions) {
  const { required } = definitions.FewStepCompare?.input ?? {};
  for (const name of Object.keys(BOXES)) {
    if (required?.[name]) required[name][1] = { ...required[name][1], widgetType: "FEWSTEP_BOX" };
  }
}

/** A widget of that type, for `getCustomWidgets`. */
export function makeBox(node, name, [, { default: text = "" }]) {
  const lines = BOXES[name] ?? 4;
  const heading = element("span", { className: "fewstep-heading", textContent: name });
  const typed = element(lines > 1 ? "textarea" : "input", { value: text, spellcheck: false, ariaLabel: name });
  if (lines > 1) typed.rows = lines;
  const fault = element("div", { className: "fewstep-fault", role: "alert" });
  const head = element("div", { className: "fewstep-head" }, heading);
  const box = element("div", { className: `fewstep-box ${lines > 1 ? "" : "fewstep-one-line"}` }, head, typed, fault);
  style();

  const least = () => (lines > 1 ? 30 + lines * LINE : 26) + (fault.textContent ? 8 + fault.scrollHeight : 0) + 20;
  const widget = node.addDOMWidget(name, "fewstep_box", box, {
    getValue: () => typed.value,
    setValue(value) {
      typed.value = value;
      look();
    },
    getMinHeight: least,
    getMaxHeight: lines > 1 ? undefined : least,
    selectOn: ["focus"],
  });
  if (lines > 1) head.append(addButton(widget, name, typed));

  typed.addEventListener("input", () => {
    widget.value = typed.value;
    app.graph.change?.();
  });
  for (const key of ["keydown", "copy", "paste", "contextmenu"]) typed.addEventListener(key, (event) => event.stopPropagation());
  box.addEventListener("wheel", (event) => {
    const scrolls = typed.scrollHeight > typed.clientHeight && !event.ctrlKey && document.activeElement === typed;
    if (!scrolls && !LiteGraph.vueNodesMode) app.canvas.processMouseWheel(event);
  });

  let asked;
  function look() {
    clearTimeout(asked);
    asked = setTimeout(async () => {
      const text = typed.value;
      const found = await faultsIn({ [name]: text });
      if (text === typed.value) tell(isLinked(node, widget) ? "" : translated(found[name] ?? ""));
    }, PATIENCE);
  }

  function tell(text) {
    if (fault.textContent === text) return;
    fault.textContent = text;
    box.classList.toggle("fewstep-wrong", Boolean(text));
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    node.setDirtyCanvas(true, true);
  }

  Object.assign(widget, {
    heading,
    fault: () => fault.textContent,
    afterQueued: () => setTimeout(() => tellQueued(node, name), PATIENCE),
  });
  return { widget };
}

/** The headings in the language of the labels. */
export function nameBoxes(node) {
  for (const widget of node.widgets ?? []) {
    if (!widget.heading) continue;
    widget.heading.textContent = widget.label ?? widget.name;
  }
}

const title = () => LiteGraph.registered_node_types.FewStepCompare.title;

/** Has the host's message say it once: for a run that is refused it repeats what each node says. */
export function sayOnce() {
  const { queuePrompt } = api;
  api.queuePrompt = async function (...given) {
    try {
      return await queuePrompt.apply(this, given);
    } catch (error) {
      const nodes = Object.values(error.response?.node_errors ?? {});
      const ours = nodes.length > 0 && nodes.every(({ class_type }) => class_type === "FewStepCompare");
      const said = () => nodes.flatMap(({ errors }) => errors.map(({ details }) => `${title()}: ${details}`));
      if (ours) error.toString = () => said().join("\n");
      throw error;
    }
  };
}

async function faultsIn(texts) {
  const answer = await answerTo("/fewstep/check", JSON.stringify(texts)).catch(() => ({})); // that it is gone the host says
  return answer.faults ?? {};
}

/**
 * Says what is wrong where other outputs were queued: older front ends pass over it then. The host's answer names the
 * node, and the message the box.
 */
function tellQueued(node, name) {
  if (!BOXES[name] || document.querySelector(OVERLAY)) return;
  const errors = app.lastNodeErrors?.[node.id]?.errors ?? [];
  const called = [name, find(node, name)?.label ?? name];
  const error = errors.find(({ details }) => called.some((word) => details?.startsWith(word)));
  if (error) toast("error", node.title, error.details, 15000);
}

// The list to add names from

function addButton(widget, kind, typed) {
  const button = element("button", { type: "button", className: "fewstep-button", textContent: t("+ add") });
  button.title = t("Choose from all names");
  button.addEventListener("click", (event) => {
    event.stopPropagation();
    openList(button, kind, (name) => {
      const text = typed.value.replace(/\s+$/, "");
      widget.value = text ? `${text}\n${name}` : name;
      typed.scrollTop = typed.scrollHeight;
    });
  });
  return button;
}

/** A list with a search field at a button. A choice is added; Escape or a click beside it closes it. */
async function openList(button, kind, add) {
  const answer = names ?? (await answerTo("/fewstep/names").catch(() => null));
  if (!answer?.[kind]) return toast("error", title(), translated(answer?.error) ?? t("ComfyUI does not answer"));
  names = answer;
  document.querySelector(".fewstep-list")?.close(); // now: a second click may have opened one meanwhile
  const field = element("input", { type: "search", placeholder: t("Search"), ariaLabel: t("Search names") });
  const results = element("div", { className: "fewstep-results", role: "listbox" });
  const about = element("div", { className: "fewstep-about", textContent: t("Point at a name to read about it.") });
  const list = element("div", { className: "fewstep-list" }, field, results, about);
  const known = names[kind].map((entry) => ({ ...entry, words: Object.values(entry).flat().join(" ").toLowerCase() }));

  function fill() {
    const words = field.value.toLowerCase().split(/\s+/);
    const found = known.filter((entry) => words.every((word) => entry.words.includes(word)));
    const groups = [["Few-Step", found.filter(({ label }) => label)], ["ComfyUI", found.filter(({ label }) => !label)]];
    results.replaceChildren(
      ...groups.flatMap(([title, entries]) =>
        entries.length ? [element("div", { className: "fewstep-group", textContent: title }), ...entries.map(row)] : [],
      ),
    );
    if (!found.length) results.append(element("div", { className: "fewstep-group", textContent: t("No such name") }));
  }

  function row({ name, label, help, options = [] }) {
    const item = element("button", { type: "button", role: "option", className: "fewstep-row" });
    item.append(element("span", { textContent: name }));
    if (label) item.append(element("small", { textContent: label }));
    const tell = () => {
      const written = options.length ? t("Options: {options}", { options: options.join(", ") }) : "";
      const said = help ? saysOf(kind, name.replace("fewstep_", "")) ?? help : t("One of ComfyUI's own.");
      about.replaceChildren(...[said, written].map((textContent) => element("div", { textContent })));
    };
    item.addEventListener("pointerenter", tell);
    item.addEventListener("focus", tell);
    item.addEventListener("click", () => {
      add(name);
      item.classList.add("fewstep-added");
    });
    return item;
  }

  field.addEventListener("input", fill);
  list.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Escape") list.close();
    if (event.key === "Enter" && event.target === field) results.querySelector("button")?.click();
  });
  const beside = (event) => list.contains(event.target) || list.close();
  list.close = () => {
    list.remove();
    removeEventListener("pointerdown", beside, true);
  };
  addEventListener("pointerdown", beside, true);
  document.body.append(list);
  fill();
  const place = button.getBoundingClientRect();
  list.style.left = `${Math.max(8, Math.min(place.left, innerWidth - list.offsetWidth - 8))}px`;
  list.style.top = `${Math.max(8, Math.min(place.bottom + 4, innerHeight - list.offsetHeight - 8))}px`;
  field.focus();
}
