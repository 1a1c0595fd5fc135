/** Levels drawn by hand: a point of the plot of Few-Step Scheduler that is dragged. */

import { isLinked, set } from "./widgets.js";

const BETWEEN = 1.01; // factor that a level stays away from its neighbours
const DIGITS = 5; // of a level in the list

/** What the schedule "manual" is set to beside its list: options that would change the levels once more. */
const REST = { denoise: 1, discard_penultimate: false, shift: 0, start_step: 0, end_step: 10000 };

/**
 * Takes hold of the level `i` of the plot: gives {move, drop}, or null where it cannot be moved.
 *
 * `move` sets it in the plot, between its neighbours. `drop` writes all levels of the plot into the list of the schedule
 * "manual": not before the end, since the box of the list then moves the plot.
 */
export function takeLevel(node, { sigmas, levels }, i) {
  const written = ["schedule", "sigmas", "steps", ...Object.keys(REST)];
  if (!sigmas[i] || written.some((name) => isLinked(node, { name }))) return null;
  const high = i ? sigmas[i - 1] / BETWEEN : levels.sigma_max;
  const low = (sigmas[i + 1] || sigmas[i] / 100) * BETWEEN;
  return {
    move(value) {
      sigmas[i] = +Math.min(high, Math.max(low, value)).toPrecision(DIGITS);
    },
    drop() {
      const list = sigmas.filter((level) => level > 0).map((level) => +level.toPrecision(DIGITS));
      const values = { sigmas: list.join(", "), steps: list.length, ...REST, schedule: "manual" };
      if (sigmas.at(-1) > 0) values.end_step = list.length - 1; // a part of a run: the list itself goes on to 0
      for (const [name, value] of Object.entries(values)) set(node, name, value);
    },
  };
}
