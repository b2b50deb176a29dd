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
import { amount, count, percent } from "./words.js";

const DRAW_MS = 1000;
const SPEAK_MS = 20_000;
const MODEL_MS = 5000;
const SERVED = "served";
const WINDOW = 1000;
const byId = (id) => document.getElementById(id);

let model = null, drawnAt = 0, spokenAt = 0, planned = false;

// How the main chart judges predictions: classes by the share that is right, numbers by their mean error.
const OF_CLASSES = {
  key: "rolling_accuracy", name: "Accuracy", write: percent, format: (v) => `${Math.round(100 * v)} %`, ceiling: 1,
};
const OF_NUMBERS = { key: "rolling_loss", name: "Mean absolute error", write: amount, format: amount };
const OF_QUANTILES = { ...OF_NUMBERS, name: "Mean pinball loss" };
const titled = ({ name }) => `${name} of the last 1,000 examples`;

const main = new Chart(byId("main-chart"), {
  id: "accuracy", title: titled(OF_CLASSES), height: 320, floor: 0, ...OF_CLASSES,
});

function judging() {
  if (!model || model.task === "regression") return model ? OF_NUMBERS : OF_CLASSES;
  return model.task.startsWith("quantile") ? OF_QUANTILES : OF_CLASSES;
}

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
  const own = judging();
  Object.assign(main, { format: own.format, ceiling: own.ceiling });
  if (main.title.textContent !== titled(own)) main.title.textContent = titled(own);
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
  const { key } = judging();
  const lines = (group, floor) => Object.keys(now[group]).map((name) =>
    ({ name, floor, values: kept.map((p) => p[group][name]?.[key]) }));
  const words = sayScores(now);
  main.show({ ...axis, lines: [...lines("learners", false), ...lines("floors", true)] }, words);
  showStory([sayLead(now), sayLastRecovery(told.shifts), sayFamilies(now)]);
  if (byId("inside").open) showOptimizer(kept, axis);
  showTiles(now);
  showShifts(told, key === OF_CLASSES.key ? "" : " of the numbers nearer than the mean");
  watch();
  if (drawnAt - spokenAt > SPEAK_MS) {
    spokenAt = drawnAt;
    byId("spoken").textContent = `${judging().name}: ${words}`;
  }
}

function scored({ learners, floors }) {
  const { key } = judging();
  return Object.entries({ ...learners, ...floors })
    .filter(([, scores]) => scores[key] !== null)
    .map(([name, scores]) => [name, scores[key]]);
}

function sayScores(now) {
  return scored(now).map(([name, score]) => `${name} ${judging().write(score)}`).join(", ");
}

// How the served learner compares with the others, in words.
function sayLead(now) {
  const [, served] = scored(now).find(([name]) => name === SERVED) ?? [];
  if (served === undefined) return "";
  const { name, write, key } = judging(), isShare = key === OF_CLASSES.key;
  const rivals = scored(now).filter(([other, score]) => other !== SERVED && (isShare || score > 0));
  const others = rivals.map(([other, score]) => {
    const size = isShare ? 100 * (served - score) : 100 * (served / score - 1);
    const side = size >= 0 ? "above" : "below";
    return `${Math.abs(size).toFixed(1)} ${isShare ? "points" : "%"} ${side} ${other}`;
  });
  const rest = others.length ? `, ${others.join(", ")}` : "";
  const counted = count(Math.min(WINDOW, now.examples));
  return isShare
    ? `The served model is right on ${write(served)} of the last ${counted} examples${rest}.`
    : `The served model has a ${name.toLowerCase()} of ${write(served)} over the last ${counted} examples${rest}.`;
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

function showTiles(now) {
  const { key, name, write } = judging(), score = now.learners[SERVED]?.[key];
  fill(byId("now"), {
    [name]: score == null ? "–" : write(score),
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
