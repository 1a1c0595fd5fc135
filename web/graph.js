/** The workflow as a graph: what is connected to what, through reroutes and across the borders of subgraphs. */

import { app } from "../../scripts/app.js";

const FAR = 50; // links that are followed at most
const INPUTS = -10; // the id that a link of a subgraph has where it comes from the outside

/** The value of a widget, or of the link that feeds it. */
export function valueOf(node, name) {
  return linkedValue(node, name) ?? node.widgets?.find((widget) => widget.name === name)?.value;
}

/** The value that a link feeds into a widget, where a node with nothing but a value is at its other end. */
export function linkedValue(node, name) {
  const from = origin(node, name);
  const simple = from && !from.inputs?.some((_, i) => from.isInputConnected(i));
  return simple ? from.widgets?.[0]?.value : undefined;
}

/** An input by its name. */
export function slot(node, name) {
  return node.inputs?.find((input) => input.name === name);
}

/** The node at the other end of an input. */
export function origin(node, name) {
  return source(node, name)?.from ?? null;
}

/** That node, and which of its outputs it is. */
export function source(node, name) {
  return sourceOf(node, node.inputs?.findIndex((input) => input.name === name) ?? -1);
}

/** The same by the number of the input: through reroutes, and in and out of subgraphs. */
function sourceOf(at, i) {
  for (let links = 0; at && i >= 0 && links < FAR; links++) {
    const link = LiteGraph.LGraphNode.prototype.getInputLink.call(at, i); // subgraph nodes have another one
    if (!link) return null;
    let [from, output] = [at.graph.getNodeById(link.origin_id), link.origin_slot];
    if (Number(link.origin_id) === INPUTS) {
      [at, i] = [holder(at.graph), link.origin_slot];
      continue;
    }
    for (let within = 0; from?.isSubgraphNode?.() && within < FAR; within++) {
      const inner = from.subgraph.outputNode.slots[output]?.getLinks()[0];
      [from, output] = inner ? [from.subgraph.getNodeById(inner.origin_id), inner.origin_slot] : [];
    }
    if (from?.type !== "Reroute") return from ? { from, output } : null;
    [at, i] = [from, 0];
  }
  return null;
}

/** The nodes that take an output of a type of a node. */
export function takers(node, type) {
  const takes = (other) => other.inputs?.some((input, i) => input.type === type && sourceOf(other, i)?.from === node);
  return everyNode().filter((other) => !other.isSubgraphNode?.() && takes(other));
}

/** The node that stands for a subgraph; of several the first. */
function holder(subgraph) {
  return everyNode().find((node) => node.subgraph === subgraph);
}

/** The nodes of the workflow and of its subgraphs, whether they are open or not. */
export function everyNode() {
  const root = rootGraph();
  return [root, ...(root.subgraphs?.values() ?? [])].flatMap((graph) => graph.nodes);
}

/** The workflow, whichever of its subgraphs is open. */
export function rootGraph() {
  return app.graph.rootGraph ?? app.graph;
}
