/** Windows over the page, with a table that can be searched or a form. One is open at a time. */

import { element } from "./elements.js";
import { QUIET } from "./style.js";
import { t, translated } from "./translate.js";

/** Opens a window; `tools` stand beside its title. It has `say`, for a line at its bottom, and ends by Escape or a click beside it. */
export function openWindow(kind, title, tools, ...content) {
  document.querySelector("dialog.fewstep-window")?.close();
  const dialog = element("dialog", { className: `fewstep-window ${kind}`, tabIndex: -1 });
  const message = element("p", { className: "message" });
  message.setAttribute("role", "status");
  const close = element("button", { type: "button", textContent: t("Close"), onclick: () => dialog.close() });
  dialog.append(
    element("style", { textContent: STYLE }),
    element("header", {}, element("h2", { textContent: title }), ...tools, close),
    ...content,
    message,
  );
  dialog.say = (text) => (message.textContent = text);
  dialog.onclose = () => dialog.remove();
  dialog.onpointerdown = ({ target }) => target === dialog && dialog.close(); // beside it
  for (const type of ["keydown", "keyup", "paste", "copy"]) {
    dialog.addEventListener(type, (event) => event.stopPropagation()); // the host's keys are not meant
  }
  dialog.addEventListener("keydown", (event) => event.key === "Escape" && !event.defaultPrevented && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Opens a window with a table. `lines` gives its rows, and throws what is to be said in their place; `refresh` of the window
 * asks it anew.
 */
export async function openTable(kind, { title, search, columns, tools = [], lines }) {
  const body = element("tbody");
  const filter = element("input", { type: "search", placeholder: t("Search"), ariaLabel: search });
  const titles = columns.map((name) => element("th", { textContent: name, scope: "col" }));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...titles)), body);
  const dialog = openWindow(kind, title, [filter, ...tools], element("div", { className: "list" }, table));
  const find = () => {
    const words = filter.value.toLowerCase();
    for (const line of body.rows) line.hidden = !line.textContent.toLowerCase().includes(words);
  };
  filter.oninput = find;
  let asked = 0;
  dialog.refresh = async () => {
    const number = ++asked;
    try {
      const rows = await lines(dialog);
      if (number !== asked) return; // it was asked anew meanwhile
      body.replaceChildren(...rows);
    } catch (error) {
      return dialog.say(translated(error.message));
    }
    find();
    if (!dialog.contains(document.activeElement)) dialog.focus();
  };
  await dialog.refresh();
  return dialog;
}

/** The last cell of a line: its buttons, as far as there is something to do. Deleting asks once more. */
export function actionsOf(name, { use, rename, remove }, question) {
  const cell = element("td", { className: "actions" });
  const add = (text, onclick) => {
    const button = element("button", { type: "button", textContent: text, onclick });
    button.setAttribute("aria-label", `${text} ${name}`);
    cell.append(button);
  };
  const show = () => {
    cell.replaceChildren();
    if (use) add(t("Use"), use);
    if (rename) add(t("Rename"), rename);
    if (remove) add(t("Delete"), ask);
  };
  const ask = () => {
    cell.replaceChildren(element("span", { textContent: question }));
    add(t("Delete"), remove);
    add(t("Keep"), show);
  };
  show();
  return cell;
}

/** Puts a box with a name in the place of what a cell shows, until Enter, which renames, or Escape. */
export function renaming(cell, name, rename) {
  const before = [...cell.childNodes];
  const box = element("input", { value: name, ariaLabel: t("New name of {file}", { file: name }) });
  const back = () => cell.replaceChildren(...before);
  box.onkeydown = async (event) => {
    if (event.isComposing) return; // Enter ends a Chinese word
    if (event.key === "Escape") event.preventDefault(); // the window stays
    if (event.key !== "Enter" && event.key !== "Escape") return;
    box.onkeydown = null; // once: what it renames has another name then
    if (event.key === "Enter") await rename(box.value);
    if (cell.isConnected) back();
  };
  box.onblur = back;
  cell.replaceChildren(box);
  box.select();
}

const STYLE = `
.fewstep-window { width: min(64rem, 94vw); max-height: 84vh; padding: 0; border: 1px solid var(--border-color);
  border-radius: 8px; background: var(--comfy-menu-bg); color: var(--input-text); font: 14px sans-serif; }
.fewstep-window[open] { display: flex; flex-direction: column; margin: auto; }
.fewstep-window:focus { outline: none; }
.fewstep-window::backdrop { background: rgb(0 0 0 / 50%); }
.fewstep-window header { display: flex; gap: 12px; align-items: center; padding: 14px 18px; }
.fewstep-window h2 { flex: 1; margin: 0; font-size: 17px; font-weight: 600; }
.fewstep-window .list { overflow: auto; padding: 0 18px; }
.fewstep-window table { width: 100%; border-collapse: collapse; }
.fewstep-window th { position: sticky; top: 0; background: var(--comfy-menu-bg); text-align: left; font-weight: 600; }
.fewstep-window th, .fewstep-window td { padding: 8px 10px; border-bottom: 1px solid var(--border-color); }
.fewstep-window .number, .fewstep-plans th:nth-child(n+3):nth-child(-n+6) { text-align: right; white-space: nowrap; }
.fewstep-window .name { overflow-wrap: anywhere; }
.fewstep-window .name input { width: 100%; }
.fewstep-window small { display: block; color: ${QUIET}; }
.fewstep-window .fault { color: var(--error-text); }
.fewstep-window .actions { text-align: right; white-space: nowrap; }
.fewstep-window .actions span { margin-right: 8px; }
.fewstep-window button, .fewstep-window input { font: inherit; padding: 4px 10px; border-radius: 5px;
  border: 1px solid var(--border-color); background: var(--comfy-input-bg); color: var(--input-text); }
.fewstep-window button { cursor: pointer; margin-left: 4px; white-space: nowrap; }
.fewstep-window button:hover, .fewstep-window button:focus-visible { border-color: var(--input-text); }
.fewstep-window .message { min-height: 1.2em; margin: 0; padding: 10px 18px 14px; color: var(--error-text); }
.fewstep-window tr[hidden] { display: none; }
.fewstep-window form { display: flex; flex-direction: column; gap: 12px; padding: 0 18px; overflow: hidden; }
.fewstep-window form p { margin: 0; }
.fewstep-window form .row { display: flex; gap: 8px; }
.fewstep-window form .row input { flex: 1; min-width: 0; }
.fewstep-window fieldset { overflow: auto; margin: 0; padding: 0; border: 0; }
.fewstep-window fieldset label { display: flex; gap: 10px; align-items: baseline; padding: 4px 2px; }
.fewstep-window fieldset span { overflow-wrap: anywhere; }
.fewstep-window fieldset span:last-child { color: ${QUIET}; }
.fewstep-window fieldset input { accent-color: var(--input-text); }
.fewstep-preset { width: min(28rem, 94vw); }
.fewstep-presets .values { color: ${QUIET}; overflow-wrap: anywhere; }
`;
