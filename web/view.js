/** How a workflow of ours is seen when it is opened. */

import { app } from "../../scripts/app.js";

const [TOP, SIDE] = [94, 70]; // pixels of the screen that the front end's own things take
const [MAP, APART] = [".litegraph-minimap", 12]; // which lies over the corner where the results of a workflow are
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
  const map = document.querySelector(MAP)?.getBoundingClientRect();
  if (map?.width && (bottom + ds.offset[1]) * ds.scale > map.top) {
    const groups = app.graph._groups.map(({ pos, size }) => [pos[0], pos[0] + size[0]]);
    const [first, last] = [Math.min(left, ...groups.flat()), Math.max(right, ...groups.flat())];
    const over = last + ds.offset[0] - (map.left - APART) / ds.scale;
    const free = first + ds.offset[0] - SIDE / ds.scale;
    ds.offset[0] -= Math.max(0, Math.min(over, free));
  }
  app.canvas.setDirty(true, true);
}
