/** Says something at the edge of the page, for a while. */

import { app } from "../../scripts/app.js";

/** A message of the host's kinds: "success", "info", "warn", "error". */
export function toast(severity, summary, detail, life = 6000) {
  app.extensionManager.toast.add({ severity, summary, detail, life });
}
