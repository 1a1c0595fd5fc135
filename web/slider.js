/** Two pictures on one place with a line between them that follows the pointer: left of it is the one, right the other. */

import { api } from "../../scripts/api.js";
import { element } from "./elements.js";
import { style } from "./style.js";
import { t } from "./translate.js";

const KEY_STEP = 0.05; // of the width, for an arrow key
const LEAST = 200; // height in px

/** Such an element, with `show(one, other)`; each {image: a file as the host lists them, label}. */
export function makeSlider() {
  style();
  const images = [0, 1].map(() => element("img", { draggable: false }));
  const labels = ["left", "right"].map((side) => element("span", { className: `fewstep-label fewstep-${side}` }));
  const line = element("div", { className: "fewstep-line" });
  const frame = element("div", { className: "fewstep-slider", tabIndex: 0 }, ...images, line, ...labels);
  frame.setAttribute("role", "slider");
  frame.setAttribute("aria-label", t("Position of the dividing line"));

  let at;
  function move(share) {
    at = Math.min(1, Math.max(0, share));
    const percent = `${100 * at}%`;
    images[1].style.clipPath = `inset(0 0 0 ${percent})`;
    line.style.left = percent;
    frame.setAttribute("aria-valuenow", Math.round(100 * at));
  }

  frame.addEventListener("pointermove", (event) => {
    const { left, width } = frame.getBoundingClientRect();
    move((event.clientX - left) / width);
  });
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -KEY_STEP, ArrowRight: KEY_STEP }[event.key];
    if (!step) return;
    event.stopPropagation();
    event.preventDefault();
    move(at + step);
  });
  move(0.5);

  frame.show = (...pictures) => {
    frame.hidden = !pictures.every(Boolean);
    if (frame.hidden) return;
    pictures.forEach(({ image, label = "" }, i) => {
      images[i].src = fileAt(image);
      images[i].alt = label;
      labels[i].textContent = label;
      labels[i].hidden = !label;
    });
  };
  return frame;
}

/** The address of a file that the host lists as {filename, subfolder, type}. */
function fileAt({ filename, subfolder = "", type = "temp" }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** The slider of Few-Step Side by Side: the first pictures of both batches, others by a button. */
export function addSlider(node) {
  const slider = makeSlider();
  const [back, next] = [["‹", -1], ["›", 1]].map(([text, by]) => {
    const button = element("button", { type: "button", className: "fewstep-button", textContent: text });
    button.addEventListener("click", () => turn(by));
    return button;
  });
  const count = element("span");
  const pages = element("div", { className: "fewstep-pages", hidden: true }, back, count, next);
  const hint = element("div", { className: "fewstep-hint", textContent: t("Run the graph: the two pictures are shown here.") });
  const whole = element("div", { className: "fewstep-panel" }, hint, slider, pages);
  slider.hidden = true;
  let [ones, others, number] = [[], [], 0];

  function turn(by) {
    const most = Math.max(ones.length, others.length);
    number = (number + by + most) % most;
    const pick = (list) => list[Math.min(number, list.length - 1)];
    slider.show(...[ones, others].map((list, i) => pick(list) && { image: pick(list), label: labelOf(node, ["image_a", "image_b"][i]) }));
    count.textContent = `${number + 1} / ${most}`;
    pages.hidden = most < 2;
  }

  const widget = node.addDOMWidget("side_by_side", "fewstep_slider", whole, {
    serialize: false,
    getMinHeight: () => LEAST,
    getValue: () => "",
    setValue() {},
  });
  widget.serialize = false;
  widget.shows = (output) => {
    if (!output?.a_images || !output.b_images) return; // of a host that could not write them
    [ones, others, number] = [output.a_images, output.b_images, 0];
    hint.hidden = true;
    turn(0);
  };
}

/** What an input is called on the node. */
function labelOf(node, name) {
  return node.inputs.find((input) => input.name === name)?.localized_name ?? name;
}
