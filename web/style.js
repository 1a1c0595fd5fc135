/** The looks of our elements, in the colours of the host's theme. */

import { element } from "./elements.js";

/** The theme's colour of lesser text, nearer to that of other text: in the dark theme its contrast is 4.3, below 4.5 (WCAG 1.4.3). */
export const QUIET = "color-mix(in srgb, var(--descrip-text, #999) 70%, var(--input-text))";

const RULES = `
.fewstep-box { display: flex; flex-direction: column; gap: 4px; min-width: 0; font: 12px sans-serif; box-sizing: border-box;
  pointer-events: auto; color: var(--input-text); }
.fewstep-box * { box-sizing: border-box; }
.fewstep-head { display: flex; align-items: center; justify-content: space-between; gap: 8px; min-height: 22px; }
.fewstep-heading { color: var(--input-text); font-weight: 600; }
.fewstep-box textarea, .fewstep-box input, .fewstep-list input { background: var(--comfy-input-bg); color: var(--input-text);
  border: 1px solid var(--border-color, #666); border-radius: 4px; padding: 3px 6px; width: 100%;
  font: 12px/17px ui-monospace, monospace; outline: none; }
.fewstep-box textarea { flex: 1 1 auto; min-height: 56px; resize: none; }
.fewstep-box textarea:focus, .fewstep-box input:focus { border-color: var(--input-text); }
.fewstep-one-line { flex-flow: row wrap; align-items: center; align-content: start; }
.fewstep-one-line .fewstep-head { flex: 0 0 30%; }
.fewstep-one-line input { flex: 1 1 0; min-width: 0; height: 24px; }
.fewstep-fault:empty { display: none; }
.fewstep-fault { flex: 0 0 auto; color: color-mix(in srgb, var(--error-text, #ff4444) 75%, var(--input-text)); width: 100%; line-height: 15px; overflow-wrap: anywhere; }
.fewstep-wrong textarea, .fewstep-wrong input { border-color: var(--error-text, #ff4444) !important; }
.fewstep-button { background: var(--comfy-input-bg); color: var(--input-text); border: 1px solid var(--border-color, #666);
  border-radius: 4px; padding: 1px 8px; font: 12px sans-serif; cursor: pointer; white-space: nowrap; }
.fewstep-button:hover:not(:disabled), .fewstep-row:hover, .fewstep-row:focus-visible { background: var(--border-color, #666); }
.fewstep-button:disabled { opacity: 0.5; cursor: default; }
.fewstep-list { position: fixed; z-index: 9999; width: 290px; padding: 6px; border-radius: 6px; background: var(--comfy-menu-bg);
  border: 1px solid var(--border-color, #666); box-shadow: 0 4px 16px #0008; font: 12px sans-serif; box-sizing: border-box; }
.fewstep-results { max-height: 320px; overflow-y: auto; margin-top: 6px; }
.fewstep-about { height: 84px; overflow-y: auto; margin-top: 6px; padding: 6px 6px 0; border-top: 1px solid var(--border-color, #666);
  color: ${QUIET}; font-size: 11px; line-height: 14px; overflow-wrap: anywhere; }
.fewstep-group { color: ${QUIET}; padding: 6px 6px 2px; }
.fewstep-row { display: flex; justify-content: space-between; gap: 8px; width: 100%; padding: 3px 6px; text-align: left;
  background: none; border: 0; border-radius: 4px; color: var(--input-text); font: 12px sans-serif; cursor: pointer; }
.fewstep-row small { color: ${QUIET}; font-size: 11px; text-align: right; }
.fewstep-panel { contain: inline-size; display: flex; flex-direction: column; gap: 6px; min-width: 0; font: 12px sans-serif; color: var(--input-text);
  box-sizing: border-box; pointer-events: auto; overflow: hidden; }
.fewstep-panel[hidden], .fewstep-panel [hidden] { display: none !important; }
.fewstep-table { overflow: auto; flex: 0 1 auto; max-height: 240px; }
.fewstep-table table { border-collapse: collapse; width: 100%; }
.fewstep-table th { text-align: left; font-weight: 600; padding: 1px 6px 1px 0; white-space: nowrap; line-height: 13px; }
.fewstep-table th[scope=col] { text-align: right; padding: 2px 6px; color: ${QUIET}; font-weight: 400; }
.fewstep-table th[scope=row] { width: 100%; max-width: 0; min-width: 110px; }
.fewstep-table th div, .fewstep-table th small { overflow: hidden; text-overflow: ellipsis; }
.fewstep-table th small { display: block; font-weight: 400; font-size: 11px; color: ${QUIET}; }
.fewstep-table td { padding: 0; border-top: 1px solid var(--border-color, #666); }
.fewstep-table th { border-top: 1px solid var(--border-color, #666); }
.fewstep-table tr:first-child th { border-top: 0; }
.fewstep-cell { width: 100%; min-height: 28px; padding: 0 6px; text-align: right; background: none; border: 1px solid transparent;
  color: var(--input-text); font: 12px sans-serif; cursor: pointer; font-variant-numeric: tabular-nums; white-space: nowrap; }
.fewstep-cell:hover:not(:disabled) { background: var(--border-color, #666); }
.fewstep-cell:disabled { opacity: 0.6; cursor: default; }
.fewstep-best { font-weight: 700; }
.fewstep-chosen { border-color: var(--input-text); border-radius: 3px; }
.fewstep-bar { display: flex; align-items: center; gap: 6px; flex: 0 0 auto; }
.fewstep-bar span { flex: 1 1 0; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.fewstep-slider { position: relative; flex: 1 1 0; min-height: 180px; overflow: hidden; background: var(--comfy-input-bg);
  border-radius: 4px; cursor: ew-resize; user-select: none; }
.fewstep-slider img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; image-rendering: auto; }
.fewstep-line { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #fff; box-shadow: 0 0 0 1px #0008;
  pointer-events: none; }
.fewstep-label { position: absolute; bottom: 4px; max-width: 48%; padding: 1px 6px; border-radius: 3px; background: #000b; color: #fff;
  font-size: 11px; pointer-events: none; overflow: hidden; text-overflow: ellipsis; }
.fewstep-left { left: 4px; }
.fewstep-right { right: 4px; text-align: right; }
.fewstep-hint { color: ${QUIET}; padding: 12px; text-align: center; }
.fewstep-pages { display: flex; justify-content: center; align-items: center; gap: 8px; }
.fewstep-added::after { content: "\\2713"; }
`;

let done = false;

/** Puts the rules into the page, once. */
export function style() {
  if (!done) addStyle(RULES);
  done = true;
}

/** Puts a style sheet into the page. */
export function addStyle(textContent) {
  document.head.append(element("style", { textContent }));
}
