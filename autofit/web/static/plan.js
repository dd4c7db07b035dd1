// Sliders to a spec, the spec to a prediction, at once; an answer that is overtaken is dropped.
import { send } from "./ask-server.js";
import { bars, legend, stack } from "./chart.js";
import { figure, seconds, size } from "./words.js";

const form = document.getElementById("plan");
const at = (id) => document.getElementById(id);
const value = (name) => {
  const input = form.elements[name];
  const at = Number(input.value);
  return input.dataset.power ? Number(input.dataset.power) ** at : input.dataset.factor ? Number(input.dataset.factor) * at : at;
};

function tellSliders() {
  for (const input of form.querySelectorAll("input[type=range]")) {
    const amount = value(input.name);
    const text = input.dataset.kind === "pixels" ? `${(amount / 1e6).toFixed(2)} M` : amount.toLocaleString("en");
    input.closest("label").querySelector("output").textContent = text + (input.dataset.unit ?? "");
    input.setAttribute("aria-valuetext", text + (input.dataset.unit ?? ""));
  }
}

function asked() {
  const checked = (name) => form.elements[name].checked;
  const preset = form.elements.preset.value;
  return {
    spec: {
      model: { preset },
      method: form.elements.method.value,
      precision: preset.startsWith("tiny") ? "fp32" : "bf16",
      micro_batch_size: value("micro_batch_size"),
      gradient_accumulation_steps: value("gradient_accumulation_steps"),
      cutoff_len: value("cutoff_len"),
      zero_stage: Number(form.elements.zero_stage.value),
      offload_optimizer: checked("offload_optimizer"),
      num_gpus: value("num_gpus"),
      gradient_checkpointing: checked("gradient_checkpointing"),
      freeze_vision_tower: checked("freeze_vision_tower"),
      freeze_multi_modal_projector: checked("freeze_multi_modal_projector"),
      images: { per_sample: 1, max_pixels: value("max_pixels") },
    },
    gpu_mem: `${form.elements.gpu_mem.value}GB`,
    card: form.elements.card.value,
  };
}

let running = null;
let timer = null;
const answer = document.querySelector(".answer");

async function ask() {
  running?.abort();
  running = new AbortController();
  const mine = running;
  answer.classList.add("asking");
  answer.setAttribute("aria-busy", "true");
  const patience = setTimeout(() => (at("verdict-more").textContent = "This variant is traced for the first time, which takes some seconds."), 800);
  try {
    const found = await send("POST", "/api/predict", { ...asked(), timeline: true }, mine.signal);
    if (mine === running) tellAnswer(found);
  } catch (fault) {
    if (fault.name === "AbortError") return;
    at("verdict").textContent = "cannot be predicted";
    at("verdict").className = "verdict";
    at("verdict-more").textContent = fault.message;
    for (const id of ["stack", "plan-timeline", "stack-terms"]) at(id).replaceChildren();
    for (const id of ["plan-speed", "plan-step", "plan-high", "plan-phase"]) at(id).textContent = "–";
  } finally {
    clearTimeout(patience);
    if (mine === running) {
      answer.classList.remove("asking");
      answer.removeAttribute("aria-busy");
    }
  }
}

function tellAnswer({ prediction, memory_budget_bytes: budget, timeline, terms }) {
  const over = prediction.peak_device_bytes_high - budget;
  at("verdict").textContent = over > 0 ? `Does not fit: ${size(over)} too much` : `Fits, ${size(-over)} to spare`;
  at("verdict").className = `verdict ${over > 0 ? "no" : "yes"}`;
  at("verdict-more").textContent = `${size(prediction.peak_device_bytes)} at the peak, at most ${size(prediction.peak_device_bytes_high)}, of ${size(budget)} a device; ${prediction.precision_mode}`;
  const shown = terms.filter((term) => term.bytes > 0);
  const parts = shown.map((term) => ({ bytes: term.bytes, colour: term.colour, kind: term.colour ? "" : "plain-term", title: `${term.label} ${size(term.bytes)}` }));
  const margin = prediction.peak_device_bytes_high - prediction.peak_device_bytes;
  parts.push({ bytes: margin, kind: "bar-margin", title: `margin of the prediction ${size(margin)}` });
  bars(at("stack"), { rows: [{ name: "device", parts, text: "" }], budget, format: size });
  legend(at("stack-terms"), shown, size);
  at("plan-speed").textContent = figure(prediction.samples_per_second);
  at("plan-step").textContent = seconds(prediction.step_time_seconds);
  at("plan-high").textContent = size(prediction.peak_device_bytes_high);
  at("plan-phase").textContent = prediction.phase.replace("_", " ");
  stack(at("plan-timeline"), { timeline, budget, format: size, height: 260 });
  at("assumed").replaceChildren(
    ...[...prediction.assumptions.map((line) => `assumed: ${line}`), ...prediction.not_modelled.map((line) => `not modelled: ${line}`)].map((line) => Object.assign(document.createElement("li"), { textContent: line })),
  );
}

form.addEventListener("input", () => {
  tellSliders();
  at("remedies").replaceChildren();
  clearTimeout(timer);
  timer = setTimeout(ask, 120);
});
form.addEventListener("submit", (event) => event.preventDefault());

at("remedy").addEventListener("click", async () => {
  const place = at("remedies");
  place.textContent = "Trying single changes…";
  at("remedy").disabled = true;
  try {
    const found = await send("POST", "/api/explain", asked());
    if (found.fits) place.textContent = "It fits as it is.";
    else if (!found.remedies.length) place.textContent = "No single change makes it fit.";
    else {
      const table = document.createElement("table");
      table.innerHTML = '<thead><tr><th scope="col" class="words">change</th><th scope="col">at most</th><th scope="col">speed</th><th scope="col" class="words">training</th></tr></thead>';
      const body = table.createTBody();
      for (const one of found.remedies) {
        const row = body.insertRow();
        const cells = [one.change, size(one.peak_device_bytes_high), `${one.samples_per_second_ratio.toFixed(2)}×`, one.training_changes.join("; ") || "same"];
        cells.forEach((text, index) => Object.assign(row.insertCell(), { textContent: text, className: index % 3 ? "" : "words" }));
      }
      place.replaceChildren(table);
    }
  } catch (fault) {
    place.textContent = fault.message;
  }
  at("remedy").disabled = false;
});

tellSliders();
ask();
