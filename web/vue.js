/**
 * What Vue nodes ("Nodes 2.0") do not show by themselves: what a default means, labels in full, tooltips that change.
 * The front end makes the rows; they are marked here, and the style sheet below does the rest.
 */

import { app } from "../../scripts/app.js";
import { after } from "./after.js";
import { addStyle } from "./style.js";

const OFTEN = 300; // ms
const SPACE = 4; // pixels between a label and its value

const STYLE = `
.lg-node-widget [data-said] { position: relative; }
.lg-node-widget [data-said]:not(:focus-within)::after {
  content: attr(data-said);
  position: absolute; inset: 0 34px 0 var(--fewstep-said); display: flex; align-items: center;
  overflow: hidden; white-space: nowrap; pointer-events: none; font-size: 12px;
}
.lg-node-widget [data-said]:not(:focus-within) :is(input, .p-select-label, [role=combobox] span) { color: transparent; }
.lg-node-widget [data-fewstep-label] { width: var(--fewstep-label) !important; }
`;
const [AFTER_BUTTON, AT_LEFT] = ["36px", "9px"]; // where numbers and choices begin

addStyle(STYLE);

const pen = document.createElement("canvas").getContext("2d");
const nodes = new Set();
const seen = () => [...nodes].filter((node) => node.graph === app.canvas.graph); // ids are of one graph, and may recur in others
setInterval(() => LiteGraph.vueNodesMode && seen().forEach(mark), OFTEN);
new MutationObserver(() => LiteGraph.vueNodesMode && mendTooltip()).observe(document.body, { childList: true, subtree: true });

/** Has the rows of a node marked for as long as it is there. */
export function markRows(node) {
  nodes.add(node);
  after(node, "onRemoved", () => nodes.delete(node));
}

function mark(node) {
  const rows = rowsOf(node);
  if (!rows.length) return;
  const labels = [];
  for (const [row, widget] of rows) {
    const said = widget.said?.() ?? null;
    const box = row.querySelector(".relative.min-w-0.flex-1");
    if (box && said !== (box.dataset.said ?? null)) {
      if (said === null) delete box.dataset.said;
      else box.dataset.said = said;
      box.style.setProperty("--fewstep-said", widget.type === "combo" ? AT_LEFT : AFTER_BUTTON);
    }
    relabel(row, widget);
    const label = row.querySelector("p.lod-toggle"); // of front end 1.32.9, which cuts it
    if (label) labels.push(label);
    const target = row.children[1]; // of the tooltip, there
    if (target && "$_ptooltipValue" in target && widget.tooltip) target.$_ptooltipValue = widget.tooltip;
  }
  if (!labels.length) return;
  pen.font = getComputedStyle(labels[0]).font;
  const widest = Math.ceil(Math.max(...labels.map((label) => pen.measureText(label.textContent).width))) + SPACE;
  for (const label of labels) {
    label.parentElement.dataset.fewstepLabel = "";
    label.parentElement.style.setProperty("--fewstep-label", `${widest}px`);
  }
}

/** Says in an empty box for text what it is for; puts the label of a button where front end 1.32.9 has its name. */
function relabel(row, { name, label = name, whenEmpty }) {
  const box = whenEmpty && row.querySelector("textarea");
  if (box && box.placeholder !== whenEmpty) box.placeholder = whenEmpty;
  for (const part of row.querySelector("button.p-button")?.childNodes ?? []) if (part.data === name) part.data = label;
}

/** Newer front ends take the tooltip of a widget once, when its node is made: puts in the one of now as it opens. */
function mendTooltip() {
  const tip = document.querySelector("[role=tooltip]");
  const row = tip && document.querySelector(".lg-node-widget:hover");
  const node = row && seen().find(({ id }) => row.closest("[data-node-id]")?.dataset.nodeId === String(id));
  const [, widget] = (node && rowsOf(node).find(([one]) => one === row)) ?? [];
  if (!widget?.shownTooltips) return;
  const now = widget.tooltip;
  const texts = document.createTreeWalker(tip.parentElement, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const { data } = texts.currentNode;
    if (data !== now && widget.shownTooltips.has(data.trim())) texts.currentNode.data = now;
  }
}

/** The rows of a node with their widgets. */
function rowsOf(node) {
  const rows = [...document.querySelectorAll(`[data-node-id="${node.id}"] .lg-node-widget`)];
  const shown = (node.widgets ?? []).filter(({ options, hidden }) => !hidden && !options?.hidden && !options?.canvasOnly);
  return rows.flatMap((row, i) => {
    const name = row.dataset.widgetName; // which older front ends do not give
    const widget = name ? node.widgets.find((widget) => widget.name === name) : rows.length === shown.length && shown[i];
    return widget ? [[row, widget]] : [];
  });
}
