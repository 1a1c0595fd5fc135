/**
 * The drawings: noise levels of a schedule, evaluations of a sampler, guidance along a run.
 *
 * Each is a function (pen, area, answer, view) that draws and gives a `Drawing`. `view` is {log, levels, plain,
 * hover}: whether the axis of the noise is logarithmic, whether the levels of a run are wanted and not its evaluations,
 * whether nothing but the curves is drawn, and the point under the cursor.
 */

import { colours } from "./colours.js";
import { short } from "./numbers.js";
import { counted, t, translated } from "./translate.js";

const MARGIN = { left: 44, right: 14, top: 38, bottom: 36 };
const PLAIN = { left: 8, right: 8, top: 8, bottom: 8 }; // curves alone
const LINE = 13; // height of a line of the title
const DOTS = 60; // points that can be told apart
const ORDERS = 24; // evaluations whose orders fit below the axis
const SCALES = 12; // scales of guidance that do
const NEAR = 9; // pixels from a point that belong to it
const SAME = 0.01; // of levels that are not told apart
const PARTS = /[\u2e80-\uffef]|[^\s\u2e80-\uffef]+|\s+/g; // of a text, between which a line may end: words, Chinese letters

/** The levels of a schedule, and the host's karras in grey. */
export function drawSigmas(pen, area, { sigmas, karras, levels }, view) {
  const last = sigmas.length - 1;
  const ends = { high: short(sigmas[0]), low: short(sigmas[last]) };
  const title = counted("1 step: sigma {high} to {low}", "{n} steps: sigma {high} to {low}", last, ends);
  const axes = new Axes(pen, area, title, Math.max(last, karras.length - 1), [...sigmas, ...karras], view);
  const compared = karras.length !== 0 && !sameLevels(karras, sigmas);
  axes.grid();
  if (compared) axes.line(karras, axes.colours.compared);
  axes.line(sigmas, axes.colours.levels);
  axes.dots(sigmas, () => false);
  axes.numbers(t("step"));
  axes.legend(compared ? [["karras", axes.colours.compared]] : []);
  return axes.finish(range(levels), sigmas, (i) => t("step {i}: sigma {sigma}", { i, sigma: short(sigmas[i]) }));
}

/** Where a sampler evaluates the model, the order of the update after each evaluation, and the guidance. */
export function drawPlan(pen, area, answer, view) {
  const { label, order, evaluations, guidance, passes, at_most } = answer;
  const told = evaluations.map(({ sigma }) => sigma);
  const levels = evaluations.map(({ level }) => level); // higher where the option `detail` lowers what the model is given
  const lowered = levels.some((level, i) => level !== told[i]);
  const parts = [counted("1 evaluation", "{n} evaluations", evaluations.length)];
  if (passes !== null && at_most) parts.push(counted("at most 1 pass", "at most {n} passes", passes));
  if (passes !== null && !at_most) parts.push(counted("1 pass", "{n} passes", passes));
  parts.push(t("order {n}", { n: order }));
  const title = `${translated(label)}: ${parts.join(", ")}`;
  const axes = new Axes(pen, area, title, evaluations.length - 1, [...levels, ...told], view, guidance ? 26 : 0);
  axes.grid();
  if (guidance) axes.scales(guidance);
  if (lowered) axes.line(told, axes.colours.compared, [4, 3]);
  axes.line(levels, axes.colours.levels);
  axes.dots(levels, (i) => evaluations[i].noise);
  axes.below(t("order"), evaluations.length <= ORDERS ? evaluations.map((evaluation) => evaluation.order) : []);
  axes.legend([
    ...(lowered ? [[t("given to the model"), axes.colours.compared]] : []),
    ...(guidance ? [[t("cfg"), axes.colours.guidance]] : []),
  ]);
  return axes.finish(over(answer), levels, (i) => {
    const { level, order, noise } = evaluations[i];
    const said = [t("evaluation {n}: sigma {sigma}", { n: i + 1, sigma: short(level) }), t("order {n}", { n: order })];
    if (guidance) said.push(t("cfg {scale}", { scale: short(guidance[i]) }));
    if (noise) said.push(t("adds noise"));
    return said.join(", ");
  });
}

