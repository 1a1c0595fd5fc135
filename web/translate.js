/**
 * The texts of locales/ in the language of the user. ComfyUI does this itself, but its front end 1.32.9 forgets the texts
 * of packs as soon as it loads its own for a language other than English.
 */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

let texts = {}; // of our nodes, by type

/** Puts names, descriptions and tooltips into the definitions of our nodes. */
export async function translateDefinitions(definitions) {
  const all = await (await api.fetchApi("/i18n")).json();
  texts = all[app.extensionManager.setting.get("Comfy.Locale")]?.nodeDefs ?? {};
  for (const [type, definition] of Object.entries(definitions)) {
    const own = type.startsWith("FewStep") && texts[type];
    if (!own) continue;
    definition.display_name = own.display_name ?? definition.display_name;
    definition.description = own.description ?? definition.description;
    for (const specs of [definition.input.required ?? {}, definition.input.optional ?? {}]) {
      for (const [name, [, settings]] of Object.entries(specs)) {
        if (settings && own.inputs?.[name]?.tooltip) settings.tooltip = own.inputs[name].tooltip;
      }
    }
    definition.output_tooltips = definition.output_tooltips?.map((tip, i) => own.outputs?.[i]?.tooltip ?? tip);
  }
}

/** Puts the names of widgets, inputs and outputs into a new node. */
export function translateNode(node) {
  const own = texts[node.comfyClass];
  if (!own) return;
  for (const widget of node.widgets ?? []) widget.label = own.inputs?.[widget.name]?.name ?? widget.label;
  for (const input of node.inputs ?? []) input.localized_name = own.inputs?.[input.name]?.name ?? input.localized_name;
  node.outputs?.forEach((output, i) => (output.localized_name = own.outputs?.[i]?.name ?? output.localized_name));
}
