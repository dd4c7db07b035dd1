import { send } from "./ask-server.js";

const form = document.getElementById("new");
const fault = document.getElementById("fault");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = {};
  for (const input of form.elements) {
    if (!input.name || input.value === "") continue;
    body[input.name] = input.type === "number" ? Number(input.value) : input.value;
  }
  try {
    const study = await send("POST", "/api/studies", body);
    location.assign(`/studies/${encodeURIComponent(study.study)}`);
  } catch (problem) {
    fault.textContent = problem.message;
    fault.hidden = false;
    fault.scrollIntoView({ block: "nearest" });
  }
});
