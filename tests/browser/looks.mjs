/**
 * Shoots every node of the pack, new, and every workflow, in both designs of nodes and both themes, to be looked at.
 *
 *     node looks.mjs '{"url", "chromium", "modules", "root", "out"}'        (tools/screenshots.py --looks)
 */

import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { smallScreen } from "./layout.mjs";
import { add, clear, design, open } from "./session.mjs";

const given = JSON.parse(process.argv[2]);
const MARGIN = 12;

/** Where a node is on the page, with its title and what stands above it. */
function placeOf(page, id) {
  return page.evaluate(
    ([id, margin]) => {
      const node = app.graph.getNodeById(id);
      const { scale, offset } = app.canvas.ds;
      const { left, top } = app.canvas.canvas.getBoundingClientRect();
      const drawn = document.querySelector(`[data-node-id="${id}"]`)?.getBoundingClientRect();
      const [x, y, width, height] = node.boundingRect;
      const box = drawn ?? { x: (x + offset[0]) * scale + left, y: (y - 24 + offset[1]) * scale + top, width: width * scale, height: (height + 24) * scale };
      return { x: box.x - margin, y: box.y - margin, width: box.width + 2 * margin, height: box.height + 2 * margin };
    },
    [id, MARGIN],
  );
}

const { page, close } = await open(given.url, given);
try {
  const info = await (await page.request.get(`${given.url}/object_info`)).json();
  const nodes = Object.values(info).filter(({ python_module }) => python_module === "custom_nodes.fewstep");
  const workflows = readdirSync(join(given.root, "workflows")).filter((file) => file.endsWith(".json"));
  for (const vue of [false, true]) {
    await design(page, vue);
    for (const theme of ["dark", "light"]) {
      await page.evaluate((theme) => app.extensionManager.setting.set("Comfy.ColorPalette", theme), theme);
      const file = (kind, name) => join(given.out, `${kind} ${vue ? "elements" : "canvas"} ${theme} ${name}.png`);
      await page.setViewportSize({ width: 1400, height: 1100 });
      for (const { name } of nodes) {
        await clear(page);
        const id = await add(page, name);
        await page.waitForTimeout(900);
        await page.screenshot({ clip: await placeOf(page, id), path: file("node", name) });
      }
      await smallScreen(page);
      for (const name of workflows) {
        await page.evaluate((workflow) => app.loadGraphData(workflow), JSON.parse(readFileSync(join(given.root, "workflows", name))));
        await page.waitForFunction(() => !app.graph.extra.fewstep_fit);
        await page.waitForTimeout(1200);
        await page.screenshot({ path: file("workflow", name.slice(0, -5)) });
      }
    }
  }
} finally {
  await close();
}
