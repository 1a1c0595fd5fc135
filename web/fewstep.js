/** The front-end extension of Few-Step: plots in the nodes, widgets that fit the choice, search words. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { boxesIn, makeBox, nameBoxes } from "./boxes.js";
import { addBrowser, browse, followPlans } from "./plans.js";
import { addPlot, refreshAll } from "./plot.js";
import { addResults } from "./compare.js";
import { drawPlan, drawSigmas } from "./pictures.js";
import { planRequest, sigmasRequest } from "./requests.js";
import { addSlider } from "./slider.js";
import { addSearchWords, searchByWords } from "./search.js";
import { showTexts } from "./status.js";
import { translateDefinitions, translateNode } from "./translate.js";
import { showWhole } from "./view.js";
import { fitWidgets, showDefaults } from "./widgets.js";

/** What is drawn in which node: the route that computes it, the request for it, and the drawing. */
const PLOTS = {
  FewStepScheduler: { route: "/fewstep/sigmas", request: sigmasRequest, draw: drawSigmas },
  FewStepSampler: { route: "/fewstep/plan", request: planRequest, draw: drawPlan },
  FewStepAuto: { route: "/fewstep/plan", request: planRequest, draw: drawPlan },
  FewStepPlanSampler: { route: "/fewstep/plan", request: planRequest, draw: drawPlan },
};

/** What other nodes have below their widgets. */
const PANELS = { FewStepCompare: addResults, FewStepSideBySide: addSlider };

const WIDTH = 320; // of a new node: names and values in full

let options, words; // of GET /fewstep/options and /fewstep/words, by node

app.registerExtension({
  name: "FewStep",

  commands: [{ id: "FewStep.Plans", label: "Few-Step: calibrated plans", icon: "pi pi-list", function: () => browse() }],
  menuCommands: [{ path: ["Extensions", "Few-Step"], commands: ["FewStep.Plans"] }],

  async init() {
    const answers = await Promise.all(["options", "words"].map((name) => api.fetchApi(`/fewstep/${name}`)));
    [options, words] = await Promise.all(answers.map((answer) => answer.json()));
    followPlans();
    showTexts();
  },

  getCustomWidgets() {
    return { FEWSTEP_BOX: makeBox };
  },

  addCustomNodeDefs(definitions) {
    boxesIn(definitions);
    return translateDefinitions(definitions);
  },

  beforeRegisterVueAppNodeDefs(definitions) {
    addSearchWords(definitions, words);
  },

  setup() {
    searchByWords(words);
  },

  afterConfigureGraph() {
    showWhole();
  },

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("FewStep")) return;
    translateNode(node);
    nameBoxes(node);
    const own = options[node.comfyClass];
    if (own) {
      showDefaults(node, own);
      fitWidgets(node, own);
    }
    node.fewstepOptions = own;
    const panel = PANELS[node.comfyClass];
    if (panel) panel(node);
    const plot = PLOTS[node.comfyClass];
    if (plot) addPlot(node, plot);
    if (node.comfyClass === "FewStepLoadPlan") addBrowser(node);
    if (own || plot || panel) node.setSize([Math.max(WIDTH, node.size[0]), node.computeSize()[1]]);
    after(node, "onConfigure", () => own && fitWidgets(node, own));
    after(node, "onConnectionsChange", refreshAll);
    after(node, "onExecuted", (output) => {
      if (output?.fewstep_levels) node.properties.levels = output.fewstep_levels[0];
      if (output?.fewstep_model) node.properties.model = output.fewstep_model[0];
      node.fewstepPlan = output?.fewstep_plan?.[0];
      for (const widget of node.widgets ?? []) widget.shows?.(output);
      refreshAll();
    });
    for (const widget of node.widgets ?? []) {
      after(widget, "callback", () => {
        if (own && widget.name === own.choice) fitWidgets(node, own);
        delete node.fewstepPlan; // of a run with other values
        refreshAll();
      });
    }
  },
});

/** Calls `then` after a method, which need not exist. */
function after(object, name, then) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    then(...given);
    return result;
  };
}
