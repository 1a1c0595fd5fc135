/**
 * A plot as a widget of a node: asks the server again whenever its request changes, and draws the answer.
 *
 * Nodes on the canvas draw it there (`draw`); Vue nodes are given an element with a canvas of its own (`element`). What
 * the pointer does is the same in both: over a point it shows its values, a click changes the view (the axis; in some nodes
 * what is drawn, too), a drag moves the node, or the point where the plot can be edited.
 */

import { app } from "../../scripts/app.js";
import { after } from "./after.js";
import { colours } from "./colours.js";
import { drawError } from "./pictures.js";
import { answerTo } from "./server.js";
import { t, translated } from "./translate.js";

const HEIGHT = 170; // at least: a node that is made higher has a higher plot
const PATIENCE = 80; // ms without a change before the server is asked
const OFTEN = 300; // ms: Vue nodes draw a plot anew only when their own node changes, not with the canvas
const SMALL = 0.55; // scale of the canvas below which letters cannot be read
const STILL = 4; // pixels that a click may move
const SHARP = 2; // pixels of the canvas of a Vue node in one of the page

const plots = new Set();
setInterval(() => LiteGraph.vueNodesMode && refreshAll(), OFTEN);

/**
 * Adds a plot at the end of a node. It is not saved: values of widgets are saved by position.
 *
 * @param node of LiteGraph
 * @param route of the server, for POST
 * @param request (node) => what to ask; another one is asked for
 * @param draw one of the drawings of pictures.js
 * @param edit (node, answer, i) => {move(value), drop()} of a point that can be dragged, or null
 * @param views what a click goes through; the node keeps the one that is shown in its properties
 */
