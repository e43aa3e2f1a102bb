"use strict";
// Makes the charts of the page. Every text goes in as a text node, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const SMALL = { width: 300, height: 180 }, LARGE = { width: 600, height: 340 };
const LEFT = 48, RIGHT = 10, TOP = 10, BOTTOM = 24;

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function shape(name, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

const color = (index) => `var(--c${index % 8})`;

function format(value) {
  const size = Math.abs(value);
  const sign = value < 0 ? "−" : "";
  if (size === 0) return "0";
  if (size >= 1e6) return `${sign}${+(size / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${sign}${+(size / 1e3).toPrecision(3)}k`;
  if (size < 1e-3) return sign + size.toExponential(1).replace(".0e", "e").replace("e-", "e−");
  return sign + String(+size.toPrecision(3));
}

// Round numbers that cover [low, high], about `count` of them.
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((unit) => unit * power).find((unit) => unit >= raw * 0.999);
  const result = [];
  for (let index = Math.ceil(low / step - 1e-6); index * step <= high + step * 1e-6; index++) result.push(index * step);
  return result;
}

function extent(values, low, high) {
  // A loop, not Math.min(...values): a long run has more points than a call may have arguments.
  let from = Infinity, to = -Infinity;
  for (const value of values) { from = Math.min(from, value); to = Math.max(to, value); }
  from = Math.min(from, low ?? from);
  to = Math.max(to, high ?? to);
  if (to - from < 1e-12) { const pad = Math.abs(to) * 0.1 || 1; if (low === null) from -= pad; to += pad; }
  else { const pad = (to - from) * 0.06; if (low === null) from -= pad; if (high === null) to += pad; }
  return [from, to];
}