/** A run of a node with sampler and schedule in one: its evaluations, or its levels. */
export function drawRun(pen, area, answer, view) {
  return view.levels ? drawSigmas(pen, area, answer.schedule, view) : drawPlan(pen, area, answer, view);
}

/** Which evaluations have guidance, and what those without save. */
export function drawGuidance(pen, area, answer, view) {
  const { evaluations, guidance, passes, at_most } = answer;
  const levels = evaluations.map(({ sigma }) => sigma);
  const guided = guidance.filter((scale) => scale !== 1).length;
  const whole = 2 * evaluations.length;
  const counts = { n: guided, of: evaluations.length };
  const parts = [at_most ? t("guidance in at most {n} of {of}", counts) : t("guidance in {n} of {of}", counts)];
  if (passes < whole) parts.push(t("{share} % of the time saved", { share: Math.round(100 * (1 - passes / whole)) }));
  const axes = new Axes(pen, area, parts.join(", "), evaluations.length - 1, levels, view, 26);
  axes.grid();
  axes.line(levels, axes.colours.levels);
  axes.scales(guidance, true);
  axes.dots(levels, (i) => guidance[i] === 1);
  axes.below(t("cfg"), evaluations.length <= SCALES ? guidance.map((scale) => short(scale)) : []);
  axes.legend([[t("cfg"), axes.colours.guidance]]);
  return axes.finish(over(answer), levels, (i) => {
    const said = t("evaluation {n}: sigma {sigma}", { n: i + 1, sigma: short(levels[i]) });
    return `${said}, ${guidance[i] === 1 ? t("no guidance") : t("cfg {scale}", { scale: short(guidance[i]) })}`;
  });
}

/** A message in the place of a drawing, in red but where nothing is wrong yet. */
export function drawError(pen, { left, top, width, height }, text, notYet = false) {
  pen.font = "11px sans-serif";
  pen.fillStyle = notYet ? colours().dim : colours().error;
  pen.textAlign = "left";
  pen.textBaseline = "top";
  const most = Math.max(1, Math.floor((height - 24) / 15));
  lines(pen, text, width - 24).slice(0, most).forEach((line, i) => pen.fillText(line, left + 12, top + 12 + 15 * i));
  return { summary: text };
}

/** A text in lines that fit into a width: two, of which the first ends with a colon, if such do. */
function lines(pen, text, width) {
  const fits = (line) => pen.measureText(line.trimEnd()).width < width;
  const halves = fits(text) ? [text] : text.split(/(?<=[:：]) ?/);
  if (halves.length <= 2 && halves.every(fits)) return halves;
  const found = [""];
  for (const [part] of text.matchAll(PARTS)) {
    const last = found.length - 1;
    if (fits(found[last] + part)) found[last] += part;
    else found.push(part.trimStart());
  }
  return found.map((line) => line.trim()).filter(Boolean);
}

/** What a plan is drawn over. */
function over({ assumed, published, unknown, levels }) {
  if (assumed) return t("example: {levels}, 10 steps", { levels: published ? "SD1.5" : "karras" });
  if (published && levels.known) return t("its published plan, on any schedule");
  if (published) return t("its published plan, if the model is SD1.5");
  if (unknown) return t("The sampler may follow a plan; this is known after a run.");
  return levels ? range(levels) : t("levels of the plan");
}

function range({ sigma_min, sigma_max, flow, known }) {
  if (!known) return flow ? t("range of a flow model, until a run") : t("range of Stable Diffusion, until a run");
  const ends = { low: short(sigma_min), high: short(sigma_max) };
  return flow ? t("range of a flow model, {low} to {high}", ends) : t("range of the model, {low} to {high}", ends);
}

