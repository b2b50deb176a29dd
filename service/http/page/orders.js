// Buttons that pause and resume learning, and promote a shadow. A service with keys asks for the key
// of scope admin.

import { address } from "./address.js";

const byId = (id) => document.getElementById(id);

let isPaused = false;

// model: of GET /model.
export function showOrders(model, done) {
  isPaused = model.condition === "paused";
  byId("order-button").textContent = isPaused ? "Resume learning" : "Pause learning";
  byId("order").onsubmit = (event) => {
    event.preventDefault();
    give(isPaused ? "/resume" : "/pause", null, done);
  };
  offer(shadowsOf(model));
  byId("promote-button").onclick = () =>
    give("/promote", { learner: byId("promote-learner").value }, done);
}

function shadowsOf(model) {
  const others = model.hyperparameters.shadow.filter((name) => name !== model.promoted);
  return model.promoted ? ["original", ...others] : others;
}

function offer(shadows) {
  const select = byId("promote-learner");
  byId("promote").hidden = !shadows.length;
  if (shadows.join() === [...select.options].map((option) => option.value).join()) return;
  select.replaceChildren(...shadows.map((name) => new Option(name)));
}

async function give(path, content, done) {
  const key = byId("order-key").value, answered = byId("order-answer");
  try {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    if (content) headers["Content-Type"] = "application/json";
    const body = content && JSON.stringify(content);
    const answer = await fetch(address(path), { method: "POST", headers, body });
    const needsKey = answer.status === 401 || answer.status === 403;
    byId("order-for").hidden = !needsKey && !key;
    answered.textContent = answer.ok ? "" : (await answer.json()).error.message;
  } catch {
    answered.textContent = "The service cannot be reached.";
  }
  done();
}
