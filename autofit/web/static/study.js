// A study, live: what the service sends is drawn as it comes.
import { get, say, send } from "./ask-server.js";
import { curve, progress, scatter } from "./chart.js";
import { figure, gib, knobs, outcome, seconds, size } from "./words.js";

const page = document.getElementById("study");
const at = (id) => document.getElementById(id);
const study = page.dataset.study;
const base = `/api/studies/${encodeURIComponent(study)}`;
const trialHref = (number) => `/studies/${encodeURIComponent(study)}/trials/${number}`;
const trials = new Map();
let now = null;
let front = { front: [], others: [] };
let samples = { trial: null, points: [], from: 0, base: null };

const predicted = () => now?.device === "none";
const objective = page.dataset.objective.replace(/^(epoch_seconds|cost_per_epoch)$/, "samples_per_second");
const unit = { samples_per_second: "samples/s", tokens_per_second: "tokens/s", effective_tokens_per_second: "effective tokens/s" }[objective];
const speedOf = (row) => row.samples_per_second ?? row.predicted_samples_per_second ?? null;
// what the study maximises; predictions are made for full samples
const rateOf = (row) => row.objective_value ?? (row.predicted_samples_per_second === null ? null : row.predicted_samples_per_second * (objective === "samples_per_second" ? 1 : row.cutoff_len));
const peakOf = (row) => row.peak_device_bytes ?? row.predicted_peak_bytes ?? null;

const failed = (row) => !["COMPLETED", "PREDICTED", "SKIPPED", "GROWTH", "THRASH"].includes(row.outcome);
const fits = (row) => row.outcome === "PREDICTED" || (row.outcome === "COMPLETED" && row.margin_bytes >= 0);

function about(row, more = []) {
  if (failed(row)) return [`trial ${row.trial_number}: ${outcome(row)}`, row.phase ? `in ${row.phase.replace("_", " ")}` : "", knobs(row)].filter(Boolean);
  const kind = row.samples_per_second || row.peak_device_bytes ? "" : ", predicted";
  return [`trial ${row.trial_number}: ${outcome(row)}`, `${figure(rateOf(row))} ${unit}${kind}`, `${size(peakOf(row))} at the peak`, knobs(row), ...more];
}

function drawFront() {
  const budget = front.memory_budget_bytes;
  const fronted = new Map(front.front.map((row) => [row.trial_number, row.gives_up]));
  const rows = new Map([...front.others, ...front.front].map((row) => [row.trial_number, row]));
  for (const row of trials.values()) if (row.purpose === "search" && row.outcome) rows.set(row.trial_number, row);
  const points = [];
  for (const row of rows.values()) {
    if (!row.outcome) continue; // it runs
    // one that failed was at the budget's edge at least, unless its peak is known
    const peak = failed(row) ? row.peak_device_bytes ?? budget : peakOf(row);
    if (peak === null || (!failed(row) && rateOf(row) === null)) continue;
    const givesUp = fronted.get(row.trial_number);
    const kind = givesUp ? (givesUp.length ? "trade" : "front") : failed(row) ? "failed" : fits(row) ? "other" : "over";
    const lines = about(row, givesUp);
    points.push({ x: gib(peak), y: failed(row) ? 0 : rateOf(row), kind, winner: row.trial_number === now?.winner_trial_number, href: trialHref(row.trial_number), label: lines.join(", "), lines });
  }
  const rank = { failed: 0, over: 0, other: 1, trade: 2, front: 3 };
  points.sort((a, b) => rank[a.kind] - rank[b.kind] || a.x - b.x);
  const line = points.filter((point) => point.kind === "front").filter((point, place, all) => !place || point.y > Math.max(...all.slice(0, place).map((one) => one.y)));
  if (points.some((point) => point.y > 0)) scatter(at("pareto"), { points, front: line, budget: budget ? gib(budget) : null, xName: "peak memory", yName: unit });
}

// what a trial trains, as far as its row tells
const training = (row) => [row.method, row.lora_rank, row.cutoff_len, row.freeze_vision_tower, row.freeze_multi_modal_projector, row.freeze_language_model].join();

function drawProgress() {
  if (!at("progress")) return;
  const asked = new Set(front.front.filter((row) => !row.gives_up.length).map(training));
  const best = trials.get(now?.winner_trial_number ?? now?.best?.trial_number); // nothing better may stand for it on the front
  if (best) asked.add(training(best));
  const rows = [...trials.values()].filter((row) => row.purpose === "search" && row.outcome).sort((a, b) => a.trial_number - b.trial_number);
  const points = rows.map((row) => {
    const lines = about(row);
    const kind = !fits(row) ? "over" : asked.has(training(row)) ? "front" : "trade";
    return { x: row.trial_number, y: row.objective_value, kind, href: trialHref(row.trial_number), label: lines.join(", "), lines };
  });
  if (points.length) progress(at("progress"), { points, yName: unit });
}

