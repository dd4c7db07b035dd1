import { send } from "./ask-server.js";

const form = document.getElementById("ask");
const at = (id) => document.getElementById(id);
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  at("fault").hidden = true;
  at("counted").textContent = "…";
  try {
    const found = await send("POST", "/api/query", { sql: form.elements.sql.value });
    at("counted").textContent = `${found.rows.length} rows${found.truncated ? ", and there are more" : ""}`;
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const name of found.columns) head.append(Object.assign(document.createElement("th"), { textContent: name, scope: "col" }));
    const body = table.createTBody();
    for (const row of found.rows) {
      const line = body.insertRow();
      for (const value of row) Object.assign(line.insertCell(), { textContent: value ?? "–", className: typeof value === "number" ? "" : "words" });
    }
    at("answer").replaceChildren(table);
    at("answer").hidden = false;
  } catch (problem) {
    at("counted").textContent = "";
    at("fault").textContent = problem.message;
    at("fault").hidden = false;
  }
});