class Axes {
  /** Points 0 to `last` from left to right; `right` more pixels are left for a second axis. Below a long title the rest is lower. */
  constructor(pen, { left, top, width, height }, title, last, ys, { log, plain, hover }, right = 0) {
    const margin = plain ? PLAIN : MARGIN;
    Object.assign(this, { pen, log, plain, hover, last: Math.max(last, 1), area: { left, width }, colours: colours() });
    pen.font = "10px sans-serif";
    this.title = title;
    this.rows = plain ? 1 : lines(pen, title, width - 12).length;
    this.left = left + margin.left;
    this.right = left + width - margin.right - (plain ? 0 : right);
    this.top = top + margin.top + LINE * (this.rows - 1);
    this.bottom = top + height - margin.bottom;
    const positive = ys.filter((y) => y > 0);
    this.max = Math.max(...positive);
    this.lowest = Math.min(...positive);
    this.zero = ys.includes(0);
    this.min = log ? this.lowest / 3 : 0;
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
  }

  x(i) {
    return this.left + (i / this.last) * (this.right - this.left);
  }

  /** Zero is at the bottom, on a logarithmic axis too. */
  y(value) {
    const share = this.log
      ? Math.log(Math.max(value, this.min) / this.min) / Math.log(this.max / this.min)
      : (value - this.min) / (this.max - this.min);
    return this.bottom - share * (this.bottom - this.top);
  }

  /** The value at a height. */
  valueAt(y) {
    const share = (this.bottom - y) / (this.bottom - this.top);
    return this.log ? this.min * (this.max / this.min) ** share : this.min + share * (this.max - this.min);
  }

  grid() {
    if (this.plain) return;
    const { pen } = this;
    pen.strokeStyle = this.colours.grid;
    pen.lineWidth = 1;
    for (const tick of this.ticks()) {
      pen.beginPath();
      pen.moveTo(this.left, this.y(tick));
      pen.lineTo(this.right, this.y(tick));
      pen.stroke();
      this.text(short(tick), this.left - 6, this.y(tick), "right");
    }
  }

  ticks() {
    if (!this.log) return [0, this.max / 2, this.max];
    const decades = [];
    for (let e = Math.ceil(Math.log10(this.lowest)); 10 ** e <= this.max; e++) decades.push(10 ** e);
    const few = Math.ceil(decades.length / Math.max(2, (this.bottom - this.top) / 18));
    const shown = decades.filter((_, i) => i % few === 0);
    return [...(this.zero ? [0] : []), ...(decades.length > 1 ? shown : [this.lowest, this.max])];
  }

  line(values, colour, dashes = []) {
    const { pen } = this;
    pen.strokeStyle = colour;
    pen.lineWidth = this.plain ? 3 : 1.5;
    pen.setLineDash(dashes);
    pen.beginPath();
    values.forEach((value, i) => pen.lineTo(this.x(i), this.y(value)));
    pen.stroke();
    pen.setLineDash([]);
  }

  /** Circles, empty where `empty` says so; the one under the cursor is larger. */
  dots(values, empty) {
    const { pen } = this;
    values.forEach((value, i) => {
      if (this.plain || (values.length > DOTS && i !== this.hover)) return;
      pen.beginPath();
      pen.arc(this.x(i), this.y(value), i === this.hover ? 4.5 : 2.5, 0, 2 * Math.PI);
      pen.fillStyle = empty(i) ? this.colours.background : this.colours.levels;
      pen.strokeStyle = this.colours.levels;
      pen.lineWidth = 1;
      pen.fill();
      pen.stroke();
    });
  }

