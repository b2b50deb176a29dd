// Shows what the service tells, at most once a second.

import { address } from "./address.js";
import { Chart, element } from "./charts.js";
import { connect, isLive, told } from "./events.js";
import { sayExperts, showOptimizer } from "./optimizer.js";
import { showOrders } from "./orders.js";
import { showPictures } from "./pictures.js";
import { showQuestions } from "./questions.js";
import { showRows } from "./rows.js";
import { showScores } from "./scores.js";
import { marks, sayLastRecovery, showShifts } from "./shifts.js";
import { showConnection, showState } from "./state.js";
import { offerTry } from "./try.js";
import { count, percent } from "./words.js";

const DRAW_MS = 1000;
const SPEAK_MS = 20_000;
const MODEL_MS = 5000;
const SERVED = "served";
const byId = (id) => document.getElementById(id);

let model = null, drawnAt = 0, spokenAt = 0, planned = false;

const accuracy = new Chart(byId("main-chart"), {
  id: "accuracy", title: "Accuracy of the last 1,000 examples", height: 320,
  format: (v) => `${Math.round(100 * v)} %`, floor: 0, ceiling: 1,
});

function plan() {
  if (planned) return;
  planned = true;
  setTimeout(() => requestAnimationFrame(draw), Math.max(0, drawnAt + DRAW_MS - performance.now()));
}

function watch() {
  showConnection();
  showState(model);
}

async function askModel() {
  if (!isLive()) return;
  try {
    const answer = await fetch(address("/model"));
    if (!answer.ok) return;
    model = await answer.json();
    await offerTry(model);
  } catch {
    return; // the stream of events fails too, and shows it
  }
  showScores(model);
  showQuestions(model.questions, model.rolling_accuracy);
  if (hits() !== "Accuracy") {
    accuracy.title.textContent = "Share of the last 1,000 predictions nearer than the mean";
  }
  if (model.inputs === "rows") showRows(isLive);
  showOrders(model, askModel);
  const served = model.promoted ? `answered by ${model.promoted}` : `learned with ${model.optimizer}`;
  byId("model").textContent = `${model.model}, ${model.task}, ${served}`;
  watch();
}

function shown() {
  const seconds = Number(byId("window").value), newest = told.points.at(-1).time;
  return told.points.filter((p) => p.time >= newest - seconds);
}

function draw() {
  [planned, drawnAt] = [false, performance.now()];
  if (!told.points.length) return;
  const kept = shown(), now = kept.at(-1);
  const axis = { x: kept.map((p) => p.examples), times: kept.map((p) => p.time), marks: marks(told) };
  const lines = (group, floor) => Object.keys(now[group]).map((name) =>
    ({ name, floor, values: kept.map((p) => p[group][name]?.rolling_accuracy) }));
  const words = sayAccuracy(now);
  accuracy.show({ ...axis, lines: [...lines("learners", false), ...lines("floors", true)] }, words);
  showStory([sayLead(now), sayLastRecovery(told.shifts), sayFamilies(now)]);
  if (byId("inside").open) showOptimizer(kept, axis);
  showTiles(now);
  showShifts(told);
  watch();
  if (drawnAt - spokenAt > SPEAK_MS) {
    spokenAt = drawnAt;
    byId("spoken").textContent = `${hits()}: ${words}`;
  }
}

function scored({ learners, floors }) {
  return Object.entries({ ...learners, ...floors })
    .filter(([, scores]) => scores.rolling_accuracy !== null)
    .map(([name, scores]) => [name, scores.rolling_accuracy]);
}

function sayAccuracy(now) {
  return scored(now).map(([name, share]) => `${name} ${percent(share)}`).join(", ");
}

// How the served learner compares with the others, in words.
function sayLead(now) {
  const [, served] = scored(now).find(([name]) => name === SERVED) ?? [];
  if (served === undefined) return "";
  const others = scored(now).filter(([name]) => name !== SERVED).map(([name, share]) => {
    const points = 100 * (served - share);
    return `${Math.abs(points).toFixed(1)} points ${points >= 0 ? "above" : "below"} ${name}`;
  });
  const what = hits() === "Accuracy" ? "is right on" : "is nearer than the mean on";
  const rest = others.length ? `, ${others.join(", ")}` : "";
  return `The served model ${what} ${percent(served)} of the last 1,000 examples${rest}.`;
}

function showStory(sentences) {
  const known = sentences.filter(Boolean), list = byId("story");
  while (list.children.length > known.length) list.lastChild.remove();
  while (list.children.length < known.length) list.append(element("li"));
  known.forEach((words, k) => {
    list.children[k].textContent = words;
  });
}

function sayFamilies(now) {
  return model?.model === "auto" ? sayExperts(Object.entries(now.expert_weights)) : "";
}

// Name of the share of predictions that are right: a number is, if nearer than the mean before it.
function hits() {
  return Object.keys(model?.numbers ?? {}).length ? "Nearer than the mean" : "Accuracy";
}

function showTiles(now) {
  const share = now.learners[SERVED]?.rolling_accuracy;
  fill(byId("now"), {
    [hits()]: share == null ? "–" : percent(share),
    "Examples learned": count(now.examples),
    "Examples a second": count(Math.round(now.throughput ?? 0)),
    "Waiting": count(now.backlog),
  });
  fill(byId("operation"), {
    "Checkpoint age": now.checkpoint_age === null ? "none yet" : `${Math.round(now.checkpoint_age)} s`,
    "Model version": count(now.version),
    "Device": model?.device ?? "–",
    "Role": model?.role ?? "–",
  });
}

function fill(list, entries) {
  const names = Object.keys(entries);
  if (list.children.length !== names.length) {
    list.replaceChildren(...names.map(() => element("div", {}, element("dt"), element("dd"))));
  }
  names.forEach((name, k) => {
    list.children[k].firstChild.textContent = name;
    list.children[k].lastChild.textContent = entries[name];
  });
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

function open() {
  askModel();
  showPictures(isLive);
}

connect({ open, news: plan, lost: watch });
setInterval(watch, 1000);
setInterval(askModel, MODEL_MS);
for (const id of ["window", "tensor"]) byId(id).addEventListener("change", draw);
byId("inside").addEventListener("toggle", draw);
offerControls();
