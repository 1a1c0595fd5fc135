/** A plot as a widget of a node: asks the server again whenever its request changes, and draws the answer. */

import { api } from "../../scripts/api.js";
import { t, translated } from "./translate.js";

const HEIGHT = 170;
const PATIENCE = 80; // ms without a change before the server is asked

const OFTEN = 300; // ms: Vue nodes draw a plot anew only when their own node changes, not with the canvas

const plots = new Set();
setInterval(() => LiteGraph.vueNodesMode && refreshAll(), OFTEN);

/**
 * Adds a plot at the end of a node. It is not saved: values of widgets are saved by position.
 *
 * @param node of LiteGraph
 * @param route of the server, for POST
 * @param request (node) => what to ask; another one is asked for
 * @param draw (pen, area, answer, log) => draws an answer, on a logarithmic axis or not; a click changes that
 */
export function addPlot(node, { route, request, draw }) {
  const plot = {
    type: "fewstep_plot",
    name: "plot",
    options: { serialize: false },
    serialize: false,
    answer: null,
    asked: null, // the request that was made last
    answered: null, // the one that `answer` is to

    computeSize: (width) => [width ?? node.size[0], HEIGHT],

    draw(pen, _node, width, y) {
      plot.refresh();
      if (LiteGraph.vueNodesMode) takeRoom(pen.canvas);
      const area = { left: 10, top: y, width: width - 20, height: HEIGHT };
      pen.save();
      background(pen, area);
      if (plot.answer?.error) write(pen, area, translated(plot.answer.error));
      else if (plot.answer) draw(pen, area, plot.answer, node.properties.plot !== "linear");
      pen.restore();
    },

    mouse(event) {
      if (event.type !== "pointerdown") return false;
      node.properties.plot = node.properties.plot === "linear" ? "log" : "linear";
      plot.show();
      return true;
    },

    wanted: () => JSON.stringify(request(node)),

    refresh() {
      if (!node.graph) return;
      const wanted = plot.wanted();
      if (wanted === plot.asked) return;
      plot.asked = wanted;
      clearTimeout(plot.timer);
      plot.timer = setTimeout(() => ask(wanted), PATIENCE);
    },

    show() {
      plot.triggerDraw?.(); // in Vue nodes, which have a canvas for each widget
      node.setDirtyCanvas(true, false);
    },
  };

  async function ask(body) {
    let answer;
    try {
      const response = await api.fetchApi(route, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body,
      });
      answer = await response.json();
    } catch {
      answer = { error: t("ComfyUI does not answer") };
    }
    if (body !== plot.asked) return; // another one is on its way
    plot.answer = answer;
    plot.answered = body;
    plot.show();
  }

  plots.add(plot);
  const { onRemoved } = node;
  node.onRemoved = function (...given) {
    plots.delete(plot);
    onRemoved?.apply(this, given);
  };
  node.addCustomWidget(plot);
}

/** For changes that no canvas is redrawn for. */
export function refreshAll() {
  for (const plot of plots) plot.refresh();
}

/** Vue nodes have a canvas for each such widget, which takes no room and lies over the widget above it (1.32.9). */
function takeRoom(canvas) {
  canvas.style.marginTop = 0;
  canvas.parentElement.style.minHeight = `${HEIGHT}px`;
}

function background(pen, { left, top, width, height }) {
  pen.fillStyle = LiteGraph.WIDGET_BGCOLOR;
  pen.beginPath();
  pen.roundRect(left, top, width, height, 6);
  pen.fill();
}

/** A message in the place of a plot, in lines. */
function write(pen, { left, top, width }, text) {
  pen.font = "11px sans-serif";
  pen.fillStyle = LiteGraph.WIDGET_SECONDARY_TEXT_COLOR;
  pen.textAlign = "left";
  pen.textBaseline = "top";
  let line = "";
  let y = top + 12;
  for (const word of [...text.split(/\s+/), null]) {
    const longer = word === null ? null : `${line}${line && " "}${word}`;
    if (longer !== null && pen.measureText(longer).width < width - 24) {
      line = longer;
      continue;
    }
    pen.fillText(line, left + 12, y);
    line = word;
    y += 15;
  }
}
