/** What the server is asked for a plot: nodes with the values of their widgets, found by following the links. */

const FAR = 50; // links that are followed at most
const WITH_LEVELS = ["FewStepScheduler", "FewStepPlanSampler", "FewStepAuto", "ManualSigmas"];

/** For POST /fewstep/sigmas. */
export function sigmasRequest(node) {
  return { node: described(node), levels: node.properties.levels };
}

/** For POST /fewstep/plan. The schedule and the guidance are those of the node that samples, if it is connected. */
export function planRequest(node) {
  const sampling = samples(node) ? node : (takers(node, "SAMPLER").find((taker) => slot(taker, "sigmas")) ?? null);
  const { schedule, sigmas } = sampling && sampling !== node ? scheduleOf(sampling) : {};
  const { levels, model } = schedule?.properties?.levels ? schedule.properties : node.properties;
  return {
    node: described(node),
    levels,
    model,
    sigmas,
    guidance: sampling && guidanceOf(sampling),
  };
}

/** Whether a node has sampler and schedule in one. */
function samples(node) {
  return node.comfyClass.startsWith("FewStepKSampler");
}

/** A node as {type, inputs}: the values of its widgets, and the nodes of ours that it is connected to. */
function described(node) {
  const inputs = {};
  for (const widget of node.widgets ?? []) {
    if (widget.serialize !== false) inputs[widget.name] = linkedValue(node, widget.name) ?? widget.value;
  }
  for (const input of node.inputs ?? []) {
    const from = input.widget ? null : origin(node, input.name);
    if (from?.comfyClass?.startsWith("FewStep")) inputs[input.name] = described(from);
  }
  if (node.fewstepPlan !== undefined && inputs.plan?.type !== "FewStepLoadPlan") {
    const { fewstepPlan: text } = node; // of the last run; empty if none was followed
    if (text) inputs.plan = { type: "FewStepLoadPlan", inputs: { file: "", text } };
    else delete inputs.plan;
  }
  return { type: node.comfyClass, inputs };
}

/** The node that a node takes its levels from, and how: as it is, or the part of SplitSigmas. */
function scheduleOf(node) {
  const { from, output } = source(node, "sigmas") ?? {};
  if (from?.comfyClass === "SplitSigmas") {
    const { schedule, sigmas } = scheduleOf(from);
    const step = valueOf(from, "step");
    return { schedule, sigmas: sigmas && { type: "SplitSigmas", inputs: { sigmas, step }, output } };
  }
  return { schedule: from, sigmas: WITH_LEVELS.includes(from?.comfyClass) ? described(from) : null };
}

/** The guidance of a node that samples: a scale, a FewStepGuidance node, or null where it is not known. */
function guidanceOf(sampling) {
  const guider = origin(sampling, "guider") ?? sampling;
  const nearest = guidanceNode(guider);
  if (nearest?.comfyClass === "CFGOverride") return overriding(nearest);
  if (nearest) return described(nearest);
  if (guider.comfyClass === "BasicGuider") return 1;
  return valueOf(guider, "cfg") ?? null;
}

/** The FewStepGuidance that a guider is given or its model was patched with, or a CFGOverride that is nearer. */
function guidanceNode(guider) {
  for (let at = guider, i = 0; at && i < FAR; i++) {
    const found = origin(at, "guidance");
    if (found?.comfyClass === "FewStepGuidance") return found;
    if (at.comfyClass === "CFGOverride") return at;
    const model = at.inputs?.find((input) => input.type === "MODEL");
    at = model && origin(at, model.name);
  }
}

/** The scale of a CFGOverride over the whole run; that of a part is not known, since its ends are levels of the model. */
function overriding(node) {
  return valueOf(node, "start_percent") === 0 && valueOf(node, "end_percent") === 1 ? valueOf(node, "cfg") : null;
}

/** The value of a widget, or of the link that feeds it. */
function valueOf(node, name) {
  return linkedValue(node, name) ?? node.widgets?.find((widget) => widget.name === name)?.value;
}

/** The value that a link feeds into a widget, where a node with nothing but a value is at its other end. */
function linkedValue(node, name) {
  const from = origin(node, name);
  const simple = from && !from.inputs?.some((_, i) => from.isInputConnected(i));
  return simple ? from.widgets?.[0]?.value : undefined;
}

function slot(node, name) {
  return node.inputs?.find((input) => input.name === name);
}

/** The node at the other end of an input, through reroutes. */
function origin(node, name) {
  return source(node, name)?.from ?? null;
}

/** That node, and which of its outputs it is. */
function source(node, name) {
  let [at, i] = [node, node.inputs?.findIndex((input) => input.name === name) ?? -1];
  for (let links = 0; i >= 0 && links < FAR; links++) {
    if (at.isSubgraphNode?.()) return null; // gives the links inside
    const link = at.getInputLink(i);
    const from = link && at.graph.getNodeById(link.origin_id);
    if (from?.type !== "Reroute") return from ? { from, output: link.origin_slot } : null;
    [at, i] = [from, 0];
  }
  return null;
}

/** The nodes that take an output of a type, through reroutes. */
function takers(node, type) {
  return (node.outputs ?? [])
    .flatMap((output, i) => (output.type === type || node.type === "Reroute" ? (node.getOutputNodes(i) ?? []) : []))
    .flatMap((to) => (to.type === "Reroute" ? takers(to, type) : [to]));
}
