// Gains as a map for each class, and the newest inputs, fetched about once a second.

import { address } from "./address.js";
import { element } from "./charts.js";

const EVERY_MS = 1000;
const byId = (id) => document.getElementById(id);

let asked = false;

// Called when the service can be reached; checks once whether there are images to show.
export async function showPictures(isLive) {
  if (asked) return;
  asked = true;
  const newest = await ask("/newest");
  asked = newest !== null;
  if (newest === null || newest.side === null) return;
  byId("pictures").hidden = false;
  setInterval(async () => {
    if (document.hidden || !isLive()) return;
    const [gains, inputs] = await Promise.all([ask("/optimizer/gains"), ask("/newest")]);
    if (gains !== null) showMaps(gains);
    if (inputs !== null) showInputs(inputs);
  }, EVERY_MS);
}

async function ask(path) {
  try {
    const answer = await fetch(address(path));
    return answer.ok ? await answer.json() : null;
  } catch {
    return null; // page.js shows the state of the connection
  }
}

function showMaps({ side, log_gains: maps }) {
  const colors = ["--cold", "--neutral", "--hot"].map((name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).split(",").map(Number));
  const reach = Math.max(0.1, ...maps.map((map) => Math.max(...map.map(Math.abs))));
  const times = Math.exp(reach).toPrecision(2);
  byId("maps-summary").textContent = maps.length
    ? `Orange pixels learn faster than at the start, by up to ${times} times; blue ones slower.`
    : "No tensor of the model has a weight for each pixel and class.";
  fill(byId("maps"), maps.length);
  maps.forEach((map, label) => {
    const item = byId("maps").children[label];
    const mean = map.reduce((a, b) => a + b, 0) / map.length;
    const words = `class ${label}`;
    paint(item, side, words, `gains of class ${label}, ${Math.exp(mean).toFixed(2)} in the geometric mean`,
      (k) => blend(colors, map[k] / reach));
  });
}

function showInputs({ side, examples }) {
  fill(byId("newest"), examples.length);
  examples.forEach(({ pixels, label, predicted }, index) => {
    const item = byId("newest").children[index];
    const right = label === predicted;
    const words = right ? `✓ ${label}` : `✗ ${predicted}, is ${label}`;
    item.classList.toggle("wrong", !right);
    paint(item, side, words, `input of class ${label}, predicted ${predicted}`,
      (k) => [pixels[k], pixels[k], pixels[k]]);
  });
}

function fill(list, count) {
  while (list.children.length > count) list.lastChild.remove();
  while (list.children.length < count) {
    list.append(element("li", {}, element("canvas", { role: "img" }), element("span")));
  }
}

function paint(item, side, words, name, color) {
  const [canvas, caption] = item.children;
  if (canvas.width !== side) canvas.width = canvas.height = side;
  const image = new ImageData(side, side);
  for (let k = 0; k < side * side; k++) image.data.set([...color(k), 255], 4 * k);
  canvas.getContext("2d").putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", name);
  caption.textContent = words;
}

function blend([cold, neutral, hot], share) {
  const end = share < 0 ? cold : hot;
  return neutral.map((value, k) => value + (end[k] - value) * Math.min(1, Math.abs(share)));
}
