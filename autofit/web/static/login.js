import { send } from "./ask-server.js";

const form = document.getElementById("login");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await send("POST", "/api/session", { token: form.elements.token.value.trim() });
    location.assign(form.dataset.next);
  } catch (problem) {
    const fault = document.getElementById("fault");
    fault.textContent = problem.message;
    fault.hidden = false;
  }
});
