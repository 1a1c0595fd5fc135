/** What the server is asked for a plot: nodes with the values of their widgets, found by following the links. */

const FAR = 50; // links that are followed at most
const WITH_LEVELS = ["FewStepScheduler", "FewStepPlanSampler", "FewStepAuto"];

/** For POST /fewstep/sigmas. */
export function sigmasRequest(node) {
  return { node: described(node), levels: node.properties.levels };
}

/** For POST /fewstep/plan. The schedule and the guidance are those of the node that samples, if it is connected. */
export function planRequest(node) {
  const sampling = takers(node, "SAMPLER").find((taker) => slot(taker, "sigmas")) ?? null;
  const { schedule, sigmas } = sampling ? scheduleOf(sampling) : {};
  const { levels, model } = schedule?.properties?.levels ? schedule.properties : node.properties;
  return {
    node: described(node),
    levels,
    model,
    sigmas,
    guidance: sampling && guidanceOf(sampling),
  };
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

/** The schedule node of ours that a node takes its levels from, and how: as it is, or the part of SplitSigmas. */
function scheduleOf(node) {
  const { from, output } = source(node, "sigmas") ?? {};
  if (from?.comfyClass === "SplitSigmas") {
    const { schedule, sigmas } = scheduleOf(from);
    const step = linkedValue(from, "step") ?? from.widgets.find((widget) => widget.name === "step").value;
    return { schedule, sigmas: sigmas && { type: "SplitSigmas", inputs: { sigmas, step }, output } };
  }
  return { schedule: from, sigmas: WITH_LEVELS.includes(from?.comfyClass) ? described(from) : null };
}

/** The guidance of a node that samples: a scale, a FewStepGuidance node, or null where it is not known. */
function guidanceOf(sampling) {
  const guider = origin(sampling, "guider") ?? sampling;
  const schedule = guidanceNode(guider);
  if (schedule) return described(schedule);
  if (guider.comfyClass === "BasicGuider") return 1;
  return linkedValue(guider, "cfg") ?? guider.widgets?.find((widget) => widget.name === "cfg")?.value ?? null;
}

/** The FewStepGuidance that a guider is given, or that its model was patched with. */
function guidanceNode(guider) {
  for (let at = guider, i = 0; at && i < FAR; i++) {
    const found = origin(at, "guidance");
    if (found?.comfyClass === "FewStepGuidance") return found;
    const model = at.inputs?.find((input) => input.type === "MODEL");
    at = model && origin(at, model.name);
  }
}

/** The value that a link feeds into a widget, where a node with nothing but a value is at its other end. */
function linkedValue(node, name) {
  const from = origin(node, name);
  const simple = from && !from.inputs?.some((input) => input.link != null);
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
  let id = slot(node, name)?.link;
  for (let i = 0; id != null && i < FAR; i++) {
    const link = node.graph.getLink(id);
    const from = node.graph.getNodeById(link?.origin_id);
    if (from?.type !== "Reroute") return { from, output: link?.origin_slot };
    id = from.inputs[0].link;
  }
  return null;
}

/** The nodes that take an output of a type, through reroutes. */
function takers(node, type) {
  const outputs = (node.outputs ?? []).filter((output) => output.type === type || node.type === "Reroute");
  return outputs
    .flatMap((output) => output.links ?? [])
    .map((id) => node.graph.getNodeById(node.graph.getLink(id)?.target_id))
    .filter(Boolean)
    .flatMap((to) => (to.type === "Reroute" ? takers(to, type) : [to]));
}
