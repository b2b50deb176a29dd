// A command that sends the first example, in the model's shape; a form that sends a file of rows; and
// a form to try a prediction.

import { address } from "./address.js";

const JSON_TYPE = "application/json";
const byId = (id) => document.getElementById(id);

let asked = 0;

// model: of GET /model. The shape may change while the model has learned nothing.
export async function offerTry(model) {
  byId("start").hidden = model.examples_learned > 0;
  const stage = model.examples_learned > 0 ? 2 : 1;
  if (asked === stage) return;
  asked = stage;
  const answer = await fetch(address("/openapi.json"));
  if (!answer.ok) return;
  const { paths } = await answer.json();
  const [learn, predict] = ["/learn", "/predict"].map((path) =>
    paths[path].post.requestBody.content[JSON_TYPE].example);
  if (learn === undefined) return;
  byId("file-form").hidden = !("rows" in learn);
  byId("curl").textContent = `curl ${location.origin}/learn -H 'Content-Type: ${JSON_TYPE}' \\\n`
    + `  -d '${JSON.stringify(learn).replaceAll("'", "'\\''")}'`;
  if (byId("try-body").value === "" || stage === 1) byId("try-body").value = JSON.stringify(predict);
  byId("try").hidden = false;
}

byId("file-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const shown = byId("file-answer"), label = byId("file-label").value;
  const query = new URLSearchParams({ wait: "applied", ...(label && { label }) });
  shown.textContent = "Learning …";
  shown.textContent = await post(`/learn?${query}`, "text/csv", byId("file").files[0]);
});

byId("try-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  byId("try-answer").textContent = await post("/predict", JSON_TYPE, byId("try-body").value);
});

async function post(path, type, body) {
  try {
    const answer = await fetch(address(path), { method: "POST", headers: { "Content-Type": type }, body });
    const content = await answer.json();
    return answer.ok ? JSON.stringify(content) : content.error.message;
  } catch {
    return "The service cannot be reached.";
  }
}