  /** Guidance scales, on an axis of their own at the right. Filled from 1, which is no guidance, up or down. */
  scales(values, filled = false) {
    const { pen } = this;
    const [low, high] = [Math.min(0, ...values), Math.max(1, ...values)];
    const y = (value) => this.bottom - ((value - low) / (high - low)) * (this.bottom - this.top);
    const half = (this.x(1) - this.x(0)) / 2;
    const path = () =>
      values.forEach((value, i) => {
        pen.lineTo(Math.max(this.left, this.x(i) - half), y(value));
        pen.lineTo(Math.min(this.right, this.x(i) + half), y(value));
      });
    pen.strokeStyle = pen.fillStyle = this.colours.guidance;
    if (filled) {
      pen.globalAlpha *= 0.25;
      pen.beginPath();
      pen.moveTo(this.left, y(1));
      path();
      pen.lineTo(Math.min(this.right, this.x(values.length - 1) + half), y(1));
      pen.fill();
      pen.globalAlpha *= 4;
    }
    pen.lineWidth = this.plain ? 3 : 1.5;
    pen.beginPath();
    path();
    pen.stroke();
    for (const tick of new Set([high, low])) this.text(short(tick), this.right + 5, y(tick), "left", this.colours.guidance);
  }

  /** Numbers of the points on the axis, and what they count. */
  numbers(name) {
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((by) => this.last / by <= 12) ?? 1000;
    this.below(name, Array.from({ length: this.last + 1 }, (_, i) => (i % step ? "" : i)));
  }

  /** Words below the points, and before them what they are. */
  below(name, words) {
    words.forEach((word, i) => this.text(String(word), this.x(i), this.bottom + 10, "center"));
    if (words.length) this.text(name, this.left - 10, this.bottom + 10, "right", undefined, MARGIN.left - 12);
  }

  /** What lines of other colours are, in a row at the right above the axes. */
  legend(entries) {
    let right = this.right;
    for (const [name, colour] of entries) {
      this.text(name, right, this.top - 12, "right", colour);
      right -= this.pen.measureText(name).width + 12;
    }
  }

  /** Title, name of the axis and what is drawn; under the cursor the values there take the title's place. */
  finish(below, values, at) {
    const { pen, title, rows, hover, colours, left, area } = this;
    const seen = hover !== null && hover < values.length;
    const centre = area.left + area.width / 2;
    const shown = lines(pen, seen ? at(hover) : title, area.width - 12);
    const highest = this.top - 27 - LINE * (rows - 1);
    if (shown.length > rows) shown.splice(rows - 1, Infinity, shown.slice(rows - 1).join(" ")); // of a point: made narrower
    shown.forEach((line, i) => this.text(line, centre, highest + LINE * i, "center", colours.text));
    this.text(t("noise (sigma)"), left - 34, this.top - 12, "left", colours.levels);
    this.text(below, area.left + 10, this.bottom + 26, "left", undefined, area.width - 70);
    this.text(this.log ? t("log") : t("linear"), this.area.left + area.width - 10, this.bottom + 26, "right");
    const nearest = (x) => Math.min(values.length - 1, Math.max(0, Math.round(((x - left) / (this.right - left)) * this.last)));
    return {
      summary: `${title}; ${below}`,
      /** The point below or above a place. */
      nearest,
      /** The point at a place, or null. */
      pointAt: (x, y) => {
        const i = nearest(x);
        return Math.hypot(this.x(i) - x, this.y(values[i]) - y) <= NEAR ? i : null;
      },
      /** Where a point is. */
      place: (i) => [this.x(i), this.y(values[i])],
      valueAt: (y) => this.valueAt(y),
    };
  }

  text(text, x, y, align, colour = this.colours.dim, room = this.area.width - 12) {
    if (this.plain) return;
    const { pen } = this;
    pen.fillStyle = colour;
    pen.textAlign = align;
    pen.fillText(text, x, y, room);
  }
}

function sameLevels(a, b) {
  return a.length === b.length && a.every((level, i) => Math.abs(level - b[i]) <= SAME * level);
}
