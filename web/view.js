/** How a workflow of ours is seen when it is opened. */

import { app } from "../../scripts/app.js";

const TOP = 94; // pixels of the screen that the front end's own things take
const SETTLED = 400; // ms after which nodes made of elements have their places

/** Shows the whole of a workflow that asks for it, on whatever screen, once: afterwards the view is the user's. */
export function showWhole() {
  const { extra } = app.graph;
  if (!extra?.fewstep_fit) return;
  delete extra.fewstep_fit;
  // Some front ends take the places of nodes made of elements from the screen, and must not be disturbed in that.
  setTimeout(() => app.graph.extra === extra && fit(app.graph._nodes.map((node) => node.boundingRect)), SETTLED);
}

function fit(boxes) {
  if (!boxes.length) return;
  const [left, top] = [0, 1].map((k) => Math.min(...boxes.map((box) => box[k])) - 10);
  const [right, bottom] = [0, 1].map((k) => Math.max(...boxes.map((box) => box[k] + box[k + 2])) + 10);
  const { ds } = app.canvas;
  ds.fitToBounds?.([left, top, right - left, bottom - top]);
  const heading = Math.min(top, ...app.graph._groups.map(({ pos }) => pos[1]));
  ds.offset[1] += Math.max(0, TOP / ds.scale - heading - ds.offset[1]);
  app.canvas.setDirty(true, true);
}
