// Figures as people read them; the same rules as autofit/units.py.
const GIB = 2 ** 30;
export const gib = (bytes) => bytes / GIB;
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  return Math.abs(bytes) >= GIB ? `${(bytes / GIB).toFixed(2)} GiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
export function figure(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1000) return Math.round(value).toLocaleString("en");
  return value >= 1 ? value.toFixed(2) : String(Number(value.toPrecision(3)));
}
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${value.toFixed(1)} s`;
  const minutes = Math.floor(Math.round(value) / 60);
  return minutes < 60 ? `${minutes}m ${String(Math.round(value) % 60).padStart(2, "0")}s` : `${Math.floor(minutes / 60)}h ${String(minutes % 60).padStart(2, "0")}m`;
}
export function knobs(row) {
  return [
    row.lora_rank === null ? row.method : `lora ${row.lora_rank}`,
    `zero ${row.zero_stage}`,
    `${row.micro_batch_size} × ${row.gradient_accumulation_steps}`,
    `${row.cutoff_len} tokens`,
    row.gradient_checkpointing ? "ckpt" : "no ckpt",
  ].join(" · ");
}
export const outcome = (row) => (row.outcome ?? "running").toLowerCase().replaceAll("_", " ");
