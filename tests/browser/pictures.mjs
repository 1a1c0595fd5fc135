/**
 * Draws the pictures of the help pages and of the README: a small graph for each node, on the demo model where it runs.
 *
 *     node pictures.mjs '{"url", "chromium", "modules", "out", "only"}'        (tools/screenshots.py)
 *
 * A scene lists nodes as [type, {widget: value}, {input: [number of a node in the list, name of its output]}].
 */

import { join } from "node:path";
import { clear, open } from "./session.mjs";

const given = JSON.parse(process.argv[2]);

const MODEL = ["FewStepDemoModel", { prompt: "cat face" }];
const LATENT = ["FewStepDemoLatent", {}];
const CONNECTED = { model: [0, "MODEL"], positive: [0, "positive"], negative: [0, "negative"], latent_image: [1, "LATENT"] };
const PLAN = ["FewStepLoadPlan", {}];

const SCENES = {
  FewStepSampler: {
    nodes: [
      ["FewStepScheduler", { steps: 8 }],
      ["FewStepSampler", { sampler: "dpmpp_2s" }],
      ["SamplerCustom", { cfg: 5 }, { sampler: [1, "SAMPLER"], sigmas: [0, "SIGMAS"] }],
    ],
    show: [1],
  },
  FewStepKSampler: {
    nodes: [["FewStepKSampler", { sampler_name: "dpmpp_2m_sde", scheduler: "karras" }, {}]],
  },
  FewStepKSamplerAdvanced: {
    nodes: [["FewStepKSamplerAdvanced", { steps: 12, end_at_step: 6, return_with_leftover_noise: "enable" }, {}]],
  },
  FewStepScheduler: { nodes: [["FewStepScheduler", { schedule: "ays", steps: 8 }]] },
  FewStepChain: {
    nodes: [
      ["FewStepSampler", { sampler: "ipndm_v" }],
      ["FewStepChain", { step: 6 }, { first: [0, "SAMPLER"], second: [2, "SAMPLER"] }],
      ["KSamplerSelect", { sampler_name: "fewstep_dpmpp_2m_sde" }],
      ["SamplerCustom", {}, { sampler: [1, "SAMPLER"] }],
    ],
    show: [2, 1],
  },
  FewStepSplitAtSigma: {
    nodes: [
      ["FewStepScheduler", { schedule: "simple", steps: 20 }],
      ["FewStepSplitAtSigma", {}, { sigmas: [0, "SIGMAS"] }],
      ["SamplerCustom", {}, { sigmas: [1, "high"] }],
      ["SamplerCustom", { add_noise: false }, { sigmas: [1, "low"], latent_image: [2, "output"] }],
    ],
    show: [1],
  },
  FewStepGuidance: {
    nodes: [
      ["FewStepGuidance", { cfg: 6 }],
      ["FewStepGuider", {}, { guidance: [0, "guidance"] }],
      ["SamplerCustomAdvanced", {}, { guider: [1, "GUIDER"], sampler: [4, "SAMPLER"], sigmas: [3, "SIGMAS"] }],
      ["FewStepScheduler", { steps: 12 }],
      ["FewStepSampler", {}],
    ],
    show: [0, 4],
  },
  FewStepGuider: {
    nodes: [
      ["FewStepGuidance", {}],
      ["FewStepGuider", {}, { guidance: [0, "guidance"] }],
      ["SamplerCustomAdvanced", {}, { guider: [1, "GUIDER"] }],
    ],
  },
  FewStepGuidancePatch: {
    nodes: [
      ["FewStepGuidance", { schedule: "cosine" }],
      ["FewStepGuidancePatch", {}, { guidance: [0, "guidance"] }],
      ["KSampler", {}, { model: [1, "MODEL"] }],
    ],
  },
  FewStepLoadPlan: { nodes: [PLAN, ["FewStepPlanSampler", {}, { plan: [0, "PLAN"] }]], show: [0, 1] },
  FewStepSavePlan: {
    nodes: [
      ["FewStepCalibrate", {}],
      ["FewStepSavePlan", { filename: "portraits/sd15" }, { plan: [0, "PLAN"] }],
    ],
  },
  FewStepPlanSampler: {
    nodes: [
      PLAN,
      ["FewStepPlanSampler", {}, { plan: [0, "PLAN"] }],
      ["SamplerCustom", { cfg: 7 }, { sampler: [1, "SAMPLER"], sigmas: [1, "SIGMAS"] }],
    ],
    show: [1],
  },
  FewStepInspectPlan: {
    nodes: [
      PLAN,
      ["FewStepInspectPlan", {}, { plan: [0, "PLAN"] }],
      ["PreviewImage", {}, { images: [1, "IMAGE"] }],
    ],
    show: [1, 2],
    run: true,
  },
  FewStepInvert: {
    nodes: [
      MODEL,
      LATENT,
      ["FewStepScheduler", { steps: 20 }, { model: [0, "MODEL"] }],
      ["FewStepSampler", { sampler: "ddim" }],
      ["SamplerCustom", { cfg: 3, noise_seed: 1 }, { ...CONNECTED, sampler: [3, "SAMPLER"], sigmas: [2, "SIGMAS"] }],
      ["FewStepInvert", {}, { ...CONNECTED, sigmas: [2, "SIGMAS"], latent_image: [4, "output"] }],
      ["FewStepDemoModel", { prompt: "dog face" }],
      [
        "SamplerCustom",
        { cfg: 3, add_noise: false },
        {
          model: [0, "MODEL"],
          positive: [6, "positive"],
          negative: [6, "negative"],
          latent_image: [5, "latent"],
          sampler: [3, "SAMPLER"],
          sigmas: [2, "SIGMAS"],
        },
      ],
      ["FewStepDemoDecode", {}, { samples: [4, "output"] }],
      ["PreviewImage", {}, { images: [8, "IMAGE"] }],
      ["FewStepDemoDecode", {}, { samples: [7, "output"] }],
      ["PreviewImage", {}, { images: [10, "IMAGE"] }],
    ],
    show: [9, 5, 11],
    run: true,
  },
  FewStepDiffEditMask: {
    nodes: [
      MODEL,
      LATENT,
      ["FewStepScheduler", {}, { model: [0, "MODEL"] }],
      ["FewStepSampler", {}],
      ["SamplerCustom", { cfg: 3, noise_seed: 1 }, { ...CONNECTED, sampler: [3, "SAMPLER"], sigmas: [2, "SIGMAS"] }],
      ["FewStepDemoModel", { prompt: "cat with tears of joy" }],
      [
        "FewStepDiffEditMask",
        {},
        { model: [0, "MODEL"], source: [0, "positive"], target: [5, "positive"], latent_image: [4, "output"] },
      ],
      ["MaskToImage", {}, { mask: [6, "mask"] }],
      ["ImageScale", { upscale_method: "nearest-exact", width: 256, height: 256 }, { image: [7, "IMAGE"] }],
      ["PreviewImage", {}, { images: [8, "IMAGE"] }],
      ["FewStepDemoDecode", {}, { samples: [4, "output"] }],
      ["PreviewImage", {}, { images: [10, "IMAGE"] }],
    ],
    show: [11, 6, 9],
    run: true,
  },
  FewStepDemoModel: {
    nodes: [
      MODEL,
      ["FewStepDemoLatent", { batch_size: 4 }],
      ["FewStepScheduler", {}, { model: [0, "MODEL"] }],
      ["FewStepSampler", {}],
      ["SamplerCustom", { cfg: 3, noise_seed: 1 }, { ...CONNECTED, sampler: [3, "SAMPLER"], sigmas: [2, "SIGMAS"] }],
      ["FewStepDemoDecode", {}, { samples: [4, "output"] }],
      ["PreviewImage", {}, { images: [5, "IMAGE"] }],
    ],
    show: [0, 6],
    run: true,
  },
  graph: {
    nodes: [
      MODEL,
      ["FewStepDemoLatent", { batch_size: 4 }],
      ["FewStepScheduler", { schedule: "time_quadratic", steps: 8 }, { model: [0, "MODEL"] }],
      ["FewStepSampler", {}],
      ["SamplerCustom", { cfg: 3, noise_seed: 1 }, { ...CONNECTED, sampler: [3, "SAMPLER"], sigmas: [2, "SIGMAS"] }],
      ["FewStepDemoDecode", {}, { samples: [4, "output"] }],
      ["PreviewImage", {}, { images: [5, "IMAGE"] }],
    ],
    show: [2, 3, 6],
    run: true,
  }, // for the README
  FewStepDemoLatent: { nodes: [["FewStepDemoLatent", { batch_size: 4 }]] },
  FewStepDemoDecode: { nodes: [["FewStepDemoDecode", {}]] },
  FewStepDemoEncode: { nodes: [["FewStepDemoEncode", {}]] },
  FewStepAuto: {
    nodes: [
      MODEL,
      LATENT,
      ["FewStepAuto", { evaluations: 8 }, { model: [0, "MODEL"] }],
      ["SamplerCustom", { cfg: 3 }, { ...CONNECTED, sampler: [2, "SAMPLER"], sigmas: [2, "SIGMAS"] }],
      ["FewStepDemoDecode", {}, { samples: [3, "output"] }],
      ["PreviewImage", {}, { images: [4, "IMAGE"] }],
    ],
    show: [2, 5],
    run: true,
  },
  FewStepCompare: {
    nodes: [
      MODEL,
      LATENT,
      [
        "FewStepCompare",
        { cfg: 3, samplers: "dpmpp_2m\nfewstep_ipndm_v", schedules: "fewstep_karras*", steps: "4, 6, 8", tile: 128 },
        CONNECTED,
      ],
      ["PreviewImage", {}, { images: [2, "grid"] }],
      ["PreviewImage", {}, { images: [2, "chart"] }],
    ],
    show: [3, 4],
    run: true,
  },
  FewStepSideBySide: {
    nodes: [
      MODEL,
      LATENT,
      ["FewStepSampler", {}],
      ...[4, 10].flatMap((steps, k) => [
        ["FewStepScheduler", { steps }, { model: [0, "MODEL"] }],
        ["SamplerCustom", { cfg: 3, noise_seed: 1 }, { ...CONNECTED, sampler: [2, "SAMPLER"], sigmas: [3 + 3 * k, "SIGMAS"] }],
        ["FewStepDemoDecode", { upscale: 8 }, { samples: [4 + 3 * k, "output"] }],
      ]),
      ["FewStepSideBySide", {}, { image_a: [5, "IMAGE"], image_b: [8, "IMAGE"] }],
    ],
    show: [9],
    run: true,
  },
  FewStepFilmStrip: {
    nodes: [
      MODEL,
      LATENT,
      ["FewStepScheduler", { steps: 10 }, { model: [0, "MODEL"] }],
      ["FewStepSampler", {}],
      [
        "FewStepFilmStrip",
        { cfg: 3, columns: 5 },
        { ...CONNECTED, sampler: [3, "SAMPLER"], sigmas: [2, "SIGMAS"] },
      ],
      ["PreviewImage", {}, { images: [4, "strip"] }],
    ],
    show: [4, 5],
    run: true,
  },
  FewStepTrajectory: {
    nodes: [
      MODEL,
      LATENT,
      ["FewStepTrajectory", { cfg: 3 }, CONNECTED],
      ["PreviewImage", {}, { images: [2, "IMAGE"] }],
    ],
    show: [2, 3],
    run: true,
  },
  FewStepCalibrate: {
    nodes: [
      MODEL,
      LATENT,
      ["FewStepCalibrate", { cfg: 3, evaluations: 5, base: "dpmpp_2m", teacher_steps: 30 }, CONNECTED],
      ["PreviewImage", {}, { images: [2, "plot"] }],
    ],
    show: [2, 3],
    run: true,
  },
  FewStepTrainAMED: {
    nodes: [
      MODEL,
      LATENT,
      ["FewStepTrainAMED", { cfg: 3, evaluations: 6, iterations: 12, samples: 8, teacher_steps: 30 }, CONNECTED],
      ["PreviewImage", {}, { images: [2, "plot"] }],
    ],
    show: [2, 3],
    run: true,
  },
  FewStepDistill: {
    nodes: [
      MODEL,
      LATENT,
      ["FewStepDistill", { cfg: 3, evaluations: 2, rank: 16, iterations: 12, learning_rate: 0.001, batch: 4, samples: 4, teacher_steps: 6 }, CONNECTED],
      ["PreviewImage", {}, { images: [2, "plot"] }],
    ],
    show: [2, 3],
    run: true,
  },
};

