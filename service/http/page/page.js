// Keeps the service's events, and shows them at most once a second.

import { address } from "./address.js";
import { Chart, compact, element } from "./charts.js";
import { showPictures } from "./pictures.js";
import { showQuestions } from "./questions.js";
import { showRows } from "./rows.js";
import { showScores } from "./scores.js";

const MAX_POINTS = 3600;
const SPACING_SECONDS = 0.9; // as in history.py
const DRAW_MS = 1000;
const SPEAK_MS = 20_000;
const STALE_MS = 5000;
const RETRY_MS = 2000;
const MODEL_MS = 5000;
const MAX_SHIFTS = 20;
const MAX_LINES = 5;
const SERVED = "served";

const byId = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const short = (value) => Number(value.toPrecision(3)).toString();
const count = (value) => value.toLocaleString("en");

let points = [], shifts = new Map(), drifts = new Map(), model = null;
let newsAt = 0, drawnAt = 0, spokenAt = 0, planned = false, source = null;

const grid = byId("grid");
const charts = {
  accuracy: new Chart(grid, { id: "accuracy", title: "Accuracy of the last 1,000 examples", format: (v) => `${Math.round(100 * v)} %`, floor: 0, ceiling: 1 }),
  scale: new Chart(grid, { id: "scale", title: "Scale s of each tensor", format: short, log: true }),
  gains: new Chart(grid, { id: "gains", title: "Gains p: median, middle half, 5 to 95 %, all", format: short, log: true }),
  throughput: new Chart(grid, { id: "throughput", title: "Examples a second, and examples that wait", format: compact, floor: 0 }),
};
let experts = null;

function connect() {
  source = new EventSource("/events");
  source.addEventListener("open", () => {
    newsAt = performance.now();
    askModel();
    showPictures(isLive);
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
    showConnection();
  });
  source.addEventListener("reset", () => {
    points = [], shifts = new Map(), drifts = new Map();
    news();
  });
  source.addEventListener("point", (event) => {
    const point = JSON.parse(event.data);
    const [before, newest] = points.slice(-2);
    const standsStill = newest?.version === point.version && before.version === point.version;
    if (newest && (standsStill || newest.time - before.time < SPACING_SECONDS)) points.pop();
    points.push(point);
    if (points.length > MAX_POINTS) points.shift();
    news();
  });
  source.addEventListener("shift", (event) => {
    const shift = JSON.parse(event.data);
    shifts.set(shift.id, shift);
    news();
  });
  source.addEventListener("drift", (event) => {
    const drift = JSON.parse(event.data);
    drifts.set(drift.id, drift);
    news();
  });
}

function news() {
  newsAt = performance.now();
  if (planned) return;
  planned = true;
  setTimeout(() => requestAnimationFrame(draw), Math.max(0, drawnAt + DRAW_MS - newsAt));
}

function isLive() {
  return source !== null && source.readyState === EventSource.OPEN;
}

function showConnection() {
  const age = performance.now() - newsAt;
  let state = "live", words = "live";
  if (!isLive()) [state, words] = ["lost", "reconnecting …"];
  else if (age > STALE_MS) [state, words] = ["stale", `stale: no event for ${Math.round(age / 1000)} s`];
  const shown = byId("connection");
  shown.dataset.state = state;
  if (shown.textContent !== words) shown.textContent = words;
}

async function askModel() {
  if (!isLive()) return;
  try {
    const answer = await fetch(address("/model"));
    if (answer.ok) model = await answer.json();
  } catch {
    return; // the stream of events fails too, and shows it
  }
  if (model === null) return;
  showScores(model);
  showQuestions(model.questions, model.rolling_accuracy);
  if (hits() !== "Accuracy") {
    byId("accuracy-title").textContent = "Share of the last 1,000 predictions nearer than the mean";
  }
  if (model.inputs === "rows") showRows(isLive);
  const condition = model.condition === "learning" ? "" : ` · ${model.condition} ${model.reason}`;
  byId("model").textContent = `${model.model}, learned with ${model.optimizer}${condition}`;
}

function shown() {
  const seconds = Number(byId("window").value);
  const newest = points.length ? points[points.length - 1].time : 0;
  return points.filter((p) => p.time >= newest - seconds);
}

