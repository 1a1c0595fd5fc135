/** What is wrong with the layout of the workflow that is open, as the front end draws it. */

const SCREEN = { width: 1366, height: 768 }; // a small one
const TOP = 90; // of what the front end shows there: tabs, breadcrumb, the button that runs
const SIDE = 60; // bar with buttons
const LEAST = 0.65; // scale at which the front end shows the whole; nodes made of elements are 1.2 times as large
const EDGE = 15; // so far inside of their nodes wires begin and end; so far nodes reach over the edge of their group

/** Shows the page on a small screen; gives a function that puts it back. */
export async function smallScreen(page) {
  const before = page.viewportSize();
  await page.setViewportSize(SCREEN);
  return () => page.setViewportSize(before);
}

export async function faults(page) {
  const seen = await page.evaluate(look, EDGE);
  const { scale, vue, nodes, groups, behind, texts, map } = seen;
  const onScreen = (box) => box.map((value, i) => (value + seen.offset[i % 2]) * scale);
  const found = [...behind.map((node) => `a wire passes behind ${node}`), ...texts.map((text) => `cut off: ${text}`)];
  if (scale < (vue ? LEAST / 1.2 : LEAST) - 1e-3) found.push(`the whole is shown at ${scale}`);
  nodes.forEach((a, i) => {
    for (const b of nodes.slice(i + 1)) if (overlap(a.box, b.box)) found.push(`${a.name} and ${b.name} overlap`);
    if (!groups.some(({ box }) => inside(a.box, box))) found.push(`${a.name} is in no group`);
    if (map && overlap(onScreen(a.box), map)) found.push(`${a.name} is behind the map`);
  });
  for (const { name, box } of groups) {
    const [left, top, right, bottom] = onScreen(box);
    if (left < SIDE || top < TOP || right > SCREEN.width || bottom > SCREEN.height) found.push(`${name} is cut off: ${[left, top, right, bottom].map(Math.round)}`);
  }
  return found;
}

function overlap(a, b) {
  return a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
}

function inside(a, b) {
  return a[0] >= b[0] - EDGE && a[1] >= b[1] - EDGE && a[2] <= b[2] + EDGE && a[3] <= b[3] + EDGE;
}

/** In the page: boxes as [left, top, right, bottom], and the nodes that wires pass behind. */
function look(edge) {
  const { scale, offset } = app.canvas.ds;
  const vue = LiteGraph.vueNodesMode;
  app.canvas.draw(true, true); // makes the paths of the wires
  const nodes = app.graph._nodes.map((node) => {
    const [x, y, width, height] = node.boundingRect;
    const badge = vue || !node.type.startsWith("FewStep") ? 0 : 20; // over the title
    const place = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
    const box = vue
      ? [place.left, place.top, place.right, place.bottom].map((value, i) => value / scale - offset[i % 2])
      : [x, y - badge, x + width, y + height];
    return { name: `${node.title} (${node.id})`, box, badge };
  });
  const groups = app.graph._groups.map(({ title: name, pos: [x, y], size: [width, height] }) => ({
    name,
    box: [x, y, x + width, y + height],
  }));
  const [left, top, right, bottom] = [0, 1, 2, 3].map((i) =>
    (i < 2 ? Math.min : Math.max)(...groups.map(({ box }) => box[i])),
  );
  const half = new OffscreenCanvas((right - left) / 2, (bottom - top) / 2).getContext("2d");
  half.setTransform(0.5, 0, 0, 0.5, -left / 2, -top / 2);
  half.lineWidth = 2;
  const all = (parts) => (parts?.values ? [...parts.values()] : Object.values(parts ?? {}));
  const wires = [...all(app.graph._links ?? app.graph.links), ...all(app.graph.reroutes)].filter(({ path }) => path);
  if (!wires.length) throw new Error("no wire has a path");
  for (const { path } of wires) half.stroke(path);
  const drawn = ([x0, y0, x1, y1]) => {
    const [x, y, width, height] = [(x0 - left) / 2, (y0 - top) / 2, (x1 - x0) / 2, (y1 - y0) / 2].map(Math.round);
    return half.getImageData(x, y, Math.max(1, width), height).data.some((value) => value > 60);
  };
  const below = vue ? 4 : 0; // a wire close under a node reaches into its last pixels, two units each
  const behind = nodes
    .filter(({ badge, box: [x0, y0, x1, y1] }) =>
      drawn([x0 + edge, y0 + badge + (vue ? edge : 0), x1 - edge, y1 - below]),
    )
    .map(({ name }) => name);
  const texts = [...document.querySelectorAll(".comfy-markdown-content, .lg-node .comfy-markdown")]
    .filter((note) => note.clientHeight && note.scrollHeight > note.clientHeight + 2)
    .map((note) => `${note.innerText.slice(0, 40)} (${note.scrollHeight} in ${note.clientHeight})`);
  const corner = document.querySelector(".litegraph-minimap")?.getBoundingClientRect();
  const map = corner?.width ? [corner.left, corner.top, corner.right, corner.bottom] : null;
  return { scale, offset: [...offset], vue, nodes, groups, behind, texts, map };
}
