/** The plans in models/fewstep: a window that shows, renames and deletes them, and the list that Load Plan offers. */

import { api } from "../../scripts/api.js";
import { element } from "./elements.js";
import { everyNode } from "./graph.js";
import { short } from "./numbers.js";
import { answerTo } from "./server.js";
import { t, translated } from "./translate.js";
import { find, lookAgain, set } from "./widgets.js";
import { actionsOf, openTable, renaming } from "./window.js";

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
  if (text) text.whenEmpty = t("or paste a plan here"); // in Vue nodes; others have it from the definition
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
  const actions = {
    use: node && ((dialog, plan) => (use(node, plan.file), dialog.close())),
    rename: async (dialog, plan, name) => {
      const file = (await ask(dialog, "/fewstep/plans/rename", { file: plan.file, name }))?.file;
      if (file && fileOf(node)?.value === plan.file) use(node, file);
    },
    remove: (dialog, plan) => ask(dialog, "/fewstep/plans/delete", { file: plan.file }),
  };
  return openTable("fewstep-plans", {
    title: t("Calibrated plans"),
    search: t("Search plans"),
    columns: columns(),
    lines: async (dialog) => (await asked("/fewstep/plans")).plans.map((plan) => row(dialog, plan, actions)),
  });
}

/** Has the server change something; what it refuses is said in the window. */
async function ask(dialog, route, request) {
  try {
    const answer = await asked(route, request);
    dialog.say("");
    await dialog.refresh();
    return answer;
  } catch (error) {
    dialog.say(translated(error.message));
  }
}

/** A plan as a line of the table. */
function row(dialog, plan, { use, rename, remove }) {
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
  const its = plan.built_in
    ? {}
    : {
        rename: () => renaming(name, plan.file.replace(/\.safetensors$/, ""), (to) => rename(dialog, plan, to)),
        remove: () => remove(dialog, plan),
      };
  line.append(actionsOf(plan.file, { use: use && (() => use(dialog, plan)), ...its }, t("Delete the file?")));
  return line;
}

function fileOf(node) {
  return node && find(node, "file");
}

/** Chooses a plan in a node, as a click on its list does; a text there would be used instead. */
function use(node, file) {
  set(node, "file", file);
  set(node, "text", "");
}

/** The answer of the server; throws what it refuses. */
async function asked(route, request) {
  const answer = await answerTo(route, request && JSON.stringify(request)).catch(() => null);
  if (!answer || answer.error) throw new Error(answer?.error ?? t("ComfyUI does not answer"));
  return answer;
}

/** An error with two digits, as the nodes write it: 0.030. */
function two(number) {
  return number >= 1e-4 && number < 10 ? number.toPrecision(2) : short(number, 2);
}
