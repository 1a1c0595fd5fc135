/** The looks of our elements, in the colours of the host's theme. */

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
.fewstep-group { color: var(--descrip-text, #999); padding: 6px 6px 2px; }
.fewstep-row { display: flex; justify-content: space-between; gap: 8px; width: 100%; padding: 3px 6px; text-align: left;
  background: none; border: 0; border-radius: 4px; color: var(--input-text); font: 12px sans-serif; cursor: pointer; }
.fewstep-row small { color: var(--descrip-text, #999); font-size: 11px; text-align: right; }
.fewstep-added::after { content: "\\2713"; }
`;

let done = false;

/** Puts the rules into the page, once. */
export function style() {
  if (done) return;
  done = true;
  const sheet = document.createElement("style");
  sheet.textContent = RULES;
  document.head.append(sheet);
}