/** Makes a scene in the graph, from left to right. */
function build(page, nodes) {
  return page.evaluate((nodes) => {
    const made = nodes.map(([type]) => LiteGraph.createNode(type));
    let x = 0;
    made.forEach((node, i) => {
      const [, widgets] = nodes[i];
      app.graph.add(node);
      for (const [name, value] of Object.entries(widgets ?? {})) {
        const widget = node.widgets.find((widget) => widget.name === name);
        widget.value = value;
        widget.callback?.(value);
      }
      for (const widget of node.widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed";
      if (node.type === "PreviewImage") node.setSize([420, 380]);
      else node.setSize([Math.max(280, node.size[0]), node.size[1]]);
      node.pos = [x, 0];
      x += node.size[0] + 50;
      node.badges = [];
    });
    made.forEach((node, i) => {
      for (const [input, [k, output]] of Object.entries(nodes[i][2] ?? {})) {
        const slot = made[k].outputs.findIndex(({ name, type }) => name === output || type === output);
        made[k].connect(slot, node, node.inputs.findIndex(({ name }) => name === input));
      }
    });
    return made.map(({ id }) => id);
  }, nodes);
}

/** Puts the nodes that are shown side by side, and tells where they lie on the page. */
function arrange(page, ids) {
  return page.evaluate((ids) => {
    const shown = ids.map((id) => app.graph.getNodeById(id));
    for (const node of app.graph._nodes) if (!shown.includes(node)) node.pos = [node.pos[0], -4000];
    let x = 0;
    for (const node of shown) {
      node.pos = [x, 0];
      x += node.size[0] + 50;
    }
    const [width, height] = [x - 50, Math.max(...shown.map((node) => node.size[1])) + LiteGraph.NODE_TITLE_HEIGHT];
    const canvas = app.canvas.canvas.getBoundingClientRect();
    const scale = Math.min(1, 880 / width, 700 / height);
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [100 / scale, 120 / scale];
    app.canvas.deselectAll?.();
    app.graph.setDirtyCanvas(true, true);
    const margin = 10;
    return {
      x: canvas.left + 100 - margin,
      y: canvas.top + 120 - LiteGraph.NODE_TITLE_HEIGHT * scale - margin,
      width: width * scale + 2 * margin,
      height: height * scale + 2 * margin,
    };
  }, ids);
}

async function run(page) {
  await page.evaluate(() => app.queuePrompt(0));
  await page.waitForTimeout(500);
  for (let busy = true; busy; await page.waitForTimeout(300)) {
    const queue = await (await page.request.get(`${given.url}/queue`)).json();
    busy = queue.queue_running.length + queue.queue_pending.length > 0;
  }
  await page.waitForFunction(
    () => app.graph._nodes.filter(({ type }) => type === "PreviewImage").every(({ imgs }) => imgs?.[0]?.naturalWidth),
    null,
    { timeout: 20000 },
  );
}

const { page, close } = await open(given.url, given);
try {
  await page.addStyleTag({ content: ".graph-canvas-panel ~ *, .side-tool-bar-container, .p-toast { display: none }" });
  for (const [type, { nodes, show, run: runs }] of Object.entries(SCENES)) {
    if (given.only && !given.only.includes(type)) continue;
    await clear(page);
    const ids = await build(page, nodes);
    const shown = (show ?? nodes.map((_, i) => i)).map((i) => ids[i]);
    await arrange(page, shown); // images are loaded by nodes that are seen
    if (runs) await run(page);
    const clip = await arrange(page, shown);
    await page.waitForTimeout(1500);
    await page.screenshot({ clip, path: join(given.out, `${type}.png`) });
  }
} finally {
  await close();
}