let due = null;
function drawSoon() {
  due ??= setTimeout(async () => {
    due = null;
    try {
      front = await get(`${base}/pareto`);
    } catch {
      return;
    }
    drawFront();
    drawProgress();
  }, 150);
}

function state() {
  const job = now.job && !["RUNNING", "DONE"].includes(now.job.state) ? now.job.state : now.status;
  return job.toLowerCase();
}

function tellStudy() {
  at("state").textContent = state();
  at("state").className = `pill ${state()}`;
  const best = now.best;
  if (!predicted()) at("best-title").textContent = now.winner_trial_number === null ? "Best so far" : "Winner";
  if (best) {
    at("best-speed").textContent = figure(best.samples_per_second);
    const words = document.createElement("a");
    words.href = trialHref(best.trial_number);
    const row = trials.get(best.trial_number);
    words.textContent = `trial ${best.trial_number}`;
    at("best-words").replaceChildren(words, row ? ` · ${knobs(row)}` : "");
    at("best-peak").textContent = size(best.peak_device_bytes);
    at("best-margin").textContent = `${size(best.margin_bytes)} below the budget of ${size(now.memory_budget_bytes)}`;
  } else if (predicted() && now.winner_trial_number !== null && trials.has(now.winner_trial_number)) {
    const row = trials.get(now.winner_trial_number);
    const words = document.createElement("a");
    words.href = trialHref(row.trial_number);
    words.textContent = `trial ${row.trial_number}`;
    at("best-speed").textContent = figure(speedOf(row));
    at("best-words").replaceChildren(words, ` · ${knobs(row)}`);
    at("best-peak").textContent = size(peakOf(row));
    at("best-margin").textContent = `predicted, of a budget of ${size(now.memory_budget_bytes)}`;
  }
  const done = now.trials - now.running;
  at("count").textContent = done.toLocaleString("en");
  const wanted = now.job?.trials_wanted;
  at("wanted").textContent = wanted && !predicted() ? ` of ${wanted}` : "";
  const over = now.status === "FINISHED";
  at("bar").value = over ? 1 : wanted ? Math.min(1, done / wanted) : 0;
  at("bar").hidden = !over && !wanted;
  at("ooms").textContent = predicted() ? now.skipped : now.out_of_memory + now.skipped;
  const message = now.job?.message;
  at("job-message").hidden = !message || now.job.state === "DONE";
  at("job-message").textContent = message ?? "";
  if (now.job && page.dataset.role === "write") {
    const can = { QUEUED: ["pause", "cancel"], RUNNING: ["pause", "cancel"], PAUSED: ["resume", "cancel"], FAILED: ["resume"] }[now.job.state] ?? [];
    at("actions").hidden = false;
    for (const button of at("actions").querySelectorAll("[data-do]")) button.hidden = !can.includes(button.dataset.do);
  }
  at("running").hidden = !now.running || over;
}

function put(row, isNews) {
  trials.set(row.trial_number, row);
  const body = at("rows");
  if (body.dataset.live !== "yes" || !isNews) return;
  let line = body.querySelector(`[data-trial="${row.trial_number}"]`);
  if (!line) {
    if (body.children.length >= 50) return;
    line = document.createElement("tr");
    line.dataset.trial = row.trial_number;
    body.append(line);
    at("no-rows")?.remove();
  }
  const link = document.createElement("a");
  link.href = trialHref(row.trial_number);
  link.textContent = row.trial_number;
  const dot = document.createElement("span");
  dot.className = `dot ${(row.outcome ?? "running").toLowerCase()}`;
  const purpose = row.purpose === "search" ? "" : ` · ${row.purpose}`;
  const cells = [[link], [dot, outcome(row) + purpose], [size(failed(row) ? row.peak_device_bytes : peakOf(row))], [seconds(stepOf(row))], [figure(failed(row) ? null : speedOf(row))], [knobs(row)]];
  line.replaceChildren(
    ...cells.map((parts, place) => {
      const cell = document.createElement("td");
      cell.append(...parts);
      if (place === 1 || place === 5) cell.className = "words";
      return cell;
    }),
  );
  line.classList.remove("fresh");
  void line.offsetWidth;
  line.classList.add("fresh");
}

function stepOf(row) {
  return row.samples_per_second && now?.devices ? (row.micro_batch_size * row.gradient_accumulation_steps * now.devices) / row.samples_per_second : null;
}

