/** The plans in models/fewstep: a window that shows, renames and deletes them, and the list that Load Plan offers. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { element } from "./elements.js";
import { everyNode } from "./graph.js";
import { t, translated } from "./translate.js";
import { find, lookAgain, set } from "./widgets.js";

const NODE = "FewStepLoadPlan";
const BUTTON = "browse";
const columns = () => [t("Name"), t("Model"), t("Guidance"), t("Evaluations"), t("Error before"), t("Error after"), ""];
const EVENT = "fewstep.plans"; // from the server, when plans come or go

let files = null; // the list of entries, once it has changed

/** Listens for plans that come and go. */
export function followPlans() {
  api.addEventListener(EVENT, ({ detail }) => {
    files = detail.files;
    for (const node of everyNode()) if (node.comfyClass === NODE) offer(node);
    document.querySelector("dialog.fewstep-plans")?.refresh();
  });
}

/** Gives a new Load Plan node the list of today, and a button for the window. */
export function addBrowser(node) {
  const button = node.addWidget("button", BUTTON, null, () => browse(node), { serialize: false });
  button.serialize = false;
  button.label = t("browse plans");
  button.tooltip = t("Shows all plans with their model, guidance and errors; renames and deletes them.");
  const text = find(node, "text");
  if (text && !text.label) text.label = t("or paste a plan here"); // in the empty box of Vue nodes
  offer(node);
}

function offer(node) {
  const widget = find(node, "file");
  if (!files || !widget) return;
  widget.options.values = [...files];
  if (LiteGraph.vueNodesMode && node.graph) lookAgain(node);
  node.setDirtyCanvas(true, true);
}

/** Opens the window; a plan that is chosen there goes into the node, if one is given. */
export function browse(node) {
  document.querySelector("dialog.fewstep-plans")?.close();
  const dialog = element("dialog", { className: "fewstep-plans", tabIndex: -1 });
  const message = element("p", { className: "message" });
  message.setAttribute("role", "status");
  const body = element("tbody");
  const filter = element("input", { type: "search", placeholder: t("Search"), ariaLabel: t("Search plans") });
  const close = element("button", { type: "button", textContent: t("Close"), onclick: () => dialog.close() });
  const titles = columns().map((name) => element("th", { textContent: name, scope: "col" }));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...titles)), body);
  dialog.append(
    element("style", { textContent: STYLE }),
    element("header", {}, element("h2", { textContent: t("Calibrated plans") }), filter, close),
    element("div", { className: "list" }, table),
    message,
  );

  const say = (text) => (message.textContent = text);
  const ask = async (route, request) => {
    const answer = await asked(route, request);
    say(translated(answer.error ?? ""));
    if (!answer.error) await dialog.refresh();
    return answer;
  };
  const actions = {
    use: node && ((plan) => (use(node, plan.file), dialog.close())),
    rename: async (plan, name) => {
      const { file } = await ask("/fewstep/plans/rename", { file: plan.file, name });
      if (file && fileOf(node)?.value === plan.file) use(node, file);
    },
    delete: (plan) => ask("/fewstep/plans/delete", { file: plan.file }),
  };

  dialog.refresh = async () => {
    const { plans, error } = await asked("/fewstep/plans");
    if (error) return say(translated(error));
    body.replaceChildren(...plans.map((plan) => row(plan, actions)));
    search();
    if (!dialog.contains(document.activeElement)) dialog.focus(); // the host's keys are not meant
  };
  const search = () => {
    const words = filter.value.toLowerCase();
    for (const line of body.rows) line.hidden = !line.textContent.toLowerCase().includes(words);
  };
  filter.oninput = search;
  dialog.onclose = () => dialog.remove();
  dialog.onclick = ({ target }) => target === dialog && dialog.close(); // beside it
  for (const type of ["keydown", "keyup", "paste", "copy"]) {
    dialog.addEventListener(type, (event) => event.stopPropagation());
  }
  dialog.addEventListener("keydown", (event) => event.key === "Escape" && !event.defaultPrevented && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  return dialog.refresh();
}

