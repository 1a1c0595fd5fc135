/**
 * Everything that is checked in a browser, in one session:
 *
 *     node checks.mjs '{"url", "chromium", "modules", "root", "out", "only"}'
 *
 * Prints {name of a check: null, or what went wrong} as JSON. tests/test_comfyui/test_browser.py runs it.
 */

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { add, answer, clear, design, open, picture, plotElement, set } from "./session.mjs";

const given = JSON.parse(process.argv[2]);
const checks = new Map();
const check = (name, body) => checks.set(name, { body, vue: false });

/** A check for nodes drawn on the canvas, and once more for those made of elements ("Nodes 2.0"). */
const both = (name, body) => {
  check(name, body);
  checks.set(`${name}, with Vue nodes`, { body, vue: true });
};

/** What the host complains of by itself: files that are optional, sites that are not reached, routes of newer hosts. */
const HOSTS_OWN = [
  /user\.css/, /\/api\/userdata/, /templates\//, /Content Security Policy/, /ERR_FAILED/, /reading 'id'/, /\/api\/jobs/,
  /JobsApiError/, /graph accessed before initialization/,
]; // prettier-ignore

/** The search box and what it found, before version 1.45 of the front end and from then on. */
const SEARCH_BOX = [
  ".comfy-vue-node-search-container input",
  ...["Add a node...", "添加节点..."].map((text) => `input[role=combobox][placeholder="${text}"]`),
].join(", ");
const FOUND = ".comfy-vue-node-search-container li, [role=option]";

check("loads without complaints", async ({ complaints }) => {
  const ours = complaints.filter((text) => !HOSTS_OWN.some((known) => known.test(text)));
  assert.deepEqual(ours, []);
});

check("every node can be added from the search box", async ({ page }) => {
  const names = (await nodesOfThePack(page)).map(({ display_name }) => display_name);
  const ours = names.filter((name) => name.startsWith("Few-Step"));
  assert.ok(ours.length > 8);
  await clear(page);
  await search(page, "Few-Step", ours.at(-1));
  const found = await page.locator(FOUND).allInnerTexts();
  assert.deepEqual(ours.filter((name) => !found.some((text) => text.startsWith(name))), []);
  for (const name of ["Few-Step Sampler", "Few-Step Guidance Patch"]) { // words are added to both in the search box
    await clear(page);
    await search(page, name, name);
    await endSearch(page, "Enter");
    assert.deepEqual(await page.evaluate(() => app.graph._nodes.map((node) => node.title)), [name]);
  }
});

check("every node has its name as its title", async ({ page }) => {
  const definitions = await nodesOfThePack(page);
  const titles = await page.evaluate((types) => types.map((type) => LiteGraph.createNode(type).title), definitions.map(({ name }) => name));
  assert.deepEqual(titles, definitions.map(({ display_name }) => display_name));
});

check("search words find the nodes", async ({ page }) => {
  const wanted = { "dpm++": "Few-Step Sampler", "2m": "Few-Step Sampler", amed: "Few-Step Train AMED", karras: "Few-Step Scheduler" };
  await clear(page);
  for (const [words, title] of Object.entries(wanted)) await search(page, words, title);
  await page.evaluate(() => document.activeElement.blur());
  await endSearch(page, "Escape");
});

both("the sigma plot follows the widgets", async ({ page }) => {
  await clear(page);
  const id = await add(page, "FewStepScheduler");
  const first = await answer(page, id);
  assert.equal(first.sigmas.length, 11);
  close(first.sigmas, first.karras); // the default is karras
  assert.equal(first.levels.known, false);
  const before = await picture(page, id);
  await set(page, id, "schedule", "ays");
  await set(page, id, "steps", 6);
  const second = await answer(page, id);
  assert.equal(second.sigmas.length, 7);
  assert.notDeepEqual(second.sigmas, second.karras);
  const after = await picture(page, id);
  assert.ok(!before.equals(after), "the picture has not changed");
  await click(page, id, "plot");
  assert.ok(!after.equals(await picture(page, id)), "a click does not change the axis");
  await set(page, id, "schedule", "karras");
  await set(page, id, "rho", 0.5);
  assert.match((await answer(page, id)).error, /rho/);
});

