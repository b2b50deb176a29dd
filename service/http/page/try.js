// A command that sends the first example, and a form to try a prediction, both in the model's shape.

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
  byId("curl").textContent = `curl ${location.origin}/learn -H 'Content-Type: ${JSON_TYPE}' \\\n`
    + `  -d '${JSON.stringify(learn).replaceAll("'", "'\\''")}'`;
  if (byId("try-body").value === "" || stage === 1) byId("try-body").value = JSON.stringify(predict);
  byId("try").hidden = false;
}

byId("try-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const shown = byId("try-answer");
  try {
    const answer = await fetch(address("/predict"), {
      method: "POST", headers: { "Content-Type": JSON_TYPE }, body: byId("try-body").value,
    });
    const body = await answer.json();
    shown.textContent = answer.ok ? JSON.stringify(body) : body.error.message;
  } catch {
    shown.textContent = "The service cannot be reached.";
  }
});
