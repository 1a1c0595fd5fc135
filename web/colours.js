/** Colours of the drawings on whatever background the theme has. */

const LINES = 3; // contrast of lines and dots with what they lie on (WCAG 1.4.11)
const TEXT = 4.5; // and of text (1.4.3)

let known = {}; // those of the theme that was seen last, and what they were made from

/** The colours of a plot on the background of the theme's widgets. */
export function colours() {
  const { WIDGET_BGCOLOR, WIDGET_TEXT_COLOR, WIDGET_SECONDARY_TEXT_COLOR, NODE_ERROR_COLOUR } = LiteGraph;
  const theme = [WIDGET_BGCOLOR, WIDGET_TEXT_COLOR, WIDGET_SECONDARY_TEXT_COLOR, NODE_ERROR_COLOUR].join();
  if (known.theme !== theme) known = { theme, colours: made() };
  return known.colours;
}

function made() {
  const background = rgb(LiteGraph.WIDGET_BGCOLOR);
  const on = (colour, ratio) => css(readable(rgb(colour), background, ratio));
  return {
    background: css(background),
    text: on(LiteGraph.WIDGET_TEXT_COLOR, TEXT),
    dim: on(LiteGraph.WIDGET_SECONDARY_TEXT_COLOR, TEXT),
    grid: css(mixed(background, rgb(LiteGraph.WIDGET_TEXT_COLOR), 0.15)),
    levels: on("#56b4e9", LINES), // these three: Okabe and Ito, told apart by all eyes
    guidance: on("#e69f00", LINES),
    compared: on("#808080", LINES),
    error: on(LiteGraph.NODE_ERROR_COLOUR ?? "#d55e00", TEXT),
  };
}

/** The ratio of contrast of two colours, 1 to 21. */
export function contrast(a, b) {
  const [low, high] = [luminance(rgb(a)), luminance(rgb(b))].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

/** A colour, mixed with black or white as far as the contrast asks for. */
function readable(colour, background, ratio) {
  const end = luminance(background) > 0.18 ? [0, 0, 0] : [255, 255, 255];
  for (let share = 0; share < 1; share += 0.05) {
    const found = mixed(colour, end, share);
    if (contrast(css(found), css(background)) >= ratio) return found;
  }
  return end;
}

function mixed(a, b, share) {
  return a.map((part, i) => Math.round(part + share * (b[i] - part)));
}

function luminance(colour) {
  const [r, g, b] = colour.map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

const pen = document.createElement("canvas").getContext("2d");

/** Of any colour of CSS. */
function rgb(colour) {
  pen.fillStyle = colour;
  const written = pen.fillStyle; // #rrggbb, or rgba(...) of one that is not opaque
  if (written[0] !== "#") return written.match(/[\d.]+/g).slice(0, 3).map(Number);
  return [1, 3, 5].map((i) => parseInt(written.slice(i, i + 2), 16));
}

function css(parts) {
  return `#${parts.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}