both("the plan plot follows sampler, schedule and guidance", async ({ page }) => {
  await load(page, "demo");
  const [sampler, schedule, custom] = await ids(page, "FewStepSampler", "FewStepScheduler", "SamplerCustom");
  await set(page, schedule, "steps", 6);
  await set(page, sampler, "sampler", "dpmpp_2s");
  await set(page, custom, "cfg", 3);
  const twice = await answer(page, sampler);
  assert.equal(twice.evaluations.length, 11); // two a step, and one to sigma 0
  assert.equal(twice.passes, 22);
  assert.deepEqual(twice.evaluations.map(({ order }) => order), [1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1]);
  await set(page, custom, "cfg", 1);
  await page.evaluate(() => app.canvas.draw(true, true));
  assert.equal((await answer(page, sampler)).passes, 11);
  await set(page, schedule, "steps", 10);
  await set(page, sampler, "sampler", "amed_dpm_2m");
  assert.equal((await answer(page, sampler)).published, true); // until a model is known
  await set(page, sampler, "sampler", "dpm_adaptive");
  assert.match((await answer(page, sampler)).error, /as it goes/);
});

both("the plan plot follows split levels", async ({ page }) => {
  await load(page, "SDXL text to image, base and refiner");
  const [sampler, split] = await ids(page, "FewStepSampler", "SplitSigmas");
  const drawn = await answer(page, sampler);
  assert.equal(drawn.evaluations.length, 16);
  assert.equal(drawn.assumed, false);
  await set(page, split, "step", 12);
  assert.equal((await answer(page, sampler)).evaluations.length, 12);
});

check("an option that a link feeds is shown for every choice", async ({ page }) => {
  await clear(page);
  const [value, sampler] = [await add(page, "PrimitiveFloat"), await add(page, "FewStepSampler", [400, 0])];
  const visible = () =>
    page.evaluate((id) => app.graph.getNodeById(id).widgets.some((w) => w.name === "s_noise" && !w.options.hidden), sampler);
  assert.equal(await visible(), false);
  await connect(page, value, 0, sampler, "s_noise");
  await set(page, sampler, "sampler", "euler");
  assert.equal(await visible(), true);
  await page.evaluate(() => app.loadGraphData(app.graph.serialize()));
  await page.waitForTimeout(100);
  assert.equal(await visible(), true);
});

check("the plan plot follows levels that are typed in, and an override of the guidance", async ({ page }) => {
  const missing = await page.evaluate(() => ["ManualSigmas", "CFGOverride"].filter((type) => !LiteGraph.registered_node_types[type]));
  if (missing.length) return; // nodes of hosts of 2026
  await load(page, "demo");
  const [sampler, model, custom] = await ids(page, "FewStepSampler", "FewStepDemoModel", "SamplerCustom");
  const [typed, override] = [await add(page, "ManualSigmas", [0, 600]), await add(page, "CFGOverride", [400, 600])];
  await set(page, typed, "sigmas", "14, 5, 2, 0.5, 0");
  await connect(page, typed, 0, custom, "sigmas");
  const drawn = await answer(page, sampler);
  assert.deepEqual(drawn.evaluations.map(({ sigma }) => sigma), [14, 5, 2, 0.5]);
  assert.equal(drawn.passes, 8);
  await connect(page, model, 0, override, "model");
  await connect(page, override, 0, custom, "model");
  await set(page, override, "cfg", 1);
  assert.equal((await answer(page, sampler)).passes, 4);
  await set(page, override, "end_percent", 0.5);
  assert.equal((await answer(page, sampler)).passes, null); // it is not known where half of the run is
});

check("widgets that the sampler does not have are hidden, and saved", async ({ page }) => {
  await clear(page);
  const id = await add(page, "FewStepSampler");
  const visible = () =>
    page.evaluate((id) => app.graph.getNodeById(id).widgets.filter((w) => !w.hidden).map((w) => w.name), id);
  const saved = () => page.evaluate((id) => app.graph.getNodeById(id).serialize().widgets_values, id);
  const tall = () => page.evaluate((id) => app.graph.getNodeById(id).size[1], id);
  assert.deepEqual(await visible(), ["sampler", "solver_type", "lower_order_final", "corrected_start", "plot"]);
  const [values, height] = [await saved(), await tall()];
  await set(page, id, "sampler", "euler");
  assert.deepEqual(await visible(), ["sampler", "plot"]);
  assert.ok((await tall()) < height);
  assert.deepEqual(await saved(), ["euler", ...values.slice(1)]);
  const names = await page.evaluate(
    (id) => app.graph.getNodeById(id).widgets.filter((w) => w.serialize !== false).map((w) => w.name),
    id,
  );
  assert.equal(values.length, names.length);
  const prompt = await page.evaluate(async () => (await app.graphToPrompt()).output);
  assert.deepEqual(Object.keys(prompt[id].inputs).sort(), [...names].sort());
});

