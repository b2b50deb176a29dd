// Models of rows: the features that matter now, and the columns, the drifting ones first.

import { address } from "./address.js";
import { element } from "./charts.js";
import { percent, short } from "./words.js";

const EVERY_MS = 5000;
const FEATURES = 15;
const COLUMNS = 15;
const byId = (id) => document.getElementById(id);
const signed = (value) => `${value <= -0.005 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

let isShown = false;

// Called once the service says that its model learns rows.
export function showRows(isLive) {
  if (isShown) return;
  isShown = true;
  byId("rows").hidden = false;
  refresh();
  setInterval(() => {
    if (!document.hidden && isLive()) refresh();
  }, EVERY_MS);
}

async function refresh() {
  try {
    const answer = await fetch(address(`/features?top=${FEATURES}`));
    if (!answer.ok) return;
    const { features, columns } = await answer.json();
    showFeatures(features);
    showColumns(columns);
  } catch {
    // page.js shows the state of the connection
  }
}

function showFeatures(features) {
  byId("features").hidden = features.length === 0;
  byId("no-features").hidden = features.length > 0;
  const strongest = features.map(({ weights }) =>
    Object.entries(weights).reduce((best, one) => (strength(one) > strength(best) ? one : best), ["", 0]));
  const most = Math.max(1e-9, ...strongest.map(([, weight]) => Math.abs(weight)));
  fill(byId("features"), features.map(({ name, gain, count }, k) => {
    const [label, weight] = strongest[k];
    const bar = element("span", { class: weight < 0 ? "bar against" : "bar", "aria-hidden": "true" });
    bar.style.width = `${(100 * Math.abs(weight)) / most}%`;
    const words = element("span", {}, `${signed(weight)} ${label}`);
    return [name, [words, bar], gain === null ? "–" : short(gain), count === null ? "–" : count.toLocaleString("en")];
  }));
}

// A weight for a label counts a little more than one against it: of two labels, the favoured one.
function strength([, weight]) {
  return weight > 0 ? 1.001 * weight : -weight;
}

export function showColumns(columns) {
  const drifting = columns.filter((column) => column.is_drifting);
  const others = columns.filter((column) => !column.is_drifting);
  const shown = [...drifting, ...others].slice(0, Math.max(COLUMNS, drifting.length));
  const more = columns.length - shown.length;
  byId("columns-summary").textContent = sayColumns(columns, drifting)
    + (more ? ` ${more} more do not drift.` : "");
  fill(byId("columns"), shown.map((column) => [
    column.is_drifting ? [column.name, " ", element("b", { class: "wrong" }, "drifts")] : column.name,
    change(column, "missing", percent),
    change(column, "new_keys", (keys) => keys.toFixed(2)),
    column.shift === null ? "–" : `${signed(column.shift)} σ`,
  ]));
}

function sayColumns(columns, drifting) {
  if (!columns.length || columns.every(({ missing }) => missing === null)) return "No rows were learned yet since the service started.";
  if (!drifting.length) return "No column drifts: recent rows are like those before.";
  const names = drifting.slice(0, 5).map(({ name }) => name).join(", ");
  const rest = drifting.length > 5 ? ` and ${drifting.length - 5} more` : "";
  return `${names}${rest}: recent rows differ from those before.`;
}

// What a number is now; of a column that drifts also what it was before.
function change(column, name, format) {
  if (column[name] === null) return "–";
  const [before, now] = [column[`${name}_before`], column[name]].map(format);
  return column.is_drifting && before !== now ? `${before} → ${now}` : now;
}

// Writes rows of cells into the body of a table; a cell is text or a list of nodes.
function fill(table, rows) {
  const body = table.tBodies[0];
  body.replaceChildren(...rows.map(([name, ...cells]) => element("tr", {},
    element("th", { scope: "row" }, ...[name].flat()),
    ...cells.map((cell) => element("td", {}, ...[cell].flat())))));
}
