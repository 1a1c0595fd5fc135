/** A page with ComfyUI in headless Chromium, and what the checks do with it. */

import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { tmpdir } from "node:os";

const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
]; // prettier-ignore
const READY = () =>
  globalThis.app?.canvas?.graph && app.extensionManager && LiteGraph?.registered_node_types?.FewStepScheduler;

/**
 * Opens ComfyUI at `url`. Nothing but loopback is reached. Gives the page, what it complained of, and how to
 * load it in another language and to end.
 */
export async function open(url, { chromium, modules }) {
  const { chromium: browser } = createRequire(join(modules, "package.json"))("playwright-core");
  const profile = mkdtempSync(join(tmpdir(), "fewstep-browser-"));
  const context = await browser.launchPersistentContext(profile, {
    executablePath: chromium,
    headless: true,
    args: FLAGS,
    viewport: { width: 1400, height: 900 },
    locale: "en-US",
  });
  const close = async () => {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  };
  context.setDefaultNavigationTimeout(120000); // on a busy machine
  let locale = "en";
  try {
    await context.route("**", (route) =>
      ["127.0.0.1", "localhost"].includes(new URL(route.request().url()).hostname) ? route.continue() : route.abort(),
    );
    await context.route("**/api/settings", async (route) => {
      if (route.request().method() !== "GET") return route.fulfill({ status: 200 });
      const settings = await (await route.fetch()).json();
      const ours = {
        "Comfy.TutorialCompleted": true,
        "Comfy.InstalledVersion": "1.32.9",
        "Comfy.Locale": locale,
        "Comfy.Workflow.ShowMissingModelsWarning": false, // of checkpoints that are the user's
        "Comfy.Workflow.Persist": false, // each page begins empty
        "Comfy.Node.AlwaysShowAdvancedWidgets": true, // else Vue nodes show them at the press of a button
      };
      return route.fulfill({ json: { ...settings, ...ours } });
    });
    await context.route("**/api/settings/*", (route) => route.fulfill({ status: 200 })); // nothing is kept
    await context.addInitScript(() => {
      localStorage.setItem("vueNodesBannerDismissed", "true");
      const say = console.error;
      console.error = (...given) => say(...given, new Error().stack); // which scripts it comes from
    });
    const page = context.pages()[0] ?? (await context.newPage());
    const complaints = [];
    page.on("console", (message) => {
      if (message.type() === "error") complaints.push(`${message.text()} (${message.location().url})`);
    });
    page.on("pageerror", (error) => complaints.push(`${error.message}\n${error.stack}`));
    const load = async (language) => {
      locale = language;
      await page.goto(url, { timeout: 120000 });
      await page.waitForFunction(READY, null, { timeout: 120000 });
      await page.evaluate(blame);
    };
    await load("en");
    return { page, complaints, load, close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Has it complained of each time that a script of ours does what the front end says is deprecated. */
function blame() {
  LiteGraph.alwaysRepeatWarnings = true;
  LiteGraph.onDeprecationWarning = [
    (message) => {
      const { stack } = new Error(message);
      if (/extensions\/fewstep/.test(stack)) console.error(message);
    },
  ];
}

/** Switches between nodes drawn on the canvas and those made of elements ("Nodes 2.0"). */
export async function design(page, vue) {
  await page.evaluate((vue) => app.extensionManager.setting.set("Comfy.VueNodes.Enabled", vue), vue);
}

/** Empties the graph and puts the view where nodes at [0, 0] are seen. */
export async function clear(page) {
  await page.evaluate(() => {
    const { lastNodeId } = app.graph.state;
    app.graph.clear();
    app.graph.state.lastNodeId = lastNodeId; // some front ends keep what they know of a node by its id
    app.nodeOutputs = {}; // of nodes with the same ids
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [120, 120];
  });
}

/** Adds a node at a place; gives its id. */
export async function add(page, type, at = [0, 0]) {
  return page.evaluate(
    ([type, at]) => {
      const node = LiteGraph.createNode(type);
      node.pos = at;
      app.graph.add(node);
      return node.id;
    },
    [type, at],
  );
}

/** Sets a widget as a click does. */
export async function set(page, id, name, value) {
  await page.evaluate(
    ([id, name, value]) => {
      const widget = app.graph.getNodeById(id).widgets.find((widget) => widget.name === name);
      widget.value = value;
      widget.callback?.(value, app.canvas, app.graph.getNodeById(id));
      app.graph.setDirtyCanvas(true, true);
    },
    [id, name, value],
  );
}

/** What the plot of a node was answered, once it is that to what the widgets say now. */
export async function answer(page, id) {
  const handle = await page.waitForFunction(
    (id) => {
      const plot = app.graph.getNodeById(id).widgets.find((widget) => widget.name === "plot");
      return plot && plot.answered === plot.wanted() && plot.answer;
    },
    id,
    { timeout: 10000 },
  );
  return handle.jsonValue();
}

/** The plot of a node made of elements. */
export function plotElement(page, id) {
  return page.locator(`[data-node-id="${id}"] canvas`);
}

/** Where a point of the plot of a node is on the page. */
export async function pointOf(page, id, i) {
  return page.evaluate(
    ([id, i]) => {
      const node = app.graph.getNodeById(id);
      const plot = node.widgets.find((widget) => widget.name === "plot");
      const [x, y] = plot.drawing.place(i);
      const { scale, offset } = app.canvas.ds;
      if (LiteGraph.vueNodesMode) {
        const { left, top } = plot.element.getBoundingClientRect();
        return [left + x * scale, top + y * scale];
      }
      const { left, top } = app.canvas.canvas.getBoundingClientRect();
      return [(node.pos[0] + x + offset[0]) * scale + left, (node.pos[1] + y + offset[1]) * scale + top];
    },
    [id, i],
  );
}

/** The picture of a node, cut out of the canvas; of one made of elements, that of its plot. */
export async function picture(page, id, path) {
  if (await page.evaluate(() => LiteGraph.vueNodesMode)) return plotElement(page, id).screenshot({ path });
  await page.evaluate(() => app.canvas.deselectAll?.());
  await page.waitForTimeout(150);
  const clip = await page.evaluate((id) => {
    const node = app.graph.getNodeById(id);
    const { scale, offset } = app.canvas.ds;
    const place = app.canvas.canvas.getBoundingClientRect();
    const at = (k) => (node.pos[k] + offset[k]) * scale + (k ? place.top : place.left);
    const title = LiteGraph.NODE_TITLE_HEIGHT * scale;
    return {
      x: at(0) - 4,
      y: at(1) - title - 4,
      width: node.size[0] * scale + 8,
      height: node.size[1] * scale + title + 8,
    };
  }, id);
  return page.screenshot({ clip, path });
}
