/**
 * Words that find a node beside its name. The search box of older front ends reads names only, and of these the first 30
 * letters; newer ones know `search_aliases`, and take the name from locales/ for another language.
 */

const WORDS = {
  FewStepKSampler: "sampler",
  FewStepSampler: "dpm++ 2m, amed",
  FewStepScheduler: "karras, ays",
  FewStepLoadPlan: "amed",
  FewStepPlanSampler: "amed",
  FewStepCalibrate: "plan, amed",
  FewStepGuidance: "cfg",
  FewStepGuider: "cfg",
  FewStepGuidancePatch: "cfg",
  FewStepInvert: "inversion",
};

/** Adds them to the names in the search box and the node library. Titles of nodes in the graph stay as they are. */
export function addSearchWords(definitions) {
  definitions.forEach((definition, i) => {
    if (!WORDS[definition.name] || definition.search_aliases) return;
    const search_aliases = WORDS[definition.name].split(", ");
    definitions[i] = { ...definition, display_name: definition.display_name + inBrackets(definition.name), search_aliases };
  });
}

/** The title of a node that was added by its name in the search box. */
export function withoutSearchWords(title, type) {
  return title?.replace(inBrackets(type), "");
}

function inBrackets(type) {
  return WORDS[type] ? ` (${WORDS[type]})` : "";
}
