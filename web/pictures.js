/** The drawings: noise levels of a schedule, evaluations of a sampler. */

import { t, translated } from "./translate.js";

const BLUE = "#56b4e9";
const ORANGE = "#e69f00";
const MARGIN = { left: 40, right: 12, top: 24, bottom: 36 };
const MANY = 24; // evaluations whose orders no longer fit

/** The levels of a schedule, and the host's karras as a faint line. */
export function drawSigmas(pen, area, { sigmas, karras, levels }, log) {
  const axes = new Axes(pen, area, [0, Math.max(sigmas.length, karras.length) - 1], [...sigmas, ...karras], log);
  axes.grid();
  axes.line(karras, faint(), 2);
  axes.line(sigmas, BLUE, 1.5);
  if (sigmas.length <= 4 * MANY) sigmas.forEach((sigma, i) => axes.dot(i, sigma, BLUE));
  const steps = sigmas.length - 1;
  const ends = { steps, high: short(sigmas[0]), low: short(sigmas[steps]) };
  axes.above(steps === 1 ? t("1 step: sigma {high} to {low}", ends) : t("{steps} steps: sigma {high} to {low}", ends));
  axes.below(`${range(levels)}; ${log ? t("log axis") : t("linear axis")}`);
}

/** Where a sampler evaluates the model, the order of the update after each evaluation, and the guidance. */
export function drawPlan(pen, area, answer, log) {
  const { label, order, evaluations, guidance, passes, at_most } = answer;
  const levelsSeen = evaluations.map(({ sigma }) => sigma);
  const axes = new Axes(pen, area, [0, Math.max(1, evaluations.length - 1)], levelsSeen, log, guidance ? 34 : 0);
  axes.grid();
  if (guidance) axes.steps(guidance, ORANGE);
  axes.line(levelsSeen, BLUE, 1.5);
  evaluations.forEach(({ sigma, order, noise }, i) => {
    axes.dot(i, sigma, BLUE, noise);
    if (evaluations.length <= MANY) axes.under(i, order);
  });
  const counts = [t("{n} evaluations", { n: evaluations.length })];
  if (passes !== null) counts.push(at_most ? t("at most {n} passes", { n: passes }) : t("{n} passes", { n: passes }));
  axes.above(`${translated(label)}: ${[...counts, t("order {n}", { n: order })].join(", ")}`);
  axes.below(`${over(answer)}; ${log ? t("log axis") : t("linear axis")}`);
}

/** What a plan is drawn over. */
function over({ assumed, published, unknown, levels }) {
  if (assumed) return t("example: {levels}, 10 steps", { levels: published ? "SD1.5" : "karras" });
  if (published && levels.known) return t("its published plan, on any schedule");
  if (published) return t("its published plan, if the model is SD1.5");
  if (unknown) return t("may follow a plan: known after a run");
  return levels ? range(levels) : t("levels of the plan");
}

function range({ sigma_min, sigma_max, flow, known }) {
  if (!known) return t("assumed range: Stable Diffusion");
  const ends = { low: short(sigma_min), high: short(sigma_max) };
  return flow ? t("range of a flow model, {low} to {high}", ends) : t("range of the model, {low} to {high}", ends);
}

class Axes {
  constructor(pen, { left, top, width, height }, xs, ys, log, right = 0) {
    Object.assign(this, { pen, xs, log, centre: left + width / 2 });
    this.left = left + MARGIN.left;
    this.right = left + width - MARGIN.right - right;
    this.top = top + MARGIN.top;
    this.bottom = top + height - MARGIN.bottom;
    const positive = ys.filter((y) => y > 0);
    this.max = Math.max(...positive);
    this.lowest = Math.min(...positive);
    this.zero = ys.includes(0);
    this.min = log ? this.lowest / 3 : 0;
    pen.font = "10px sans-serif";
    pen.textBaseline = "middle";
  }

  x(i) {
    const [first, last] = this.xs;
    return this.left + ((i - first) / (last - first || 1)) * (this.right - this.left);
  }

  /** Zero is at the bottom, on a logarithmic axis too. */
  y(value) {
    const share = this.log
      ? Math.log(Math.max(value, this.min) / this.min) / Math.log(this.max / this.min)
      : (value - this.min) / (this.max - this.min);
    return this.bottom - share * (this.bottom - this.top);
  }

  grid() {
    const { pen } = this;
    pen.strokeStyle = faint();
    pen.lineWidth = 0.5;
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
    return [...(this.zero ? [0] : []), ...(decades.length > 1 ? decades : [this.lowest, this.max])];
  }

  line(values, colour, width) {
    const { pen } = this;
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    values.forEach((value, i) => pen.lineTo(this.x(i), this.y(value)));
    pen.stroke();
  }

  /** A circle, empty for an evaluation that is followed by added noise. */
  dot(i, value, colour, empty = false) {
    const { pen } = this;
    pen.beginPath();
    pen.arc(this.x(i), this.y(value), 2.5, 0, 2 * Math.PI);
    pen.fillStyle = empty ? LiteGraph.WIDGET_BGCOLOR : colour;
    pen.strokeStyle = colour;
    pen.lineWidth = 1;
    pen.fill();
    pen.stroke();
  }

  /** Guidance scales, on an axis of their own from 0 up, at the right. */
  steps(values, colour) {
    const { pen } = this;
    const most = Math.max(1, ...values);
    const y = (value) => this.bottom - (Math.max(0, value) / most) * (this.bottom - this.top);
    const half = (this.x(1) - this.x(0)) / 2;
    pen.strokeStyle = colour;
    pen.lineWidth = 1;
    pen.beginPath();
    values.forEach((value, i) => {
      pen.lineTo(Math.max(this.left, this.x(i) - half), y(value));
      pen.lineTo(Math.min(this.right, this.x(i) + half), y(value));
    });
    pen.stroke();
    this.text(`cfg ${short(most)}`, this.right + 4, this.top, "left", colour);
  }

  under(i, text) {
    this.text(String(text), this.x(i), this.bottom + 10, "center");
  }

  above(text) {
    this.text(text, this.centre, this.top - 13, "center", LiteGraph.WIDGET_TEXT_COLOR);
  }

  below(text) {
    this.text(text, this.centre, this.bottom + 25, "center");
  }

  text(text, x, y, align, colour = LiteGraph.WIDGET_SECONDARY_TEXT_COLOR) {
    const { pen } = this;
    pen.fillStyle = colour;
    pen.textAlign = align;
    pen.fillText(text, x, y, this.right + MARGIN.right - this.left + MARGIN.left);
  }
}

function faint() {
  return LiteGraph.WIDGET_OUTLINE_COLOR;
}

function short(number) {
  return String(+number.toPrecision(3));
}
