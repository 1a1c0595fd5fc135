/** The front-end extension of Few-Step: plots in the nodes, widgets that fit the choice, search words. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addPlot, refreshAll } from "./plot.js";
import { drawPlan, drawSigmas } from "./pictures.js";
import { planRequest, sigmasRequest } from "./requests.js";
import { addSearchWords, withoutSearchWords } from "./search.js";
import { translateDefinitions, translateNode } from "./translate.js";
import { fitWidgets, showDefaults, showFamilies } from "./widgets.js";

/** What is drawn in which node: the route that computes it, the request for it, and the drawing. */
const PLOTS = {
  FewStepScheduler: { route: "/fewstep/sigmas", request: sigmasRequest, draw: drawSigmas },
  FewStepSampler: { route: "/fewstep/plan", request: planRequest, draw: drawPlan },
  FewStepAuto: { route: "/fewstep/plan", request: planRequest, draw: drawPlan },
  FewStepPlanSampler: { route: "/fewstep/plan", request: planRequest, draw: drawPlan },
  FewStepKSampler: { route: "/fewstep/plan", request: planRequest, draw: drawPlan },
  FewStepKSamplerAdvanced: { route: "/fewstep/plan", request: planRequest, draw: drawPlan },
};

const WIDTH = 320; // of a new node: names and values in full
const [LETTER, LINE] = [6.5, 16]; // sizes of the text below the widgets

let options; // of GET /fewstep/options, by node

app.registerExtension({
  name: "FewStep",

  async init() {
    options = await (await api.fetchApi("/fewstep/options")).json();
  },

  addCustomNodeDefs(definitions) {
    return translateDefinitions(definitions);
  },

  beforeRegisterVueAppNodeDefs(definitions) {
    addSearchWords(definitions);
  },

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("FewStep")) return;
    translateNode(node);
    node.title = withoutSearchWords(node.title, node.comfyClass);
    const own = options[node.comfyClass];
    if (own) {
      showDefaults(node, own);
      showFamilies(node, own);
      fitWidgets(node, own);
    }
    const plot = PLOTS[node.comfyClass];
    if (plot) addPlot(node, plot);
    if (own || plot) node.setSize([Math.max(WIDTH, node.size[0]), node.computeSize()[1]]);
    after(node, "onConfigure", () => own && fitWidgets(node, own));
    after(node, "onConnectionsChange", refreshAll);
    after(node, "onExecuted", (output) => {
      if (output?.fewstep_levels) node.properties.levels = output.fewstep_levels[0];
      if (output?.fewstep_model) node.properties.model = output.fewstep_model[0];
      node.fewstepPlan = output?.fewstep_plan?.[0];
      if (output?.text) makeRoom(node, output.text[0]);
      refreshAll();
    });
    for (const widget of node.widgets ?? []) {
      after(widget, "callback", () => {
        if (own?.some(({ choice }) => choice === widget.name)) fitWidgets(node, own);
        delete node.fewstepPlan; // of a run with other values
        refreshAll();
      });
    }
  },
});

/** Makes a node high enough for the text below its widgets, which the host shows two lines of. */
function makeRoom(node, text) {
  const letters = (node.size[0] - 60) / LETTER;
  const lines = text.split("\n").reduce((sum, line) => sum + Math.ceil(line.length / letters), 0);
  const height = node.computeSize()[1] + Math.max(0, lines - 2) * LINE;
  if (height > node.size[1]) node.setSize([node.size[0], height]);
}

/** Calls `then` after a method, which need not exist. */
function after(object, name, then) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    then(...given);
    return result;
  };
}
