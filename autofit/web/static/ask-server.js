// Requests to the service. An error becomes an Error with the service's own words.
export async function send(method, path, body, signal) {
  const options = { method, headers: { Accept: "application/json" }, signal, credentials: "same-origin" };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  const answer = await fetch(path, options);
  if (answer.status === 204) return null;
  const document = await answer.json().catch(() => null);
  if (answer.ok) return document;
  const fault = new Error(document?.error?.message ?? `the service answered ${answer.status}`);
  fault.status = answer.status;
  throw fault;
}
export const get = (path, signal) => send("GET", path, undefined, signal);

let timer;
export function say(text) {
  const place = document.getElementById("said");
  place.textContent = text;
  clearTimeout(timer);
  timer = setTimeout(() => (place.textContent = ""), 4000);
}