export function addPlot(node, { route, request, draw, edit, views = ["log", "linear"] }) {
  const plot = {
    type: "fewstep_plot",
    name: "plot",
    options: { serialize: false },
    serialize: false,
    answer: null,
    asked: null, // the request that was made last
    answered: null, // the one that `answer` is to
    hover: null, // the point under the cursor
    drawing: null, // what there is to point at

    computeLayoutSize: () => ({ minHeight: HEIGHT, minWidth: 0 }),

    draw(pen, _node, width, y, _height, plain) {
      plot.refresh();
      plot.paint(pen, { left: 10, top: y, width: width - 20, height: (plot.computedHeight ?? HEIGHT) - 8 }, plain);
    },

    paint(pen, area, plain = false) {
      plot.area = area;
      pen.save();
      pen.fillStyle = colours().background;
      pen.beginPath();
      pen.roundRect(area.left, area.top, area.width, area.height, 6);
      pen.fill();
      pen.clip();
      const [axis, levels] = shown().split(" ");
      const small = plain || app.canvas.ds.scale < SMALL;
      const view = { log: axis === "log", levels: levels !== undefined, plain: small, hover: plot.hover };
      if (plot.answer?.error) plot.drawing = drawError(pen, area, translated(plot.answer.error), plot.answer.not_yet);
      else plot.drawing = plot.answer && draw(pen, area, plot.answer, view);
      pen.restore();
    },

    wanted: () => JSON.stringify(request(node)),

    refresh() {
      if (!node.graph) return;
      if (plot.element.isConnected && plot.element.dataset.look !== look()) plot.show();
      const wanted = plot.wanted();
      if (wanted === plot.asked) return;
      plot.asked = wanted;
      clearTimeout(plot.timer);
      plot.timer = setTimeout(() => ask(wanted), PATIENCE);
    },

    show() {
      if (plot.element.isConnected) paintElement();
      node.setDirtyCanvas(true, false);
    },
  };

  const shown = () => (views.includes(node.properties.plot) ? node.properties.plot : views[0]);

  async function ask(body) {
    const answer = await answerTo(route, body).catch(() => ({ error: t("ComfyUI does not answer") }));
    if (body !== plot.asked) return; // another one is on its way
    plot.answer = answer;
    plot.answered = body;
    plot.show();
  }

  // The pointer, at places in the coordinates of `plot.area`

  let held = null; // the point that is dragged: what `edit` gave

  const points = () => (plot.answer?.error ? null : plot.drawing?.nearest && plot.drawing);

  function hover(place) {
    const inside = place && plot.area && isInside(plot.area, place);
    const found = inside ? (points()?.nearest(place[0]) ?? null) : null;
    if (held || found === plot.hover) return;
    plot.hover = found;
    plot.show();
  }

  /** Whether a press at a place takes hold of a point. */
  function press(place) {
    const i = edit ? (points()?.pointAt(...place) ?? null) : null;
    held = i === null ? null : edit(node, plot.answer, i);
    plot.hover = held ? i : plot.hover;
    return held !== null;
  }

  function drag([, y]) {
    held?.move(points().valueAt(y));
    plot.show();
  }

  /** Lets go of it; `changed` if it was dragged and not only clicked on. One step to undo. */
  function release(changed) {
    const point = held;
    held = null;
    if (!point || !changed) return;
    node.graph.beforeChange();
    point.drop();
    node.graph.afterChange();
    plot.refresh();
  }

  function changeView() {
    node.properties.plot = views[(views.indexOf(shown()) + 1) % views.length];
    plot.hover = null; // a point of the view before
    plot.show();
  }

  // On the canvas

  const widgetOnPos = node.getWidgetOnPos;
  node.getWidgetOnPos = function (...given) {
    const found = widgetOnPos.apply(this, given);
    return found === plot ? undefined : found; // a part of the node's body, which is dragged and resized there
  };
  const { onMouseDown } = node;
  node.onMouseDown = function (event, place, canvas) {
    if (onMouseDown?.call(this, event, place, canvas)) return true;
    if (!plot.area || !isInside(plot.area, place) || event.button) return false;
    const { pointer } = canvas;
    if (press(place)) {
      let changed = false;
      pointer.onDrag = ({ canvasX, canvasY }) => {
        changed = true;
        drag([canvasX - node.pos[0], canvasY - node.pos[1]]);
      };
      pointer.finally = () => release(changed);
      return true;
    }
    const select = pointer.onClick;
    pointer.onClick = (up) => {
      select?.(up);
      changeView();
    };
    return false;
  };
  after(node, "onMouseMove", (event, place) => hover(place));
  after(node, "onMouseLeave", () => hover(null));

  // In a Vue node

  const canvas = document.createElement("canvas");
  plot.element = document.createElement("div");
  plot.element.className = "widget-expands"; // by which front end 1.32.9 gives it the room that is left
  plot.element.style.cssText = `position: relative; height: 100%; min-height: ${HEIGHT}px; touch-action: none`;
  canvas.style.cssText = "position: absolute; inset: 0; width: 100%; height: 100%";
  canvas.setAttribute("role", "img");
  plot.element.append(canvas);
  new ResizeObserver(() => plot.show()).observe(plot.element);

  function paintElement() {
    const { clientWidth: width, clientHeight: height } = plot.element;
    if (!width) return;
    [canvas.width, canvas.height] = [width * SHARP, height * SHARP];
    const pen = canvas.getContext("2d");
    pen.scale(SHARP, SHARP);
    plot.element.dataset.look = look();
    plot.paint(pen, { left: 0, top: 0, width, height });
    canvas.setAttribute("aria-label", plot.drawing?.summary ?? t("plot"));
  }

  const placeOf = ({ clientX, clientY }) => {
    const { left, top, width } = canvas.getBoundingClientRect();
    const scale = width / canvas.clientWidth || 1;
    return [(clientX - left) / scale, (clientY - top) / scale];
  };

  canvas.addEventListener("pointermove", (event) => {
    if (!event.buttons) hover(placeOf(event));
  });
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const taken = press(placeOf(event));
    const body = taken ? null : canvas.closest("[data-node-id]");
    const start = [event.clientX, event.clientY];
    let still = true;
    const follow = (now) => {
      if (now.pointerId !== event.pointerId || now.passedOn) return;
      const away = Math.hypot(now.clientX - start[0], now.clientY - start[1]);
      if (away > STILL) still = false;
      if (taken && !still) drag(placeOf(now));
      passOn(now, body);
      if (now.type === "pointermove") return;
      for (const type of ["pointermove", "pointerup", "pointercancel"]) window.removeEventListener(type, follow, true);
      if (taken) release(!still);
      else if (still && now.type === "pointerup") changeView();
    };
    for (const type of ["pointermove", "pointerup", "pointercancel"]) window.addEventListener(type, follow, true);
    passOn(event, body);
    event.stopPropagation();
  });

  plots.add(plot);
  after(node, "onRemoved", () => plots.delete(plot));
  node.addCustomWidget(plot);
}

/** For changes that no canvas is redrawn for. */
export function refreshAll() {
  for (const plot of plots) plot.refresh();
}

/** Asks all anew once the server is there again: it may have been gone when it was asked, and may know other plans. */
export function askAgain() {
  for (const plot of plots) plot.asked = null;
  refreshAll();
}

/** Tells the element of a node of what the pointer does on a widget, which the front end keeps from it. */
function passOn(event, body) {
  if (!body || event.target === body) return;
  const copy = new PointerEvent(event.type, event);
  copy.passedOn = true;
  body.dispatchEvent(copy);
}

function isInside({ left, top, width, height }, [x, y]) {
  return x >= left && x <= left + width && y >= top && y <= top + height;
}

/** What a drawing looks like beside its answer: it changes with the theme and the zoom. */
function look() {
  return `${LiteGraph.WIDGET_BGCOLOR} ${LiteGraph.WIDGET_TEXT_COLOR} ${app.canvas.ds.scale < SMALL}`;
}
