/** What the server is asked for a plot: nodes with the values of their widgets, found by following the links. */

import { linkedValue, origin, slot, source, takers, valueOf } from "./graph.js";
import { known, loaderOf } from "./known.js";

const FAR = 50; // nodes that are followed at most
const WITH_LEVELS = ["FewStepScheduler", "FewStepPlanSampler", "FewStepAuto", "ManualSigmas", "BasicScheduler"];
const WITH_SAMPLER = ["FewStepSampler", "FewStepPlanSampler", "FewStepAuto"];
const PREFIX = "fewstep_"; // of our samplers in the host's lists

/** For POST /fewstep/sigmas. */
export function sigmasRequest(node) {
  return { node: described(node), levels: known(node)?.levels };
}

/** For POST /fewstep/plan. The schedule and the guidance are those of the node that samples, if it is connected. */
export function planRequest(node) {
  const sampling = samples(node) ? node : sampledBy(node);
  return { ...runOf(node, sampling), node: described(node), guidance: sampling && guidanceOf(sampling) };
}

/** The same for a node with guidance: the run that it guides. */
export function guidanceRequest(node) {
  const sampling = guidedBy(node);
  return { ...runOf(node, sampling), node: samplerOf(sampling), guidance: described(node) };
}

/** The levels of the run that a node belongs to, and what is known of its model. */
function runOf(node, sampling) {
  const { schedule, sigmas } = sampling && !samples(sampling) ? scheduleOf(sampling) : {};
  const { levels, model } = known(schedule) ?? known(sampling) ?? known(node) ?? {};
  return { levels, model, loader: loaderOf(sampling ?? sampledBy(node, FAR)) ?? loaderOf(node), sigmas };
}

/** The node that samples with the sampler that a node gives, also through so many nodes that make another of it. */
function sampledBy(node, through = 0) {
  const [found, theirs] = [takers(node, "SAMPLER"), (taker) => through > 0 && sampledBy(taker, through - 1)];
  return found.find((taker) => slot(taker, "sigmas")) ?? found.map(theirs).find(Boolean) ?? null;
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

/**
 * The node that a node takes its levels from, and how: as it is, or the part of SplitSigmas. A KSampler is its own, and
 * does what BasicScheduler does.
 */
function scheduleOf(node) {
  if (valueOf(node, "scheduler") !== undefined && !slot(node, "sigmas")) return { schedule: node, sigmas: ofKSampler(node) };
  const { from, output } = source(node, "sigmas") ?? {};
  if (from?.comfyClass === "SplitSigmas") {
    const { schedule, sigmas } = scheduleOf(from);
    return { schedule, sigmas: sigmas && split(sigmas, valueOf(from, "step"), output) };
  }
  return { schedule: from, sigmas: WITH_LEVELS.includes(from?.comfyClass) ? described(from) : null };
}

function ofKSampler(node) {
  const [scheduler, steps] = [valueOf(node, "scheduler"), valueOf(node, "steps")];
  const [start, end] = [valueOf(node, "start_at_step") ?? 0, valueOf(node, "end_at_step") ?? steps];
  let sigmas = { type: "BasicScheduler", inputs: { scheduler, steps, denoise: valueOf(node, "denoise") ?? 1 } };
  if (end < steps) sigmas = split(sigmas, end, 0);
  return start > 0 ? split(sigmas, start, 1) : sigmas;
}

function split(sigmas, step, output) {
  return { type: "SplitSigmas", inputs: { sigmas, step }, output };
}

/** The sampler of a node that samples. One of the host is drawn as euler, with one evaluation a step. */
function samplerOf(sampling) {
  const from = sampling && origin(sampling, "sampler");
  if (WITH_SAMPLER.includes(from?.comfyClass)) return described(from);
  if (sampling && samples(sampling)) return described(sampling);
  const name = sampling && valueOf(sampling, "sampler_name");
  return { type: "FewStepSampler", inputs: { sampler: name?.startsWith(PREFIX) ? name.slice(PREFIX.length) : "euler" } };
}

/** The node that samples with the guidance, guider or model that a node gives. */
function guidedBy(node, left = FAR) {
  for (const { type } of left > 0 ? (node.outputs ?? []) : []) {
    if (!["FEWSTEP_GUIDANCE", "GUIDER", "MODEL"].includes(type)) continue;
    for (const taker of takers(node, type)) {
      const found = slot(taker, "sigmas")?.type === "SIGMAS" || valueOf(taker, "sampler_name") ? taker : guidedBy(taker, left - 1);
      if (found) return found;
    }
  }
  return null;
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
