/** Levels drawn by hand: a point of the plot of Few-Step Scheduler that is dragged. */

import { isFed } from "./requests.js";

const BETWEEN = 1.01; // factor that a level stays away from its neighbours
const DIGITS = 5; // of a level in the list

/** What the schedule "manual" is set to beside its list: options that would change the levels once more. */
const REST = { denoise: 1, discard_penultimate: false, shift: 0, start_step: 0, end_step: 10000 };

/**
 * Takes hold of the level `i` of the plot: gives the function that sets it, or null where it cannot be moved.
 *
 * It writes all levels of the plot into the list of the schedule "manual".
 */
export function takeLevel(node, { sigmas, levels }, i) {
  if (!sigmas[i] || isFed(node, "schedule") || isFed(node, "steps") || isFed(node, "sigmas")) return null;
  const shown = [...sigmas];
  const high = i ? shown[i - 1] / BETWEEN : levels.sigma_max;
  const low = (shown[i + 1] || shown[i] / 100) * BETWEEN;
  return (value) => {
    sigmas[i] = shown[i] = +Math.min(high, Math.max(low, value)).toPrecision(DIGITS);
    const list = shown.filter((level) => level > 0).map((level) => +level.toPrecision(DIGITS));
    const values = { sigmas: list.join(", "), steps: list.length, ...REST, schedule: "manual" };
    for (const [name, value] of Object.entries(values)) setWidget(node, name, value);
  };
}

function setWidget(node, name, value) {
  const widget = node.widgets.find((widget) => widget.name === name);
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value);
}