// Axes with a frame of reference: returns the svg and the two scales.
function frame(title, { width, height }, [xLow, xHigh], [yLow, yHigh], xTicks) {
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  const x = (value) => LEFT + ((value - xLow) / (xHigh - xLow)) * (width - LEFT - RIGHT);
  const y = (value) => height - BOTTOM - ((value - yLow) / (yHigh - yLow)) * (height - TOP - BOTTOM);
  for (const tick of ticks(yLow, yHigh, 4)) {
    svg.append(shape("line", { class: "gridline", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }));
    svg.append(shape("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
  }
  svg.append(shape("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(yLow), y2: y(yLow) }));
  for (const { at, text } of xTicks ?? ticks(xLow, xHigh, 5).filter(Number.isInteger).map((at) => ({ at, text: format(at) }))) {
    svg.append(shape("text", { x: x(at), y: height - 8, "text-anchor": "middle" }, text));
  }
  return { svg, x, y };
}

const path = (xs, ys) => xs.map((x, index) => `${index ? "L" : "M"}${x.toFixed(1)},${ys[index].toFixed(1)}`).join("");

function runningMean(values, half) {
  const sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, index) => {
    const from = Math.max(0, index - half), to = Math.min(values.length, index + half + 1);
    return (sums[to] - sums[from]) / (to - from);
  });
}

function drawLine(svg, x, y, line, index) {
  const xs = line.x.map(x);
  const stroke = { fill: "none", "stroke-width": 2, "stroke-linejoin": "round", "stroke-linecap": "round" };
  const isLong = line.x.length > 60;
  if (isLong) {
    const pale = shape("path", { ...stroke, d: path(xs, line.y.map(y)), opacity: 0.28 });
    pale.setAttribute("stroke-width", 1);
    pale.style.stroke = color(index);
    svg.append(pale);
  }
  const values = isLong ? runningMean(line.y, Math.round(line.y.length / 40)) : line.y;
  const bold = shape("path", { ...stroke, d: path(xs, values.map(y)) });
  if (line.strong) bold.setAttribute("stroke-width", 3.4);
  bold.style.stroke = color(index);
  svg.append(bold);
  if (line.hasWhiskers) {
    xs.forEach((cx, point) => {
      const half = line.interval[point];
      const whisker = shape("line", { x1: cx, x2: cx, y1: y(Math.min(1, line.y[point] + half)), y2: y(Math.max(0, line.y[point] - half)), opacity: 0.55 });
      whisker.style.stroke = color(index);
      svg.append(whisker);
    });
  }
  if (line.x.length <= 15) {
    xs.forEach((cx, point) => {
      const dot = shape("circle", { cx, cy: y(line.y[point]), r: 2.6 });
      dot.style.fill = color(index);
      svg.append(dot);
    });
  }
}

// Areas on top of one another, over the steps that any of the lines has.
function stack(lines) {
  const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  let below = steps.map(() => 0);
  return lines.map((line) => {
    const values = new Map(line.x.map((step, index) => [step, line.y[index]]));
    const above = below.map((value, index) => value + (values.get(steps[index]) ?? 0));
    const layer = { steps, below, above };
    below = above;
    return layer;
  });
}

function drawLayer(svg, x, y, layer, index) {
  const xs = layer.steps.map(x);
  // A single step is drawn as a band, since an area of no width cannot be seen.
  const wide = xs.length > 1 ? xs : [LEFT, SMALL.width - RIGHT];
  const double = (values) => (xs.length > 1 ? values : [values[0], values[0]]);
  const upper = path(wide, double(layer.above).map(y));
  const lower = path([...wide].reverse(), [...double(layer.below)].reverse().map(y)).replace("M", "L");
  const area = shape("path", { d: `${upper}${lower}Z`, opacity: 0.82 });
  area.style.fill = color(index);
  svg.append(area);
}

function nearest(sorted, target) {
  let best = 0;
  sorted.forEach((value, index) => { if (Math.abs(value - target) < Math.abs(sorted[best] - target)) best = index; });
  return best;
}

function legend(lines) {
  const values = lines.map(() => element("b"));
  const when = element("span");
  const entries = lines.map((line, index) => {
    const swatch = element("i");
    swatch.style.background = color(index);
    return element("span", {}, swatch, line.label, values[index]);
  });
  const show = (step) => {
    when.textContent = step === null ? "last:" : `step ${step}:`;
    lines.forEach((line, index) => {
      const at = step === null ? line.x.length - 1 : line.x.indexOf(step);
      const half = line.interval[at];
      values[index].textContent = at < 0 ? "–" : format(line.y[at]) + (half ? ` ± ${+half.toPrecision(2)}` : "");
    });
  };
  show(null);
  return { node: element("div", { class: "legend" }, when, ...entries), show };
}

const stepsOf = (lines) => [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);

// The range of steps and of values of charts that are drawn on the same axes.
function ranges(charts) {
  const steps = stepsOf(charts.flatMap((chart) => chart.lines));
  const values = charts.flatMap(({ kind, lines }) => (kind === "stack" ? stack(lines).flatMap((layer) => layer.above) : lines.flatMap((line) => line.y)));
  return {
    xRange: steps.length > 1 ? [steps[0], steps[steps.length - 1]] : [steps[0] - 1, steps[0] + 1],
    yRange: extent(values, charts[0].low, charts[0].high),
  };
}

function chartCard(chart, { xRange, yRange }) {
  const strong = chart.lines.filter((line) => line.strong);
  const lone = strong.length === 1 ? strong : chart.lines.length <= 4 && !strong.length ? chart.lines : [];
  const lines = chart.lines.map((line) => ({ ...line, hasWhiskers: lone.some((one) => one.label === line.label) && line.interval.some((half) => half > 0) }));
  const steps = stepsOf(lines);
  const layers = chart.kind === "stack" ? stack(lines) : null;
  const { svg, x, y } = frame(chart.title, SMALL, xRange, yRange);
  if (layers) layers.forEach((layer, index) => drawLayer(svg, x, y, layer, index));
  else lines.forEach((line, index) => drawLine(svg, x, y, line, index));
  const { node, show } = legend(lines);
  const cursor = shape("line", { class: "cursor", y1: TOP, y2: SMALL.height - BOTTOM, visibility: "hidden" });
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const position = ((event.clientX - box.left) / box.width) * SMALL.width;
    const target = xRange[0] + ((position - LEFT) / (SMALL.width - LEFT - RIGHT)) * (xRange[1] - xRange[0]);
    const step = steps[nearest(steps, target)];
    cursor.setAttribute("x1", x(step));
    cursor.setAttribute("x2", x(step));
    cursor.setAttribute("visibility", "visible");
    show(step);
  });
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); show(null); });
  const heading = element("h3", {}, chart.title, element("small", {}, chart.unit));
  const healthy = element("p", { class: "healthy" }, element("b", {}, "Healthy: "), chart.healthy);
  return element("div", { class: "card" }, heading, svg, node, healthy);
}