function draw() {
  [planned, drawnAt] = [false, performance.now()];
  if (!points.length) return;
  const kept = shown(), now = points[points.length - 1];
  const x = kept.map((p) => p.examples), marks = allMarks();
  const names = Object.keys(now.learners);
  charts.accuracy.show({
    x, marks,
    lines: [
      ...names.map((name) => ({ name, values: kept.map((p) => p.learners[name]?.rolling_accuracy) })),
      ...Object.keys(now.floors).map((name) =>
        ({ name, floor: true, values: kept.map((p) => p.floors[name]?.rolling_accuracy) })),
    ],
  }, sayAccuracy(now));
  drawOptimizer(kept, x, marks);
  charts.throughput.show({
    x, marks,
    lines: [
      { name: "learned a second", values: kept.map((p) => p.throughput) },
      { name: "waiting", values: kept.map((p) => p.backlog) },
    ],
  }, `${count(Math.round(now.throughput ?? 0))} examples a second are learned, ${count(now.backlog)} wait.`);
  showNow(now);
  showShifts();
  showConnection();
  if (drawnAt - spokenAt > SPEAK_MS) {
    spokenAt = drawnAt;
    byId("spoken").textContent = `${hits()}: ${sayAccuracy(now)}`;
  }
}

function sayAccuracy({ learners, floors }) {
  const scored = Object.entries({ ...learners, ...floors }).filter(([, scores]) => scores.rolling_accuracy !== null);
  return scored.map(([name, scores]) => `${name} ${percent(scores.rolling_accuracy)}`).join(", ");
}

function drawOptimizer(kept, x, marks) {
  const now = points[points.length - 1], tensors = Object.keys(now.tensors);
  offerTensors(tensors);
  const chosen = byId("tensor").value;
  const quantile = (k) => kept.map((p) => p.tensors[chosen]?.gain_quantiles[k]);
  charts.scale.show({
    x, marks,
    lines: tensors.slice(0, 5).map((name) => ({ name, values: kept.map((p) => p.tensors[name]?.scale) })),
  }, tensors.slice(0, 5).map((name) => `${name} ${short(now.tensors[name].scale)}`).join(", "));
  charts.gains.show({
    x, marks,
    lines: chosen ? [{ name: `median of ${chosen}`, values: quantile(3) }] : [],
    bands: chosen ? [[0, 6], [1, 5], [2, 4]].map(([a, b]) => ({ low: quantile(a), high: quantile(b) })) : [],
  }, sayGains(chosen, now.tensors[chosen]?.gain_quantiles));
  const weights = Object.entries(now.expert_weights);
  if (!weights.length) return;
  experts ??= new Chart(grid, { id: "experts", title: weights[0][0] in FAMILIES ? "Share of the answer by family" : "Weight of the heaviest experts", format: (v) => `${Math.round(100 * v)} %`, floor: 0, ceiling: 1 });
  experts.show({
    x, marks,
    lines: heaviest(kept).map((name) => ({ name, values: kept.map((p) => p.expert_weights[name]) })),
  }, sayExperts(weights));
}

// Families of experts, in words.
const FAMILIES = {
  linear: "linear experts", mlp: "networks", trees: "trees", neighbours: "neighbours",
  frequencies: "label frequencies",
  recent: "recent numbers",
};

function heaviest(kept) {
  const most = (name) => Math.max(...kept.map((p) => p.expert_weights[name] ?? 0));
  const peaks = Object.keys(kept[kept.length - 1].expert_weights).map((name) => [name, most(name)]);
  return peaks.sort((a, b) => b[1] - a[1]).slice(0, MAX_LINES).map(([name]) => name);
}

