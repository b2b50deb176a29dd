// A button that pauses and resumes learning. A service with keys asks for the key of scope admin.

import { address } from "./address.js";

const byId = (id) => document.getElementById(id);

let isPaused = false;

// model: of GET /model.
export function showOrders(model, done) {
  isPaused = model.condition === "paused";
  byId("order-button").textContent = isPaused ? "Resume learning" : "Pause learning";
  byId("order").onsubmit = (event) => {
    event.preventDefault();
    give(done);
  };
}

async function give(done) {
  const key = byId("order-key").value, answered = byId("order-answer");
  try {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const answer = await fetch(address(isPaused ? "/resume" : "/pause"), { method: "POST", headers });
    const needsKey = answer.status === 401 || answer.status === 403;
    byId("order-for").hidden = !needsKey && !key;
    answered.textContent = answer.ok ? "" : (await answer.json()).error.message;
  } catch {
    answered.textContent = "The service cannot be reached.";
  }
  done();
}
