// What every page has: theme, copying, signing out.
import { say, send } from "./ask-server.js";

document.querySelector("[data-theme-switch]").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("autofit-theme", root.dataset.theme);
});

document.querySelector("[data-sign-out]")?.addEventListener("click", async () => {
  await send("DELETE", "/api/session");
  location.assign("/login");
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    say("Copied");
  } catch {
    getSelection().selectAllChildren(source); // no clipboard without TLS: the text is marked instead
    say("Marked: copy it with Ctrl-C");
  }
});
