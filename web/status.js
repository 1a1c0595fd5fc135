/**
 * The text that a node of ours says while it works, and the last one, which stays until the node runs again. The host's
 * own is lost: Vue nodes of front end 1.32.9 do not show it, and 1.58 takes it away when a run ends, also one that was
 * stopped.
 */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { lookAgain } from "./widgets.js";

const NAME = "fewstep_text";
const [LINE, PADDING, LETTER] = [16, 14, 6.6]; // sizes of the text

/** Shows what our nodes say, in the place of the host. */
export function showTexts() {
  const { dispatchCustomEvent } = api; // listeners are called in their order, and the host's is there before ours
  api.dispatchCustomEvent = function (type, detail) {
    if (type === "progress_text" && shown(detail)) return true;
    if (type === "executing" && detail) forget(String(detail));
    return dispatchCustomEvent.call(this, type, detail);
  };
}

/** Shows a text; false if it is not of one of our nodes. */
function shown({ nodeId, text }) {
  const node = find(String(nodeId));
  if (!text || !node?.comfyClass?.startsWith("FewStep")) return false;
  const widget = ofNode(node) ?? added(node);
  widget.element.textContent = text;
  grow(node);
  return true;
}

/** Takes away what a node said in its last run, when it runs again. */
function forget(id) {
  const widget = ofNode(find(id));
  if (widget) widget.element.textContent = "";
}

const ofNode = (node) => node?.widgets?.find(({ name }) => name === NAME);

function added(node) {
  const element = document.createElement("div");
  element.className = "fewstep-text";
  Object.assign(element.style, {
    boxSizing: "border-box",
    padding: "2px 12px",
    font: `12px/${LINE}px sans-serif`,
    color: "var(--input-text)",
    whiteSpace: "pre-wrap",
    overflowWrap: "anywhere", // the path of a file is one word
    userSelect: "text",
  });
  element.setAttribute("role", "status");
  const height = () => (element.textContent ? lines(element.textContent, node.size[0] - 44) * LINE + PADDING : 0);
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

function lines(text, width) {
  const wide = (line) => line.length + (line.match(/[\u2e80-\uffef]/g)?.length ?? 0); // Chinese letters are two wide
  return text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil((wide(line) * LETTER) / width)), 0);
}

function grow(node) {
  const height = node.computeSize()[1];
  if (node.size[1] < height) node.setSize([node.size[0], height]);
  node.setDirtyCanvas(true, true);
}

/** A node by its id; one in subgraphs has the ids of these in front, with colons between them. */
function find(id) {
  let [graph, node] = [app.rootGraph ?? app.graph, null];
  for (const part of id.split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}
