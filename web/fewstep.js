/** The front-end extension of Few-Step: plots in the nodes, widgets that fit the choice, search words. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { after } from "./after.js";
import { boxesIn, makeBox, nameBoxes, sayOnce } from "./boxes.js";
import { addBrowser, browse, followPlans } from "./plans.js";
import { addPlot, askAgain, refreshAll } from "./plot.js";
import { managePresets, presetItems, readPresets, selectedNode, takesPresets } from "./presets.js";
import { addResults } from "./compare.js";
import { learn } from "./known.js";
import { takeLevel } from "./levels.js";
import { drawGuidance, drawPlan, drawRun, drawSigmas } from "./pictures.js";
import { guidanceRequest, planRequest, sigmasRequest } from "./requests.js";
import { addSearchWords, searchByWords } from "./search.js";
import { answerTo } from "./server.js";
import { addSlider } from "./slider.js";
import { showTexts } from "./status.js";
import { addStyle } from "./style.js";
import { cutTooltips, fitTooltips } from "./tooltips.js";
import { translateDefinitions, translateMessages, translateNode, translateWorkflow } from "./translate.js";
import { showWhole } from "./view.js";
import { markRows } from "./vue.js";
import { find, fitWidgets, keepBounds, keepDigits, showDefaults, showFamilies } from "./widgets.js";

/** The plots: the route that computes one, the request for it, the drawing, what a drag of a point does, other views. */
const LEVELS = { route: "/fewstep/sigmas", request: sigmasRequest, draw: drawSigmas, edit: takeLevel };
const PLAN = { route: "/fewstep/plan", request: planRequest, draw: drawPlan };
const RUN = { ...PLAN, draw: drawRun, views: ["log", "linear", "log levels", "linear levels"] };
const GUIDANCE = { route: "/fewstep/plan", request: guidanceRequest, draw: drawGuidance };

/** What is drawn in which node. */
const PLOTS = {
  FewStepScheduler: LEVELS,
  FewStepSampler: PLAN,
  FewStepAuto: PLAN,
  FewStepPlanSampler: PLAN,
  FewStepKSampler: RUN,
  FewStepKSamplerAdvanced: RUN,
  FewStepGuidance: GUIDANCE,
};

/** What other nodes have below their widgets. */
const PANELS = { FewStepCompare: addResults, FewStepSideBySide: addSlider };

/** Colours of the slots and links of our own types, told apart from the host's in both themes. */
const TYPES = { FEWSTEP_PLAN: "#1fa8a0", FEWSTEP_GUIDANCE: "#93ad2b" };

/** Nodes whose seed stays as it is in a new one, as in Compare: their result is compared with others or used by them. */
const STAYS = new Set(["FewStepDiffEditMask", "FewStepFilmStrip", "FewStepTrajectory"]);

const WIDTH = 320; // of a new node: names and values in full
const [BESIDE, LETTER] = [156, 8]; // in the title of a Vue node, the arrow and the name of the pack; a bold letter
const [AROUND, SLIM] = [96, 7]; // in a row of a Vue node, the spaces and the arrow; a letter

let options, words; // of GET /fewstep/options and /fewstep/words, by node

app.registerExtension({
  name: "FewStep",

  commands: [
    { id: "FewStep.Plans", label: "Few-Step: calibrated plans", icon: "pi pi-list", function: () => browse() },
    { id: "FewStep.Presets", label: "Few-Step: presets", icon: "pi pi-sliders-h", function: () => managePresets(selectedNode()) },
  ],
  menuCommands: [{ path: ["Extensions", "Few-Step"], commands: ["FewStep.Plans", "FewStep.Presets"] }],
  getNodeMenuItems: presetItems,
  getSelectionToolboxCommands: (item) => (takesPresets(item) ? ["FewStep.Presets"] : []), // Vue nodes of 1.32.9 have no menu

  async init() {
    [options, words] = await Promise.all(["options", "words"].map((name) => answerTo(`/fewstep/${name}`)));
    followPlans();
    api.addEventListener("reconnected", askAgain);
    readPresets();
    showTexts();
    sayOnce();
    translateMessages(); // before the others hear of them
  },

  getCustomWidgets() {
    return { FEWSTEP_BOX: makeBox };
  },

  async addCustomNodeDefs(definitions) {
    boxesIn(definitions);
    await translateDefinitions(definitions);
    cutTooltips(definitions);
  },

  beforeConfigureGraph(workflow) {
    translateWorkflow(workflow);
  },

  beforeRegisterVueAppNodeDefs(definitions) {
    addSearchWords(definitions, words);
  },

  setup() {
    searchByWords(words);
    for (const [type, value] of Object.entries(TYPES)) {
      // The front end sets the colours of all types anew with each theme, those that the theme does not know to none.
      const colour = { get: () => value, set() {}, configurable: true, enumerable: true };
      for (const colours of [app.canvas.default_connection_color_byType, LGraphCanvas.link_type_colors]) {
        Object.defineProperty(colours, type, colour);
      }
    }
    addStyle(`:root { ${Object.entries(TYPES).map(([type, value]) => `--color-datatype-${type}: ${value};`).join(" ")} }`);
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
      showFamilies(node, own);
      fitWidgets(node, own);
    }
    keepDigits(node);
    fitTooltips(node, own);
    markRows(node);
    node.fewstepOptions = own;
    const panel = PANELS[node.comfyClass];
    if (panel) panel(node);
    const plot = PLOTS[node.comfyClass];
    if (plot) addPlot(node, plot);
    if (node.comfyClass === "FewStepLoadPlan") addBrowser(node);
    if (own || plot || panel) node.setSize([node.size[0], node.computeSize()[1]]);
    node.setSize([Math.max(WIDTH, widthOfTitle(node), widthOfChoices(node), node.size[0]), node.size[1]]);
    if (STAYS.has(node.comfyClass)) find(node, "control_after_generate").value = "fixed";
    after(node, "onConfigure", () => own && fitWidgets(node, own, { saved: true }));
    after(node, "onConnectionsChange", refreshAll);
    after(node, "onExecuted", (output) => {
      if (output?.fewstep_levels) learn(node, output.fewstep_levels[0], output.fewstep_model?.[0]);
      node.fewstepPlan = output?.fewstep_plan?.[0];
      for (const widget of node.widgets ?? []) widget.shows?.(output);
      refreshAll();
    });
    for (const widget of node.widgets ?? []) {
      after(widget, "callback", () => {
        if (own?.some(({ choice, needs = {} }) => [choice, ...Object.values(needs)].includes(widget.name))) fitWidgets(node, own);
        else if (own) keepBounds(node, own, widget);
        delete node.fewstepPlan; // of a run with other values
        refreshAll();
      });
    }
  },
});

/** The width in which the title of a node is whole, beside what the front ends put there. */
function widthOfTitle({ title }) {
  const wide = title.match(/[\u2e80-\uffef]/g)?.length ?? 0; // Chinese letters
  return BESIDE + LETTER * (title.length + wide);
}

/** The width in which what is chosen from lists stands whole beside its name. */
function widthOfChoices({ widgets = [] }) {
  const lists = widgets.filter(({ type, hidden }) => type === "combo" && !hidden);
  const letters = lists.map(({ name, label = name, value }) => `${label}${value}`.length);
  return AROUND + SLIM * Math.max(0, ...letters);
}