function sayExperts(weights) {
  if (weights[0][0] in FAMILIES) {
    const shares = [...weights].sort((a, b) => b[1] - a[1]);
    const said = shares.map(([name, share]) => `${FAMILIES[name]} ${percent(share)}`);
    return `Who carries the answer now: ${said.join(", ")}.`;
  }
  const [name, weight] = weights.reduce((best, other) => (other[1] > best[1] ? other : best));
  return `${name} weighs most: ${percent(weight)} of ${weights.length} experts.`;
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

function allMarks() {
  const known = [...shifts.values()].map(({ example, what }) => ({ x: example, kind: "shift", label: what }));
  const found = [...drifts.values()].map((d) => ({ x: d.examples, kind: "drift", label: d.direction }));
  return [...known, ...found].sort((a, b) => a.x - b.x);
}

// Name of the share of predictions that are right: a number is, if nearer than the mean before it.
function hits() {
  return Object.keys(model?.numbers ?? {}).length ? "Nearer than the mean" : "Accuracy";
}

function showNow(now) {
  const accuracy = now.learners[SERVED]?.rolling_accuracy;
  const entries = {
    [hits()]: accuracy == null ? "–" : percent(accuracy),
    "Examples learned": count(now.examples),
    "Examples a second": count(Math.round(now.throughput ?? 0)),
    "Waiting": count(now.backlog),
    "Checkpoint age": now.checkpoint_age === null ? "none yet" : `${Math.round(now.checkpoint_age)} s`,
    "Model version": count(now.version),
    "Device": model?.device ?? "–",
    "Role": model?.role ?? "–",
  };
  const list = byId("now");
  if (!list.children.length) {
    list.append(...Object.keys(entries).map((name) =>
      element("div", {}, element("dt", {}, name), element("dd"))));
  }
  Object.values(entries).forEach((value, k) => {
    list.children[k].lastChild.textContent = value;
  });
}

function showShifts() {
  const first = points[0].examples;
  const known = [...shifts.values()].map((shift) => ({ at: shift.example, words: () => sayShift(shift) }));
  const found = [...drifts.values()].map((drift) => ({ at: drift.examples, words: () => sayDrift(drift) }));
  const recent = [...known, ...found].filter(({ at }) => at >= first && at > 0)
    .sort((a, b) => b.at - a.at).slice(0, MAX_SHIFTS);
  const lines = recent.map(({ at, words }) => `${count(at)}: ${words()}`);
  byId("no-shifts").hidden = lines.length > 0;
  const list = byId("shifts");
  while (list.children.length > lines.length) list.lastChild.remove();
  while (list.children.length < lines.length) list.append(element("li"));
  lines.forEach((line, k) => {
    if (list.children[k].textContent !== line) list.children[k].textContent = line;
  });
}

// A shift and the recoveries from it, as the service measured them.
function sayShift({ what, end, goal, recovery_examples }) {
  const learners = Object.entries(recovery_examples);
  if (goal === null) return end === null ? what : `${what}; too short to measure`;
  if (!learners.length) return what;
  const waits = end === null ? "not yet" : "never";
  const each = learners.map(([name, taken]) => `${name} ${taken === null ? waits : `after ${count(taken)} examples`}`);
  return `${what}; within 2 points of ${percent(goal)}: ${each.join(", ")}${sayLead(learners)}`;
}

// By how many times the served learner was sooner than the next, in words; empty if that is unknown.
function sayLead(learners) {
  const taken = Object.fromEntries(learners), served = taken[SERVED];
  const others = learners.filter(([name, one]) => name !== SERVED && one !== null).map(([, one]) => one);
  const next = Math.min(...others);
  if (!served || !others.length || next === 0 || next === served) return "";
  const [ratio, word] = next > served ? [next / served, "sooner"] : [served / next, "later"];
  return `: ${ratio.toFixed(1)} times ${word}`;
}

function sayDrift(drift) {
  const accuracies = [drift.accuracy_before, drift.accuracy_after].map((a) => (a == null ? "–" : percent(a)));
  const back = drift.recovery_examples == null ? "" : `, recovered after ${count(drift.recovery_examples)} examples`;
  return `${drift.detector} detected a change for the ${drift.direction}: ${accuracies.join(" → ")}${back}`;
}

async function offerControls() {
  const document_ = await (await fetch(address("/openapi.json"))).json();
  if (!("/demo/shift" in document_.paths)) return;
  const { controls } = await (await fetch(address("/demo/shift"))).json();
  byId("buttons").append(...controls.map(({ kind, label }) => {
    const button = element("button", { type: "button", "data-kind": kind }, label);
    button.addEventListener("click", () => shift(kind));
    return button;
  }));
  byId("controls").hidden = false;
}

async function shift(kind) {
  let words = "The service cannot be reached.";
  try {
    const answer = await fetch(address("/demo/shift"), {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ kind }),
    });
    const body = await answer.json();
    words = answer.ok ? `From now on: ${body.what}.` : body.error.message;
  } catch {
    showConnection();
  }
  byId("controlled").textContent = words;
}

connect();
setInterval(showConnection, 1000);
setInterval(askModel, MODEL_MS);
for (const id of ["window", "tensor"]) byId(id).addEventListener("change", draw);
offerControls();
