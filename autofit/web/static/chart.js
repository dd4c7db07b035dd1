// Pictures as SVG: points are links (keyboard and screen reader reach them), colours are the page's own, so that both themes hold.
// Each `draw` is called anew when its figure changes width.
const NS = "http://www.w3.org/2000/svg";

export function node(name, attributes = {}, ...children) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const drawings = new WeakMap();
const watcher = new ResizeObserver((entries) => {
  for (const entry of entries) {
    const drawing = drawings.get(entry.target);
    const width = Math.round(entry.contentRect.width);
    if (drawing && width && width !== drawing.width) paint(entry.target, drawing);
  }
});

function paint(figure, drawing) {
  drawing.width = Math.round(figure.clientWidth) || 600;
  const tip = figure.querySelector(".tip");
  figure.replaceChildren(drawing.draw(drawing.width), ...(tip ? [tip] : []));
}

export function show(figure, draw) {
  const known = drawings.get(figure);
  const drawing = known ?? {};
  drawing.draw = draw;
  drawings.set(figure, drawing);
  figure.querySelector(".tip")?.remove();
  paint(figure, drawing);
  if (!known) watcher.observe(figure);
}

export function ticks(low, high, wanted) {
  const span = high - low || 1;
  const rough = span / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

function frame(width, height, { left = 46, right = 14, top = 16, bottom = 36 } = {}) {
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group" });
  return { svg, left, top, right: width - right, bottom: height - bottom, width, height };
}

const scale = (from, to, low, high) => (value) => low + ((value - from) / (to - from || 1)) * (high - low);
const short = (value) => (Math.abs(value) >= 1000 ? value.toLocaleString("en") : String(value));

function axes(box, x, y, { xTicks, yTicks, xName, yName, xFormat = short, yFormat = short }) {
  for (const at of yTicks) {
    box.svg.append(node("line", { class: "grid", x1: box.left, x2: box.right, y1: y(at), y2: y(at) }));
    box.svg.append(node("text", { x: box.left - 8, y: y(at) + 4, "text-anchor": "end" }, yFormat(at)));
  }
  for (const at of xTicks) box.svg.append(node("text", { x: x(at), y: box.bottom + 18, "text-anchor": "middle" }, xFormat(at)));
  if (xName) box.svg.append(node("text", { x: box.right, y: box.height - 2, "text-anchor": "end" }, xName));
  if (yName) box.svg.append(node("text", { x: 0, y: 10 }, yName));
}

function tipFor(figure) {
  let tip = figure.querySelector(".tip");
  if (!tip) {
    tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    figure.append(tip);
  }
  return tip;
}

export function tell(figure, x, y, lines) {
  const tip = tipFor(figure);
  tip.replaceChildren(
    ...lines.map((line, place) => {
      const row = document.createElement(place ? "div" : "strong");
      row.textContent = line;
      return row;
    }),
  );
  tip.hidden = false;
  const room = figure.clientWidth;
  tip.style.left = `${Math.max(0, Math.min(x + 14, room - tip.offsetWidth - 2))}px`;
  tip.style.top = `${Math.max(0, y - tip.offsetHeight - 12)}px`;
}
export const hush = (figure) => {
  const tip = figure.querySelector(".tip");
  if (tip) tip.hidden = true;
};

// Points: [{x, y, kind: front|trade|other|over|failed, winner, href, label, lines}]; x in GiB.
export function scatter(figure, { points, front, budget, xName, yName, height = 340 }) {
  show(figure, (width) => {
    const box = frame(width, height);
    const far = Math.max(budget ?? 0, ...points.map((point) => point.x), 0.001) * 1.06;
    const near = Math.min(budget ?? Infinity, ...points.map((point) => point.x));
    const from = near > far * 0.35 ? near - (far - near) * 0.35 : 0;
    const high = Math.max(...points.map((point) => point.y), 0.001) * 1.1;
    const x = scale(Math.max(0, from), far, box.left, box.right);
    const y = scale(0, high, box.bottom, box.top);
    const unit = far < 1 ? 1024 : 1;
    axes(box, (at) => x(at / unit), y, {
      xTicks: ticks(Math.max(0, from) * unit, far * unit, width / 90),
      yTicks: ticks(0, high, 5),
      xName: `${xName}, ${far < 1 ? "MiB" : "GiB"}`,
      yName,
    });
    if (budget && budget <= far) {
      box.svg.append(node("rect", { class: "beyond", x: x(budget), y: box.top, width: box.right - x(budget), height: box.bottom - box.top }));
      box.svg.append(node("line", { class: "budget", x1: x(budget), x2: x(budget), y1: box.top, y2: box.bottom }));
      box.svg.append(node("text", { class: "budget-name", x: x(budget) - 6, y: box.top + 10, "text-anchor": "end" }, "budget"));
    }
    if (front.length > 1) {
      const path = front.map((point, place) => (place ? `H${x(point.x)}V${y(point.y)}` : `M${x(point.x)},${y(point.y)}`)).join("");
      box.svg.append(node("path", { class: "front-line", d: path }));
    }
    const small = points.length > 400;
    for (const point of points) {
      const at = { cx: x(point.x), cy: y(point.y) };
      const link = node("a", { href: point.href, "aria-label": point.label });
      if (point.kind === "failed") {
        const r = small ? 2.5 : 3.8;
        link.append(node("path", { class: "failed", d: `M${at.cx - r},${at.cy - r}l${2 * r},${2 * r}m0,${-2 * r}l${-2 * r},${2 * r}` }));
      } else if (point.kind === "trade") {
        const r = 6.2;
        link.append(node("path", { class: "trade", d: `M${at.cx},${at.cy - r}l${r},${r}l${-r},${r}l${-r},${-r}Z` }));
      } else link.append(node("circle", { ...at, class: point.kind, r: point.kind === "front" ? 5.5 : small ? 2.2 : 4.2 }));
      if (point.winner) link.append(node("circle", { ...at, class: "ring", r: 9.5 }));
      if (point.kind === "front" || point.kind === "trade" || !small) link.append(node("circle", { ...at, class: "ring-focus", r: 11 }), node("circle", { ...at, class: "hit", r: 12 }));
      else link.setAttribute("tabindex", "-1"); // thousands of stops help nobody: the table has them all
      const enter = () => tell(figure, at.cx, at.cy, point.lines);
      link.addEventListener("pointerenter", enter);
      link.addEventListener("focus", enter);
      link.addEventListener("pointerleave", () => hush(figure));
      link.addEventListener("blur", () => hush(figure));
      box.svg.append(link);
    }
    return box.svg;
  });
}

// Speeds in the order of trials, and the best so far.
export function progress(figure, { points, yName, height = 230 }) {
  show(figure, (width) => {
    const box = frame(width, height);
    const first = points[0].x; // of a long study only the newest trials are here
    const last = Math.max(first + 1, ...points.map((point) => point.x));
    const high = Math.max(0.001, ...points.map((point) => point.y ?? 0)) * 1.12;
    const x = scale(first, last, box.left + 6, box.right - 6);
    const y = scale(0, high, box.bottom, box.top);
    axes(box, x, y, { xTicks: ticks(first, last, Math.min(last - first, width / 90)).filter(Number.isInteger), yTicks: ticks(0, high, 4), xName: "trial", yName });
    let best = null;
    let path = "";
    for (const point of points) {
      if (point.kind === "front" && (best === null || point.y > best)) {
        path += best === null ? `M${x(point.x)},${y(point.y)}` : `H${x(point.x)}V${y(point.y)}`;
        best = point.y;
      }
    }
    if (best !== null) box.svg.append(node("path", { class: "line", d: `${path}H${x(last)}` }));
    for (const point of points) {
      const at = { cx: x(point.x), cy: y(point.y ?? 0) };
      const link = node("a", { href: point.href, "aria-label": point.label });
      if (point.y === null) link.append(node("path", { class: "failed", d: `M${at.cx - 3},${at.cy - 3}l6,6m0,-6l-6,6` }));
      else link.append(node("circle", { ...at, class: point.kind, r: points.length > 300 ? 1.8 : 3.6 }));
      if (points.length <= 300) link.append(node("circle", { ...at, class: "ring-focus", r: 8 }), node("circle", { ...at, class: "hit", r: 9 }));
      else link.setAttribute("tabindex", "-1");
      link.addEventListener("pointerenter", () => tell(figure, at.cx, at.cy, point.lines));
      link.addEventListener("focus", () => tell(figure, at.cx, at.cy, point.lines));
      link.addEventListener("pointerleave", () => hush(figure));
      link.addEventListener("blur", () => hush(figure));
      box.svg.append(link);
    }
    return box.svg;
  });
}

// A curve over time or steps: [{x, y}]; a limit, if there is one.
export function curve(figure, { points, limit, limitName = "budget", xName, yName, yFormat, height = 130 }) {
  show(figure, (width) => {
    const box = frame(width, height, { left: 62, bottom: 26 });
    const high = Math.max(limit ?? 0, ...points.map((point) => point.y), 1e-9) * 1.12;
    const last = Math.max(points.at(-1)?.x ?? 1, 1);
    const first = points[0]?.x ?? 0;
    const x = scale(first, last, box.left, box.right);
    const y = scale(0, high, box.bottom, box.top);
    axes(box, x, y, { xTicks: [], yTicks: [0, high / 2.24, high / 1.12], yFormat, xName, yName });
    if (points.length > 1) {
      const line = points.map((point) => `${x(point.x)},${y(point.y)}`).join("L");
      box.svg.append(node("path", { class: "under", d: `M${x(first)},${y(0)}L${line}L${x(last)},${y(0)}Z` }), node("path", { class: "line", d: `M${line}` }));
    }
    if (points.length) box.svg.append(node("circle", { class: "front", cx: x(points.at(-1).x), cy: y(points.at(-1).y), r: 4 }));
    if (limit) {
      box.svg.append(node("line", { class: "budget", x1: box.left, x2: box.right, y1: y(limit), y2: y(limit) }));
      box.svg.append(node("text", { class: "budget-name", x: box.right, y: y(limit) - 5, "text-anchor": "end" }, limitName));
    }
    return box.svg;
  });
}

// Horizontal bars against a budget: [{name, parts: [{bytes, kind, colour}], text}].
export function bars(figure, { rows, budget, format }) {
  show(figure, (width) => {
    const narrow = width < 520;
    const left = narrow ? 0 : 128;
    const line = narrow ? 48 : 36;
    const height = rows.length * line + 26;
    const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group" });
    const far = Math.max(budget ?? 0, ...rows.map((row) => row.parts.reduce((sum, part) => sum + part.bytes, 0))) * 1.02;
    const x = scale(0, far, left, width - 4);
    rows.forEach((row, place) => {
      const top = 20 + place * line + (narrow ? 14 : 0);
      svg.append(node("text", narrow ? { class: "name", x: 0, y: top - 4 } : { class: "name", x: left - 12, y: top + 16, "text-anchor": "end" }, row.name));
      let at = 0;
      for (const part of row.parts) {
        const box = node("rect", { x: x(at), y: top, width: Math.max(0, x(at + part.bytes) - x(at)), height: 22, class: `slice ${part.kind ?? ""}`, ...(part.colour ? { fill: part.colour } : {}) });
        box.append(node("title", {}, part.title ?? ""));
        svg.append(box);
        at += part.bytes;
      }
      const inside = x(at) > width - 150;
      if (row.text) svg.append(node("text", narrow ? { x: (budget ? x(budget) : width) - 8, y: top - 4, "text-anchor": "end" } : inside ? { class: "in-bar", x: x(at) - 8, y: top + 15, "text-anchor": "end" } : { x: x(at) + 8, y: top + 15 }, row.text));
    });
    if (budget) {
      svg.append(node("line", { class: "budget", x1: x(budget), x2: x(budget), y1: 14, y2: height - 4 }));
      svg.append(node("text", { class: "budget-name", x: Math.min(x(budget), width - 4), y: 10, "text-anchor": "end" }, `budget ${format(budget)}`));
    }
    return svg;
  });
}

// Stacked memory over one step, phase by phase, as the service bins it.
export function stack(figure, { timeline, budget, format, height = 320 }) {
  show(figure, (width) => {
    const box = frame(width, height, { left: 58, bottom: 40, top: 18 });
    const count = timeline.use.length;
    const totals = timeline.use.map((row) => row.reduce((sum, value) => sum + value, 0));
    const peak = Math.max(...totals);
    const high = Math.max(peak, budget && budget < peak * 3 ? budget : 0) * 1.06;
    const unit = high < 2 ** 30 ? 2 ** 20 : 2 ** 30;
    const x = scale(0, Math.max(1, count - 1), box.left, box.right);
    const y = scale(0, high, box.bottom, box.top);
    axes(box, x, (at) => y(at * unit), { xTicks: [], yTicks: ticks(0, high / unit, 5), yName: unit === 2 ** 30 ? "GiB" : "MiB" });
    const below = new Array(count).fill(0);
    timeline.terms.forEach((term, place) => {
      const lower = below.map((value, at) => `${x(at)},${y(value)}`);
      timeline.use.forEach((row, at) => (below[at] += row[place]));
      const upper = below.map((value, at) => `${x(at)},${y(value)}`);
      box.svg.append(node("path", { class: term.colour ? "" : "plain-term", ...(term.colour ? { fill: term.colour } : {}), d: `M${upper.join("L")}L${lower.reverse().join("L")}Z` }));
    });
    let at = 0;
    let free = box.left;
    for (const segment of timeline.segments) {
      const start = x(at);
      at += segment.points;
      const end = x(Math.min(at, count - 1));
      box.svg.append(node("line", { class: "phase", x1: start, x2: start, y1: box.top, y2: box.bottom }));
      const name = segment.phase.replace("optimizer_step", "optimizer");
      const middle = (start + end) / 2;
      const half = name.length * 3.3;
      if (middle - half > free - 4 && end - start > 2 * half * 0.85) {
        box.svg.append(node("text", { x: middle, y: box.bottom + 17, "text-anchor": "middle" }, name));
        free = middle + half + 6;
      }
    }
    const top = totals.indexOf(peak);
    box.svg.append(node("circle", { class: "ring", cx: x(top), cy: y(peak), r: 5 }));
    const right = x(top) > (box.left + box.right) / 2;
    box.svg.append(node("text", { class: "name", x: x(top) + (right ? -10 : 10), y: Math.max(y(peak) - 6, 12), "text-anchor": right ? "end" : "start" }, `peak ${format(peak)}`));
    if (budget && budget <= high) {
      box.svg.append(node("line", { class: "budget", x1: box.left, x2: box.right, y1: y(budget), y2: y(budget) }));
      box.svg.append(node("text", { class: "budget-name", x: box.left + 6, y: y(budget) - 5 }, "budget"));
    }
    const cursor = node("line", { class: "cursor", x1: 0, x2: 0, y1: box.top, y2: box.bottom, visibility: "hidden" });
    box.svg.append(cursor);
    box.svg.addEventListener("pointermove", (event) => {
      const bounds = box.svg.getBoundingClientRect();
      const place = Math.max(0, Math.min(count - 1, Math.round(((event.clientX - bounds.left - box.left) / (box.right - box.left)) * (count - 1))));
      cursor.setAttribute("x1", x(place));
      cursor.setAttribute("x2", x(place));
      cursor.setAttribute("visibility", "visible");
      const row = timeline.use[place];
      const lines = timeline.terms.map((term, index) => [row[index], term.label]).filter(([value]) => value > 0);
      lines.sort((a, b) => b[0] - a[0]);
      tell(figure, x(place), y(totals[place]), [format(totals[place]), ...lines.slice(0, 6).map(([value, label]) => `${format(value)} ${label}`)]);
    });
    box.svg.addEventListener("pointerleave", () => {
      cursor.setAttribute("visibility", "hidden");
      hush(figure);
    });
    return box.svg;
  });
}

export function legend(list, terms, format) {
  list.replaceChildren(
    ...terms
      .filter((term) => term.bytes > 0)
      .sort((a, b) => b.bytes - a.bytes)
      .map((term) => {
        const row = document.createElement("li");
        row.append(node("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, node("rect", { width: 10, height: 10, rx: 2, fill: term.colour ?? "#8d98a5" })));
        const amount = document.createElement("b");
        amount.textContent = format(term.bytes);
        row.append(`${term.label} `, amount);
        return row;
      }),
  );
}
