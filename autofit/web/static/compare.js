import { bars } from "./chart.js";
import { size } from "./words.js";

const figure = document.getElementById("pair");
if (figure) {
  const known = figure.dataset;
  const rows = ["a", "b"]
    .map((side) => ({ number: known[side], bytes: Number(known[`${side}Peak`]), kind: known[`${side}Kind`] }))
    .filter((row) => row.bytes)
    .map((row) => ({ name: `trial ${row.number}`, parts: [{ bytes: row.bytes, kind: `bar-${row.kind}` }], text: `${size(row.bytes)} ${row.kind}` }));
  if (rows.length) bars(figure, { rows, budget: Number(known.budget), format: size });
  else figure.textContent = "Neither has a peak.";
}