/** A plan as a line of the table. */
function row(plan, actions) {
  const name = element("td", { className: "name" }, element("span", { textContent: plan.file }));
  if (plan.unfinished) {
    const title = t("The fit was stopped. Few-Step Auto does not take this plan.");
    name.append(element("small", { textContent: t("not finished"), title }));
  }
  if (plan.built_in) name.append(element("small", { textContent: t("comes with Few-Step") }));
  const line = element("tr", {}, name);
  if (plan.fault) {
    line.append(element("td", { className: "fault", colSpan: columns().length - 1, textContent: translated(plan.fault) }));
    return line;
  }
  const gain = plan.before && plan.after != null ? Math.round(100 * (1 - plan.after / plan.before)) : 0;
  const cells = [
    plan.model ? translated(plan.model) : t("any"),
    plan.guidance == null ? "" : short(plan.guidance),
    String(plan.evaluations),
    plan.before == null ? "" : two(plan.before),
    plan.after == null ? "" : two(plan.after) + (gain > 0 ? ` (${t("{gain} % less", { gain })})` : ""),
  ];
  line.append(...cells.map((textContent, k) => element("td", { textContent, className: k ? "number" : "" })));
  const buttons = element("td", { className: "actions" });
  const add = (text, onclick) => {
    const button = element("button", { type: "button", textContent: text, onclick });
    button.setAttribute("aria-label", `${text} ${plan.file}`);
    buttons.append(button);
  };
  const show = () => {
    buttons.replaceChildren();
    if (actions.use) add(t("Use"), () => actions.use(plan));
    if (plan.built_in) return;
    add(t("Rename"), () => renaming(name, plan, actions.rename));
    add(t("Delete"), () => {
      buttons.replaceChildren(element("span", { textContent: t("Delete the file?") }));
      add(t("Delete"), () => actions.delete(plan));
      add(t("Keep"), show);
    });
  };
  show();
  line.append(buttons);
  return line;
}

/** Puts a box with its name in the place of the name of a plan. */
function renaming(cell, plan, rename) {
  const before = [...cell.childNodes];
  const box = element("input", { value: plan.file.replace(/\.safetensors$/, ""), ariaLabel: t("New name of {file}", { file: plan.file }) });
  const back = () => cell.replaceChildren(...before);
  box.onkeydown = async ({ key, isComposing }) => {
    if (isComposing) return; // Enter ends a Chinese word
    if (key === "Enter") await rename(plan, box.value);
    else if (key !== "Escape") return;
    if (cell.isConnected) back();
  };
  box.addEventListener("keydown", (event) => event.key === "Escape" && event.preventDefault()); // the window stays
  box.onblur = back;
  cell.replaceChildren(box);
  box.select();
}

function fileOf(node) {
  return node && find(node, "file");
}

/** Chooses a plan in a node, as a click on its list does; a text there would be used instead. */
function use(node, file) {
  set(node, "file", file);
  set(node, "text", "");
}

async function asked(route, request) {
  const json = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request) };
  try {
    return await (await api.fetchApi(route, request && json)).json();
  } catch {
    return { error: t("ComfyUI does not answer") };
  }
}

function short(number) {
  return String(+number.toPrecision(3));
}

/** An error with two digits, as the nodes write it: 0.030. */
function two(number) {
  return number >= 1e-4 && number < 10 ? number.toPrecision(2) : short(+number.toPrecision(2));
}

const STYLE = `
.fewstep-plans { width: min(64rem, 94vw); max-height: 84vh; padding: 0; border: 1px solid var(--border-color);
  border-radius: 8px; background: var(--comfy-menu-bg); color: var(--input-text); font: 14px sans-serif; }
.fewstep-plans[open] { display: flex; flex-direction: column; margin: auto; }
.fewstep-plans:focus { outline: none; }
.fewstep-plans::backdrop { background: rgb(0 0 0 / 50%); }
.fewstep-plans header { display: flex; gap: 12px; align-items: center; padding: 14px 18px; }
.fewstep-plans h2 { flex: 1; margin: 0; font-size: 17px; font-weight: 600; }
.fewstep-plans .list { overflow: auto; padding: 0 18px; }
.fewstep-plans table { width: 100%; border-collapse: collapse; }
.fewstep-plans th { position: sticky; top: 0; background: var(--comfy-menu-bg); text-align: left; font-weight: 600; }
.fewstep-plans th, .fewstep-plans td { padding: 8px 10px; border-bottom: 1px solid var(--border-color); }
.fewstep-plans th:nth-child(n+3):nth-child(-n+6), .fewstep-plans .number { text-align: right; white-space: nowrap; }
.fewstep-plans .name span { overflow-wrap: anywhere; }
.fewstep-plans .name input { width: 100%; }
.fewstep-plans small { display: block; color: var(--descrip-text); }
.fewstep-plans .fault { color: var(--error-text); }
.fewstep-plans .actions { text-align: right; white-space: nowrap; }
.fewstep-plans .actions span { margin-right: 8px; }
.fewstep-plans button, .fewstep-plans input { font: inherit; padding: 4px 10px; border-radius: 5px;
  border: 1px solid var(--border-color); background: var(--comfy-input-bg); color: var(--input-text); }
.fewstep-plans button { cursor: pointer; margin-left: 4px; }
.fewstep-plans button:hover, .fewstep-plans button:focus-visible { border-color: var(--input-text); }
.fewstep-plans .message { min-height: 1.2em; margin: 0; padding: 10px 18px 14px; color: var(--error-text); }
.fewstep-plans tr[hidden] { display: none; }
`;