/** Waits until an assertion holds: the front end lays nodes out when it draws them next. */
async function eventually(page, holds) {
  for (let left = 50; ; left--) {
    try {
      return await holds();
    } catch (error) {
      if (!left) throw error;
      await page.waitForTimeout(200);
    }
  }
}

check("the typed list of a schedule is shown where it is asked for, and drawn", async ({ page }) => {
  await clear(page);
  const id = await add(page, "FewStepScheduler");
  const lists = () => page.locator("textarea:visible").count();
  const tall = () => page.evaluate((id) => app.graph.getNodeById(id).size[1], id);
  await page.waitForTimeout(500); // until the new node is as tall as it wants to be
  const [none, height] = [await lists(), await tall()];
  await set(page, id, "schedule", "manual");
  await eventually(page, async () => assert.equal(await lists(), none + 1));
  await eventually(page, async () => assert.ok((await tall()) > height - 40)); // a few lines instead of `rho`
  await set(page, id, "steps", 3);
  await set(page, id, "sigmas", "14\n5, 1");
  assert.deepEqual((await answer(page, id)).sigmas, [14, 5, 1, 0]);
  await set(page, id, "schedule", "karras");
  await eventually(page, async () => assert.deepEqual([await lists(), await tall()], [none, height]));
});

check("defaults are shown", async ({ page }) => {
  await clear(page);
  const id = await add(page, "FewStepSampler");
  const shown = (name) =>
    page.evaluate(([id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name)._displayValue, [id, name]);
  assert.equal(await shown("solver_type"), "default: midpoint");
  await set(page, id, "solver_type", "heun");
  assert.equal(await shown("solver_type"), "heun");
  await set(page, id, "sampler", "unipc");
  assert.equal(await shown("order"), "default: 3");
  const guidance = await add(page, "FewStepGuidance");
  const start = () =>
    page.evaluate((id) => app.graph.getNodeById(id).widgets.find((w) => w.name === "sigma_start")._displayValue, guidance);
  assert.equal(await start(), "auto");
  await set(page, guidance, "sigma_start", 3);
  assert.equal(await start(), "3.00");
});

check("Vue nodes show the widgets that the sampler has, and the plot below", async ({ page, complaints }) => {
  await clear(page);
  const before = complaints.length;
  await design(page, true);
  try {
    const id = await add(page, "FewStepSampler");
    const node = page.locator(`[data-node-id="${id}"]`);
    const [rows, canvas] = [node.locator(".lg-node-widget"), plotElement(page, id)];
    await canvas.waitFor({ timeout: 5000 });
    const shown = async (id) => {
      const texts = await page.locator(`[data-node-id="${id}"] .lg-node-widget`).allInnerTexts();
      return texts.map((text) => text.split("\n")[0]);
    };
    const wanted = (id) =>
      page.evaluate((id) => app.graph.getNodeById(id).widgets.filter((w) => !w.hidden).map((w) => w.name), id);
    const fits = async (id) => {
      await page.waitForTimeout(200);
      assert.deepEqual(await shown(id), [...(await wanted(id)).slice(0, -1), ""]); // the plot has no name
    };
    await answer(page, id);
    await fits(id);
    const first = await canvas.screenshot();
    for (const sampler of ["unipc", "euler", "dpm_2s"]) {
      await rows.first().getByRole("combobox").click();
      await page.getByRole("option", { name: sampler, exact: true }).click();
      await answer(page, id);
      await fits(id);
      const [last, plot, whole] = await Promise.all([rows.nth(-2), canvas, node].map((part) => part.boundingBox()));
      assert.ok(last.y + last.height <= plot.y, "the plot lies over a widget");
      assert.ok(plot.y + plot.height <= whole.y + whole.height, "the plot lies outside");
    }
    assert.ok(!first.equals(await canvas.screenshot()), "the picture has not changed");
    await fits(await add(page, "FewStepSampler", [400, 0]));
    await fits(id); // as before
    await load(page, "demo");
    const [schedule] = await ids(page, "FewStepScheduler");
    await fits(schedule);
    await set(page, schedule, "schedule", "gits");
    await fits(schedule);
  } finally {
    await design(page, false);
  }
  assert.deepEqual(complaints.slice(before).filter((text) => /extensions\/few/.test(text)), []);
});

both("workflows open with no missing node and no red input, and are queued as the tests do", async ({ page, vue }) => {
  for (const name of vue ? workflows().slice(0, 3) : workflows()) {
    await load(page, name);
    const red = await page.evaluate(() =>
      app.graph._nodes
        .filter((node) => node.has_errors || !LiteGraph.registered_node_types[node.type])
        .map((node) => node.type),
    );
    const loaders = ["CheckpointLoaderSimple", "LoadImage"]; // red from version 1.45 on, where their files are not here
    assert.deepEqual(red.filter((type) => !loaders.includes(type)), [], name);
    const values = await page.evaluate(() =>
      app.graph._nodes.flatMap((node) =>
        (node.widgets ?? [])
          .filter((w) => w.type === "combo" && Array.isArray(w.options.values) && !w.options.values.includes(w.value))
          .map((w) => `${node.type}.${w.name} = ${w.value}`),
      ),
    );
    const files = /\.(safetensors|ckpt|pth?|png|jpg)$/; // of the user, who may not have them
    assert.deepEqual(values.filter((value) => !files.test(value)), [], name);
    const { output } = await page.evaluate(() => app.graphToPrompt());
    for (const node of Object.values(output)) delete node._meta;
    const twin = join(given.root, "tests", "prompts", `${name}.json`); // made by tools/workflow.py
    assert.deepEqual(output, JSON.parse(readFileSync(twin)), name);
  }
});

check("without the pack a workflow opens, says what is missing, and keeps what it has", async ({ page }) => {
  const text = readFileSync(join(given.root, "workflows", "demo.json"), "utf8");
  const saved = JSON.parse(text.replaceAll('"type": "FewStep', '"type": "Unknown')); // as where it is not installed
  await page.evaluate((workflow) => void app.loadGraphData(workflow), saved);
  const dialog = page.locator(".p-dialog");
  const toast = page.locator("[data-testid=error-overlay]"); // in its place from version 1.45 on
  await dialog.getByText("UnknownScheduler").or(toast).first().waitFor({ timeout: 5000 });
  const opened = await page.evaluate(() => app.graph.serialize());
  assert.equal(opened.links.length, saved.links.length);
  for (const node of saved.nodes) {
    const { type, widgets_values, properties } = opened.nodes.find(({ id }) => String(id) === String(node.id));
    assert.deepEqual([type, widgets_values, properties.cnr_id], [node.type, node.widgets_values, node.properties.cnr_id]);
  }
  await page.keyboard.press("Escape");
  await dialog.waitFor({ state: "detached", timeout: 5000 });
});

both("the demo renders from the Run button", async ({ page, vue }) => {
  await clear(page);
  await load(page, "demo");
  const [schedule, custom] = await ids(page, "FewStepScheduler", "SamplerCustom");
  await set(page, schedule, "steps", vue ? 6 : 5); // else the host has its levels in its cache, and does not tell them
  await set(page, custom, "noise_seed", Date.now()); // nor the images, which another test may have made
  await page.locator('[data-testid="queue-button"]').click();
  await page.waitForFunction(
    () =>
      LiteGraph.vueNodesMode
        ? Object.values(app.nodeOutputs).some(({ images }) => images?.length)
        : app.graph._nodes.some((node) => node.imgs?.[0]?.naturalWidth),
    null,
    { timeout: 60000 },
  );
  const errors = await page.evaluate(() => app.lastNodeErrors);
  assert.deepEqual(errors ?? {}, {});
  const { levels } = await answer(page, schedule);
  assert.equal(levels.known, true); // those of the model that ran
  const [sampler] = await ids(page, "FewStepSampler");
  await set(page, schedule, "steps", 10);
  await set(page, sampler, "sampler", "amed_dpm_2m");
  const { published, unknown } = await answer(page, sampler);
  assert.deepEqual([published, unknown], [false, false]); // it is no SD1.5
});

check("a help page opens, with its picture", async ({ page }) => {
  await clear(page);
  const id = await add(page, "FewStepScheduler", [300, 200]);
  await page.evaluate((id) => app.canvas.selectNode(app.graph.getNodeById(id)), id);
  await page.getByTestId("info-button").click();
  const help = page.locator(".node-help-content");
  await help.getByText("karras").first().waitFor({ timeout: 5000 });
  await page.waitForFunction(() => document.querySelector(".node-help-content img")?.naturalWidth > 0, null, {
    timeout: 5000,
  });
});

check("in Chinese, nodes have Chinese names", async ({ page, load }) => {
  await load("zh");
  await clear(page);
  const id = await add(page, "FewStepSampler");
  const shown = await page.evaluate((id) => {
    const { title, widgets } = app.graph.getNodeById(id);
    return [title, widgets[0].label];
  }, id);
  assert.deepEqual(shown, ["Few-Step 采样器", "采样器"]);
  await search(page, "dpm++", "Few-Step 采样器");
  await endSearch(page, "Enter");
  assert.equal(await page.evaluate(() => app.graph._nodes.at(-1).title), "Few-Step 采样器");
});

both("in Chinese, plots, widgets, notes, nodes and errors are Chinese", async ({ page, load: open, vue, complaints }) => {
  await open("zh");
  await design(page, vue);
  await load(page, "demo");
  const opened = await page.evaluate(() => {
    const note = app.graph._nodes.find((node) => node.type === "MarkdownNote");
    return [note.widgets[0].value, ...app.graph._groups.map((group) => group.title)];
  });
  assert.deepEqual(opened.filter((text) => !/[\u4e00-\u9fff]/.test(text)), []);

  await clear(page);
  const [sampler, schedule] = [await add(page, "FewStepSampler"), await add(page, "FewStepScheduler", [400, 0])];
  const drawn = (await textsOf(page, [sampler, schedule])).filter((text) => /[a-z]{3}/i.test(text));
  assert.deepEqual(drawn.filter((text) => !/[\u4e00-\u9fff]/.test(text)), []);
  assert.ok(drawn.some((text) => /\d+ 步/.test(text)), drawn.join("\n"));
  const shown = await page.evaluate(
    (id) => app.graph.getNodeById(id).widgets.find(({ name }) => name === "solver_type")._displayValue,
    sampler,
  );
  assert.equal(shown, "默认：midpoint");
  await set(page, schedule, "rho", 0.5);
  await answer(page, schedule);
  assert.match((await textsOf(page, [schedule])).join(""), /必须介于/);

  await clear(page);
  const [file, plan, any] = [
    await add(page, "FewStepLoadPlan"),
    await add(page, "FewStepPlanSampler", [400, 0]),
    await add(page, "PreviewAny", [800, 0]),
  ];
  await connect(page, file, 0, plan, "plan");
  await connect(page, plan, 1, any, "source");
  await set(page, plan, "see_bottleneck", !vue); // else the host has it in its cache, and says nothing
  await page.evaluate(() => app.queuePrompt(0));
  const said = () =>
    page.evaluate((id) => app.graph.getNodeById(id).widgets.map(({ value }) => value).find((v) => /引导强度/.test(v)), plan);
  await eventually(page, async () => assert.match(String(await said()), /它是在引导强度 7.5 下制作的/));
  await set(page, file, "text", "{");
  const before = complaints.length;
  const failed = page.evaluate(async () => {
    const { api } = await import("/scripts/api.js");
    return new Promise((resolve) => {
      api.addEventListener("execution_error", ({ detail }) => resolve(detail.exception_message), { once: true });
      app.queuePrompt(0);
    });
  });
  assert.match(await failed, /这段文本不是计划/);
  await clear(page);
  const [again, saved] = [await add(page, "FewStepLoadPlan"), await add(page, "FewStepSavePlan", [400, 0])];
  await connect(page, again, 0, saved, "plan");
  await set(page, saved, "filename", "a*b");
  const refused = await page.evaluate(async () => {
    const { api } = await import("/scripts/api.js");
    return api.queuePrompt(0, await app.graphToPrompt()).catch((error) => JSON.stringify(error.response));
  });
  assert.match(refused, /并非所有系统都允许/);
  const wanted = /FileError|PromptExecutionError|a\*b/; // errors made here on purpose, which the host may log
  complaints.push(...complaints.splice(before).filter((text) => !wanted.test(text)));
  await page.keyboard.press("Escape");
});

check("nothing of ours complained in the meantime", async ({ complaints }) => {
  const ours = complaints.filter((text) => /extensions\/fewstep|\/fewstep\//.test(text));
  assert.deepEqual(ours.filter((text) => !/\/docs\/\w+\/en\.md/.test(text)), []); // the host tries that first
});

/** The definitions of our nodes, by what the host says of them. */
async function nodesOfThePack(page) {
  const info = await (await page.request.get(`${given.url}/object_info`)).json();
  return Object.values(info).filter(({ python_module }) => python_module === "custom_nodes.fewstep");
}

/** Opens the search box by a double click beside the nodes, types, and waits until a node is found. */
async function search(page, words, title) {
  const box = page.locator(SEARCH_BOX);
  for (let i = 0; i < 4 && !(await box.isVisible()); i++) {
    await page.mouse.dblclick(700, 600); // on a busy machine two clicks may be too far apart
    await box.waitFor({ timeout: 2000 }).catch(() => {});
  }
  await box.fill(words);
  await page.waitForTimeout(200); // it waits for the end of a word, too
  await page.locator(FOUND).filter({ hasText: title }).first().waitFor({ timeout: 5000 });
}

/** Ends a search with a key; the box fades out. */
async function endSearch(page, key) {
  await page.keyboard.press(key);
  await page.locator(SEARCH_BOX).waitFor({ state: "detached", timeout: 5000 });
}

/** What the plots of nodes write, once they are answered. */
async function textsOf(page, ids) {
  for (const id of ids) await answer(page, id);
  return page.evaluate((ids) => {
    const written = [];
    const canvas = document.createElement("div").appendChild(document.createElement("canvas"));
    const pen = canvas.getContext("2d");
    pen.fillText = (text) => written.push(text);
    for (const node of ids.map((id) => app.graph.getNodeById(id))) {
      node.widgets.find(({ name }) => name === "plot").draw(pen, node, 320, 0);
    }
    return written;
  }, ids);
}

function connect(page, from, output, to, input) {
  return page.evaluate(
    ([from, output, to, input]) => {
      const target = app.graph.getNodeById(to);
      app.graph.getNodeById(from).connect(output, target, target.inputs.findIndex(({ name }) => name === input));
    },
    [from, output, to, input],
  );
}

function workflows() {
  return readdirSync(join(given.root, "workflows"))
    .filter((file) => file.endsWith(".json"))
    .map((file) => file.slice(0, -5));
}

async function load(page, name) {
  const workflow = JSON.parse(readFileSync(join(given.root, "workflows", `${name}.json`)));
  await page.evaluate((workflow) => app.loadGraphData(workflow), workflow);
  await page.waitForTimeout(100);
}

function ids(page, ...types) {
  return page.evaluate((types) => types.map((type) => app.graph._nodes.find((node) => node.type === type).id), types);
}

/** Clicks on a widget; in nodes made of elements, on the plot. */
async function click(page, id, name) {
  if (await page.evaluate(() => LiteGraph.vueNodesMode)) return plotElement(page, id).click();
  const place = await page.evaluate(
    ([id, name]) => {
      const node = app.graph.getNodeById(id);
      const widget = node.widgets.find((widget) => widget.name === name);
      const { scale, offset } = app.canvas.ds;
      const canvas = app.canvas.canvas.getBoundingClientRect();
      return [
        (node.pos[0] + node.size[0] / 2 + offset[0]) * scale + canvas.left,
        (node.pos[1] + widget.last_y + 40 + offset[1]) * scale + canvas.top,
      ];
    },
    [id, name],
  );
  await page.mouse.click(...place);
}

function close(a, b) {
  assert.equal(a.length, b.length);
  a.forEach((value, i) => assert.ok(Math.abs(value - b[i]) <= 1e-5 * Math.abs(b[i]), `${value} and ${b[i]}`));
}

const results = {};
const session = await open(given.url, given);
try {
  for (const [name, { body, vue }] of checks) {
    if (given.only && !given.only.includes(name)) continue;
    const start = Date.now();
    await design(session.page, vue);
    try {
      await body({ ...session, vue });
      results[name] = null;
    } catch (error) {
      results[name] = error.stack;
      if (given.out) await session.page.screenshot({ path: join(given.out, `${name}.png`) });
    }
    console.error(`${((Date.now() - start) / 1000).toFixed(1)} s  ${name}: ${results[name] ? "failed" : "passed"}`);
  }
} finally {
  await session.close();
}
console.log(JSON.stringify(results));
