/**
 * What Few-Step Compare found, as a table on the node: a cell is chosen by a click, its sampler and schedule are put into
 * the graph, and two cells are laid one over the other.
 */

import { element } from "./elements.js";
import { short } from "./numbers.js";
import { makeSlider } from "./slider.js";
import { style } from "./style.js";
import { toast } from "./toast.js";
import { counted, t, translated } from "./translate.js";
import { both, placesFor, titled, whyNone } from "./use.js";

const HEIGHTS = { row: 30, head: 84, slider: 280 }; // in px
const WIDTHS = { name: 150, column: 64 };
const LATER = [500, 2000]; // ms until the host has put its own things below
const MOST_ROWS = 8; // that are seen without scrolling

/** Adds the table at the end of the node, empty until it has run. It is not saved. */
export function addResults(node) {
  style();
  const whole = element("div", { className: "fewstep-panel" });
  const slider = makeSlider();
  slider.hidden = true;
  let found = null; // of the last run
  let chosen = []; // the cells that are chosen, one or two
  let open = false; // whether the slider is

  const widget = node.addDOMWidget("results", "fewstep_results", whole, {
    serialize: false,
    getMinHeight: height,
    getValue: () => "",
    setValue() {},
    hideOnZoom: true,
  });
  widget.serialize = false;
  widget.results = () => found;
  widget.shows = (output) => {
    if (!output?.fewstep_compare) return;
    [found, chosen, open] = [output.fewstep_compare[0], [], false];
    const best = found.cells.findLastIndex(({ best }) => best);
    if (best >= 0) chosen = [best];
    fill();
    for (const wait of LATER) setTimeout(fit, wait);
  };
  fill();

  function height() {
    if (!found) return 0;
    return HEIGHTS.head + HEIGHTS.row * (1 + Math.min(found.rows.length, MOST_ROWS)) + (open ? HEIGHTS.slider : 0);
  }

  function fill() {
    whole.hidden = !found;
    if (!found) return;
    whole.replaceChildren(tableOf(), barOf(), slider);
    slider.hidden = true;
    if (open) slider.show(...chosen.map((number) => ({ image: imageOf(number), label: named(number) })));
    fit();
  }

  function fit() {
    const wide = WIDTHS.name + WIDTHS.column * found.columns.length;
    const [width, high] = node.computeSize();
    node.setSize([Math.max(node.size[0], width, wide), Math.max(node.size[1], high)]);
    node.setDirtyCanvas(true, true);
  }

  function tableOf() {
    const head = element("tr", {}, ...["", ...found.columns.map(inSteps)].map(heading));
    const rows = found.rows.map(([sampler, schedule], j) => {
      const name = element("th", { scope: "row", title: `${sampler.label}, ${schedule.label}` });
      name.append(element("div", { textContent: sampler.label }), element("small", { textContent: schedule.label }));
      return element("tr", {}, name, ...found.columns.map((_, k) => place(k * found.rows.length + j)));
    });
    return element("div", { className: "fewstep-table" }, element("table", {}, head, ...rows));
  }

  function place(number) {
    const { evaluations, error, best, fault } = found.cells[number];
    const button = element("button", { type: "button", className: "fewstep-cell" });
    const text = evaluations === null ? (fault ? t("failed") : t("not run")) : error === null ? t("done") : short(error, 2);
    button.textContent = `${text}${best ? " ★" : ""}`;
    button.title = fault ? translated(fault) : about(number);
    button.classList.toggle("fewstep-best", best);
    button.classList.toggle("fewstep-chosen", chosen.includes(number));
    button.setAttribute("aria-pressed", chosen.includes(number));
    button.disabled = evaluations === null;
    button.addEventListener("click", (event) => {
      const more = event.shiftKey || open;
      chosen = chosen.includes(number) ? chosen : more ? [...chosen, number].slice(-2) : [number];
      fill();
    });
    return element("td", {}, button);
  }

  function barOf() {
    const at = chosen.at(-1);
    const use = element("button", { type: "button", className: "fewstep-button", textContent: t("Use this"), disabled: at === undefined });
    use.addEventListener("click", (event) => offer(event, at));
    const lay = element("button", { type: "button", className: "fewstep-button", textContent: open ? t("Close") : t("Compare two") });
    lay.disabled = found.cells.filter(({ image }) => image).length < 2;
    lay.addEventListener("click", () => {
      open = !open;
      while (open && chosen.length < 2) chosen = [another(), ...chosen];
      if (!open) chosen = chosen.slice(-1);
      fill();
    });
    const text = at === undefined ? t("Choose a cell.") : named(at);
    const said = open ? t("Click another cell.") : text;
    return element("div", { className: "fewstep-bar" }, element("span", { textContent: said, title: said }), use, lay);
  }

  /** What those that are chosen are compared with first: a cell that is the best of its column, or any other. */
  function another() {
    const pictured = found.cells.map((_, k) => k).filter((k) => imageOf(k) && !chosen.includes(k));
    return pictured.find((k) => found.cells[k].best) ?? pictured[0];
  }

  function offer(event, number) {
    const pair = pairOf(number);
    const places = placesFor(node, pair);
    if (!places.length) return toast("warn", node.title, whyNone(pair));
    const set = (place) => {
      const made = place.set();
      const names = both(...(made ?? place.nodes).map(titled));
      const values = { cell: named(number), names };
      toast("success", node.title, made ? t("{cell}: added {names}.", values) : t("{cell}: set in {names}.", values));
    };
    if (places.length === 1) return set(places[0]);
    new LiteGraph.ContextMenu(
      places.map((place) => ({ content: place.title, callback: () => set(place) })),
      { event, title: named(number), parentMenu: null },
    );
  }

  function pairOf(number) {
    const [sampler, schedule] = found.rows[number % found.rows.length];
    return { sampler, schedule, steps: found.columns[Math.floor(number / found.rows.length)] };
  }

  function named(number) {
    const { sampler, schedule, steps } = pairOf(number);
    return `${sampler.label}, ${schedule.label}, ${inSteps(steps)}`;
  }

  function about(number) {
    const { evaluations, same } = found.cells[number];
    const text = `${named(number)}: ${counted("1 evaluation", "{n} evaluations", evaluations)}`;
    return same === number ? text : t("{text}, the same run as another", { text });
  }

  function imageOf(number) {
    const { image, same } = found.cells[number];
    return image ?? found.cells[same]?.image;
  }
}

function inSteps(steps) {
  return counted("1 step", "{n} steps", steps);
}

function heading(text) {
  return element("th", { scope: "col", textContent: text });
}
