// The optimizer's scales, gains and experts, and the throughput: charts that a researcher opens.

import { Chart, compact, element } from "./charts.js";
import { count, percent, short } from "./words.js";

const MAX_LINES = 5;
const PAST_POINTS = 60;
const byId = (id) => document.getElementById(id);

// Families of experts, in words. One that a user adds has its own name.
const FAMILIES = {
  linear: "linear experts", mlp: "networks", trees: "trees", neighbours: "neighbours",
  frequencies: "label frequencies",
  recent: "recent numbers",
};

const grid = byId("grid");
const charts = {
  scale: new Chart(grid, { id: "scale", title: "Scale s of each tensor, divided by its mean of the minute before", format: short }),
  gains: new Chart(grid, { id: "gains", title: "Gains p: median, middle half, 5 to 95 %, all", format: short, log: true }),
  throughput: new Chart(grid, { id: "throughput", title: "Examples a second, and examples that wait", format: compact, floor: 0 }),
};
let experts = null;

// kept: points; axis: x, times and marks of the charts.
export function showOptimizer(kept, axis) {
  const now = kept.at(-1), tensors = Object.keys(now.tensors);
  showScales(kept, axis, tensors.slice(0, MAX_LINES));
  showGains(kept, axis, tensors);
  charts.throughput.show({
    ...axis,
    lines: [
      { name: "learned a second", values: kept.map((p) => p.throughput) },
      { name: "waiting", values: kept.map((p) => p.backlog) },
    ],
  }, `${count(Math.round(now.throughput ?? 0))} examples a second are learned, ${count(now.backlog)} wait.`);
  showExperts(kept, axis);
}

function showScales(kept, axis, names) {
  const scales = (name) => kept.map((p) => p.tensors[name]?.scale ?? null);
  charts.scale.show(
    { ...axis, lines: names.map((name) => ({ name, values: relative(scales(name)) })) },
    names.map((name) => `${name} ${short(kept.at(-1).tensors[name].scale)}`).join(", "),
  );
}

// Each value divided by the geometric mean of those before it; a movement at a shift stands out.
function relative(values) {
  return values.map((value, k) => {
    const past = values.slice(Math.max(0, k - PAST_POINTS), k).filter((one) => one > 0);
    if (!past.length || !(value > 0)) return null;
    return value / Math.exp(past.reduce((sum, one) => sum + Math.log(one), 0) / past.length);
  });
}

function showGains(kept, axis, tensors) {
  offerTensors(tensors);
  const chosen = byId("tensor").value;
  const quantile = (k) => kept.map((p) => p.tensors[chosen]?.gain_quantiles[k]);
  charts.gains.show({
    ...axis,
    lines: chosen ? [{ name: `median of ${chosen}`, values: quantile(3) }] : [],
    bands: chosen ? [[0, 6], [1, 5], [2, 4]].map(([a, b]) => ({ low: quantile(a), high: quantile(b) })) : [],
  }, sayGains(chosen, kept.at(-1).tensors[chosen]?.gain_quantiles));
}

function sayGains(tensor, q) {
  if (!q || q.includes(null)) return "";
  return `Half of the gains of ${tensor} lie between ${short(q[2])} and ${short(q[4])}, all between ${short(q[0])} and ${short(q[6])}.`;
}

function offerTensors(names) {
  const select = byId("tensor");
  if ([...select.options].map((o) => o.value).join("\n") === names.join("\n")) return;
  select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  byId("tensors").hidden = names.length < 2;
}

function showExperts(kept, axis) {
  const weights = Object.entries(kept.at(-1).expert_weights);
  if (!weights.length) return;
  const areFamilies = weights[0][0] in FAMILIES;
  experts ??= new Chart(grid, { id: "experts", title: areFamilies ? "Share of the answer by family" : "Weight of the heaviest experts", format: (v) => `${Math.round(100 * v)} %`, floor: 0, ceiling: 1 });
  experts.show({
    ...axis,
    lines: heaviest(kept).map((name) => ({ name: readable(name), values: kept.map((p) => p.expert_weights[name]) })),
  }, sayExperts(weights));
}

function heaviest(kept) {
  const most = (name) => Math.max(...kept.map((p) => p.expert_weights[name] ?? 0));
  const peaks = Object.keys(kept.at(-1).expert_weights).map((name) => [name, most(name)]);
  return peaks.sort((a, b) => b[1] - a[1]).slice(0, MAX_LINES).map(([name]) => name);
}

// "Adagrad lr=0.00844 gain_lr=0.03 scale_lr=0.03 steps=8" is "Adagrad, step size 0.0084, 8 steps a batch".
function readable(name) {
  if (name in FAMILIES) return FAMILIES[name];
  const [method, ...pairs] = name.split(" ");
  const value = Object.fromEntries(pairs.map((pair) => pair.split("=")));
  if (!value.lr) return name;
  const gains = Number(value.gain_lr) || Number(value.scale_lr) ? "" : ", fixed";
  const steps = Number(value.steps) > 1 ? `, ${value.steps} steps a batch` : "";
  return `${method}, step size ${Number(value.lr).toPrecision(2)}${gains}${steps}`;
}

export function sayExperts(weights) {
  if (!weights.length) return "";
  if (weights.some(([name]) => name in FAMILIES)) {
    const shares = [...weights].sort((a, b) => b[1] - a[1]);
    const said = shares.map(([name, share]) => `${FAMILIES[name] ?? name} ${percent(share)}`);
    return `Who carries the answer now: ${said.join(", ")}.`;
  }
  const [name, weight] = weights.reduce((best, other) => (other[1] > best[1] ? other : best));
  return `${readable(name)} weighs most: ${percent(weight)} of ${weights.length} experts.`;
}
