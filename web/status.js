/**
 * The text that a node of ours says while it works, and the last one, which stays until the node runs again. The host's
 * own is lost: Vue nodes of front end 1.32.9 do not show it, and 1.58 takes it away when a run ends, also one that was
 * stopped.
 */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { rootGraph } from "./graph.js";
import { find, lookAgain } from "./widgets.js";

const NAME = "fewstep_text";
const MARGIN = 10; // on each side of an element in a node, unless its widget says otherwise

const texts = new WeakMap(); // by node, what it said last

/** Shows what our nodes say, in the place of the host; on those of a closed subgraph as soon as it is opened. */
export function showTexts() {
  const { dispatchCustomEvent } = api; // listeners are called in their order, and the host's is there before ours
  api.dispatchCustomEvent = function (type, detail) {
    if (type === "progress_text" && said(detail)) return true;
    if (type === "executing" && detail) forget(nodeOf(String(detail)));
    return dispatchCustomEvent.call(this, type, detail);
  };
  app.canvas.canvas.addEventListener("litegraph:set-graph", ({ detail }) => {
    for (const node of detail.newGraph.nodes) if (texts.has(node)) write(node);
  });
}

/** Takes a text, which stays until the next; false if it is not of one of our nodes. */
function said({ nodeId, text }) {
  const node = nodeOf(String(nodeId));
  if (!text || !node?.comfyClass?.startsWith("FewStep")) return false;
  texts.set(node, text);
  if (node.graph === app.canvas.graph) write(node); // else some front ends would show its text alone
  return true;
}

/** Takes away what a node said in its last run, when it runs again. */
function forget(node) {
  const widget = node && find(node, NAME);
  if (widget) widget.element.textContent = "";
  texts.delete(node);
}

function write(node) {
  const widget = find(node, NAME) ?? added(node);
  widget.element.textContent = texts.get(node);
  grow(node);
}

function added(node) {
  const element = box();
  element.setAttribute("role", "status");
  const width = () => node.size[0] - 2 * (widget.margin ?? MARGIN);
  const height = () => (element.textContent ? heightOf(element.textContent, width()) + 2 * MARGIN : 0);
  const widget = node.addDOMWidget(NAME, NAME, element, {
    serialize: false,
    getMinHeight: height,
    getMaxHeight: height,
    getValue: () => element.textContent,
    setValue: () => {},
  });
  widget.serialize = false;
  if (LiteGraph.vueNodesMode) lookAgain(node);
  return widget;
}

/** An element for a text. */
function box() {
  const element = document.createElement("div");
  element.className = "fewstep-text";
  Object.assign(element.style, {
    boxSizing: "border-box",
    padding: "2px 12px",
    font: "12px/16px sans-serif",
    color: "var(--input-text)",
    whiteSpace: "pre-wrap",
    overflowWrap: "anywhere", // the path of a file is one word
    userSelect: "text",
  });
  return element;
}

let ruler; // out of sight, for the browser itself to break texts into lines
const heights = new Map(); // by text and width, of late: nodes are laid out at each frame

/** The height of a text in a box so wide. */
function heightOf(text, width) {
  const key = `${Math.round(width)} ${text}`;
  if (!heights.has(key)) {
    if (heights.size >= 100) heights.clear();
    ruler ??= Object.assign(document.body.appendChild(box()), { ariaHidden: true });
    Object.assign(ruler.style, { position: "fixed", visibility: "hidden", top: 0, left: 0, width: `${width}px` });
    ruler.textContent = text;
    heights.set(key, ruler.offsetHeight);
  }
  return heights.get(key);
}

function grow(node) {
  const height = node.computeSize()[1];
  if (node.size[1] < height) node.setSize([node.size[0], height]);
  node.setDirtyCanvas(true, true);
}

/** A node by its id; one in subgraphs has the ids of these in front, with colons between them. */
function nodeOf(id) {
  let [graph, node] = [rootGraph(), null];
  for (const part of id.split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}
