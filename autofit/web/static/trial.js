// A trial: its bars, its predicted step, its measured steps.
import { get } from "./ask-server.js";
import { bars, curve, legend, stack } from "./chart.js";
import { seconds, size } from "./words.js";

const page = document.getElementById("trial");
const at = (id) => document.getElementById(id);
const { study, trial } = page.dataset;
const budget = Number(page.dataset.budget);
const base = `/api/studies/${encodeURIComponent(study)}/trials/${trial}`;

const known = at("against").dataset;
const rows = [];
if (known.predicted) {
  const low = Number(known.predicted);
  const margin = Math.max(0, Number(known.high) - low);
  rows.push({ name: "predicted", parts: [{ bytes: low, kind: "bar-predicted", title: size(low) }, { bytes: margin, kind: "bar-margin", title: `at most ${size(low + margin)}` }], text: `${size(low)}, at most ${size(low + margin)}` });
}
if (known.measured) rows.push({ name: "measured", parts: [{ bytes: Number(known.measured), kind: "bar-measured" }], text: size(Number(known.measured)) });
if (known.reserved) rows.push({ name: "reserved", parts: [{ bytes: Number(known.reserved), kind: "bar-measured" }], text: size(Number(known.reserved)) });
if (known.allocated) rows.push({ name: "allocated", parts: [{ bytes: Number(known.allocated), kind: "bar-measured" }], text: size(Number(known.allocated)) });
if (rows.length) bars(at("against"), { rows, budget, format: size });
else at("against").textContent = "Neither was predicted nor measured.";

if (at("steps")) {
  get(base).then((document) => {
    const found = document.result?.ranks?.[0]?.step_seconds ?? [];
    if (found.length > 1) curve(at("steps"), { points: found.map((y, x) => ({ x, y })), yFormat: seconds, yName: "seconds of each step", xName: "" });
    else at("steps").remove();
  });
}

get(`${base}/timeline`)
  .then((found) => {
    const timeline = found.timeline;
    at("timeline").hidden = false;
    const notes = ["Tensors, as a GPU holds them.", `The highest point is in ${timeline.peak_phase.replace("_", " ")}.`, timeline.first_step ? "The first step is shown: it makes the optimizer's state and needs more than later ones." : "", ...timeline.not_shown.map((line) => `Not shown: ${line}.`)];
    at("timeline-note").textContent = notes.filter(Boolean).join(" ");
    stack(at("timeline"), { timeline, budget, format: size });
    legend(at("timeline-terms"), timeline.terms, size);
  })
  .catch((fault) => (at("timeline-note").textContent = `It cannot be predicted here: ${fault.message}`));

// a trial whose model has no weights cannot be exported: the button goes, rather than download an error
const link = document.querySelector("[data-needs-export]");
if (link) get(`/api/studies/${encodeURIComponent(study)}/export?trial=${trial}`).catch(() => link.remove());