// Raw advantages of one role against the theory's x, where the theory is the straight line y = x or y = -x.
function mechanismCard(role, runs) {
  const isAnchor = role === "anchor";
  const at = (point) => (isAnchor ? Math.sqrt(point.num_negatives) : 1 / Math.sqrt(point.num_negatives));
  const series = runs.map(({ run, points }) => ({ run, points: points.filter((point) => point.role === role) }));
  const points = series.flatMap((one) => one.points);
  const xHigh = Math.max(...points.map(at), 1) * 1.12;
  const [yLow, yHigh] = extent([0, isAnchor ? xHigh : -xHigh, ...points.flatMap((p) => p.values.map(([value]) => value))], null, null);
  const kinds = [...new Set(points.map((point) => point.num_negatives))];
  const xTicks = kinds.map((kind) => ({ at: isAnchor ? Math.sqrt(kind) : 1 / Math.sqrt(kind), text: isAnchor ? `√${kind}` : `1/√${kind}` }));
  const title = isAnchor ? "Anchor" : "Hard negatives";
  const { svg, x, y } = frame(title, LARGE, [0, xHigh], [yLow, yHigh], xTicks);
  svg.append(shape("path", { class: "theory", d: `M${x(0)},${y(0)}L${x(xHigh)},${y(isAnchor ? xHigh : -xHigh)}` }));
  const gap = 7;
  series.forEach((one, index) => one.points.forEach((point) => {
    const total = point.values.reduce((sum, [, count]) => sum + count, 0);
    const cx = x(at(point)) + (index - (series.length - 1) / 2) * gap;
    for (const [value, count] of point.values) {
      const ring = shape("circle", { cx, cy: y(value), r: 2 + 9 * Math.sqrt(count / total), fill: "none", opacity: 0.55 });
      ring.style.stroke = color(index);
      svg.append(ring);
    }
    const mean = shape("circle", { cx, cy: y(point.mean), r: 3.6 });
    mean.style.fill = color(index);
    mean.append(shape("title", {}, `K′ = ${point.num_negatives}: mean ${format(point.mean)}, theory ${format(point.theory)}, ${point.count} subgroups`));
    svg.append(mean);
  }));
  const entries = series.flatMap((one, index) => {
    const swatch = element("i");
    swatch.style.background = color(index);
    const figures = one.points.map((p) => `K′\u00a0${p.num_negatives}:\u00a0${format(p.mean)}\u00a0(${format(p.theory)})`).join(", ");
    return [element("span", {}, swatch, `${one.run}, mean (theory):`, element("b", {}, figures))];
  });
  const unit = `raw advantage against ${isAnchor ? "√K′" : "1/√K′"}; dashed: y = ${isAnchor ? "√K′" : "−1/√K′"}`;
  return element("div", { class: "card" }, element("h3", {}, title, element("small", {}, unit)), svg, element("div", { class: "legend" }, ...entries));
}