function tick(beat) {
  if (now.status === "FINISHED") return;
  at("running").hidden = false;
  at("running-trial").textContent = `trial ${beat.trial_number}`;
  at("running-trial").href = trialHref(beat.trial_number);
  at("running-where").textContent = beat.phase === "start" ? "starting" : `${beat.phase.replace("_", " ")}, step ${beat.step}`;
  if (samples.trial !== beat.trial_number) samples = { trial: beat.trial_number, points: [], from: Date.now() };
  if (beat.memory_bytes !== null) samples.points.push({ x: (Date.now() - samples.from) / 1000, y: beat.memory_bytes });
  if (samples.points.length > 600) samples.points = samples.points.filter((_, place) => place % 2);
  const cuda = now.device === "cuda";
  at("memory-note").textContent = cuda
    ? "What the device has in use, looked at twice a second; the measured peak comes with the result."
    : "Resident memory of the process, its libraries included, looked at twice a second. A processor's budget counts only what the model adds, so that it cannot be drawn here.";
  curve(at("memory-now"), { points: samples.points, limit: cuda ? now.memory_budget_bytes : null, limitName: `budget ${size(now.memory_budget_bytes)}`, yFormat: size, xName: "" });
}

async function offerExport() {
  if (!now || now.status === "WAITING") return;
  const launcher = at("launcher").value;
  const number = now.winner_trial_number ?? now.best?.trial_number;
  if (number === null || number === undefined) return;
  at("export").hidden = false;
  const query = `launcher=${launcher}&trial=${number}`;
  at("download-yaml").hidden = launcher !== "llamafactory";
  at("download-yaml").href = `${base}/export/train.yaml?trial=${number}`;
  at("download-zip").href = `${base}/export.zip?${query}`;
  at("export-what").textContent = `Trial ${number}, ${now.winner_trial_number === number ? "the winner" : "the best so far, not confirmed yet"}, as files that the launcher takes.`;
  try {
    const found = await get(`${base}/export?${query}`);
    at("copy").hidden = false;
    at("command").textContent = found.command;
    at("export-warning").hidden = !found.warning;
    at("export-warning").textContent = found.warning ?? "";
    at("files").replaceChildren(
      ...Object.entries(found.files).flatMap(([name, text]) => {
        const title = document.createElement("h3");
        title.textContent = name;
        const body = document.createElement("pre");
        body.tabIndex = 0;
        body.textContent = text;
        return [title, body];
      }),
    );
  } catch (fault) {
    at("copy").hidden = true;
    at("files").replaceChildren();
    at("export-warning").hidden = false;
    at("export-warning").textContent = fault.message;
    at("download-yaml").hidden = true;
    at("download-zip").hidden = true;
    return;
  }
  at("download-zip").hidden = false;
}

let exported = "";
function exportSoon() {
  const key = `${now.winner_trial_number}/${now.best?.trial_number}`;
  if (key !== exported) {
    exported = key;
    offerExport();
  }
}

at("launcher").addEventListener("change", offerExport);
at("actions").addEventListener("click", async (event) => {
  const what = event.target.dataset?.do;
  if (!what || (what === "cancel" && !confirm(`Cancel ${study}? What is measured stays.`))) return;
  try {
    const view = await send("POST", `${base}/${what}`);
    now = { ...now, ...view };
    tellStudy();
    if (what === "resume" && source.readyState === EventSource.CLOSED) listen();
    say({ pause: "It will pause after what runs now", resume: "It waits for its devices", cancel: "Cancelled" }[what]);
  } catch (fault) {
    say(fault.message);
  }
});

let source;
function listen() {
  source = new EventSource(`${base}/events`);
  source.addEventListener("snapshot", (event) => {
    now = JSON.parse(event.data);
    for (const row of now.newest) put(row, false);
    tellStudy();
    drawSoon();
    exportSoon();
  });
  source.addEventListener("trial", (event) => {
    put(JSON.parse(event.data), true);
    drawSoon();
  });
  source.addEventListener("study", (event) => {
    const before = now.status;
    now = { ...now, ...JSON.parse(event.data) };
    tellStudy();
    drawSoon();
    exportSoon();
    if (before === "WAITING" && now.status !== "WAITING") location.reload(); // the page's words know the study now
    if (before === "RUNNING" && now.status === "FINISHED") say("Finished");
  });
  source.addEventListener("tick", (event) => tick(JSON.parse(event.data)));
  source.addEventListener("end", () => {
    source.close();
    at("running").hidden = true;
  });
}
listen();
