// Influence of each component over the steps of training, above the held-out loss.

import uPlot from "uplot";
import { ofComponent } from "../colours";
import type { ReportDocument } from "../data";
import { el, percent, svg } from "../dom";
import { shareBy } from "../measures";
import { drawnBy, section } from "../section";
import type { Store } from "../state";

interface Line {
  name: string;
  colour: string;
  values: (number | null)[];
  dash?: number[];
}

interface Chart {
  title: string;
  steps: number[];
  lines: Line[];
  format: (value: number) => string;
  range?: [number, number];
}

const LOSSES = {
  compete: { shown: "the held-out loss of the full model and of those without a component", axis: "held-out loss, nats a word (its steep beginning reaches beyond)" },
  history: { shown: "the loss of each traced batch, which was trained on", axis: "loss of the traced batches (a steep beginning reaches beyond)" },
};
const BEGINNING = 0.05; // the share of training whose steep fall would flatten the rest

export function trainingView(data: ReportDocument, store: Store): HTMLElement | null {
  if (data.snapshots.length < 2 || data.kind === "compare") return null;
  const steps = data.snapshots.map((s) => s.step ?? 0);
  const { root, body } = section(
    "training",
    "Training",
    `Above, the share of paths from the parameters that crosses each component, at each traced step; below, ${LOSSES[data.kind === "compete" ? "compete" : "history"].shown}. ` +
      "Click, or move the slider, to choose the step that all views show.",
    "Lines of influence do not add up to 100%: a path can cross several components or none.",
    { svg: () => picture(chartsOf(data, store)), rows: () => rowsOf(data, store) },
  );
  const holders = [el("div", { class: "chart" }), el("div", { class: "chart" })];
  const now = el("p", { class: "now", role: "status" });
  const paper = el("div", { class: "paper", "aria-hidden": "true" }); // a canvas has the width of the screen
  body.append(now, ...holders, paper);
  let plots: uPlot[] = [];
  const draw = () => {
    plots.forEach((p) => p.destroy());
    const width = Math.max(320, body.clientWidth || 1100);
    plots = chartsOf(data, store).map((chart, i) => plot(chart, holders[i], width, i ? 190 : 230, store, steps));
    paper.replaceChildren(picture(chartsOf(data, store)));
    say();
  };
  const say = () => {
    const taken = data.snapshots[store.now.snapshot];
    const shares = taken.influence.filter((r) => r.kind === store.now.kind).map((r) => `${r.component} ${percent(r[shareBy(store)])}`);
    now.textContent = `Step ${taken.step}: ${shares.join(", ")}; loss of the traced windows ${taken.loss?.toFixed(3) ?? "–"}`;
  };
  drawnBy(root, store, ["kind", "measure"], draw);
  store.watch(["snapshot"], () => {
    say();
    plots.forEach((p) => p.redraw(false));
  });
  return root;
}

function chartsOf(data: ReportDocument, store: Store): Chart[] {
  const names = [...new Set(data.snapshots[0].influence.map((r) => r.component))];
  const steps = data.snapshots.map((s) => s.step ?? 0);
  const influence = names.map((name) => ({
    name,
    colour: ofComponent(names, name),
    values: data.snapshots.map((s) => s.influence.find((r) => r.component === name && r.kind === store.now.kind)?.[shareBy(store)] ?? null),
  }));
  const runs = data.training ?? [];
  const at = [...new Set(runs.flatMap((r) => r.evaluations.map((e) => e.step)))].sort((a, b) => a - b);
  const losses = runs.map((run) => ({
    name: run.name,
    colour: run.without === null ? inkNow() : ofComponent(names, run.without),
    dash: run.without === null ? undefined : [6, 4],
    values: at.map((step) => run.evaluations.find((e) => e.step === step)?.loss ?? null),
  }));
  return [
    { title: `share of ${store.now.kind} paths${shareBy(store) === "share" ? "" : ", by weight"}`, steps, lines: influence, format: (v) => `${(v * 100).toFixed(0)}%` },
    { title: LOSSES[data.kind === "compete" ? "compete" : "history"].axis, steps: at, lines: losses, format: (v) => v.toFixed(2), range: rangeAfter(at, losses) },
  ];
}

function rangeAfter(steps: number[], lines: Line[]): [number, number] | undefined {
  const from = steps[steps.length - 1] * BEGINNING;
  const later = lines.flatMap((l) => l.values.filter((v, i): v is number => v !== null && steps[i] > from));
  const [low, high] = [Math.min(...later), Math.max(...later)];
  if (!(high > low)) return undefined;
  return [low - 0.05 * (high - low), high + 0.05 * (high - low)];
}

function inkNow(): string {
  return getComputedStyle(document.body).color;
}

function plot(chart: Chart, holder: HTMLElement, width: number, height: number, store: Store, steps: number[]): uPlot {
  const ink = inkNow();
  const grid = { stroke: getComputedStyle(document.body).getPropertyValue("--line"), width: 1 };
  const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui, sans-serif" };
  const made = new uPlot(
    {
      width,
      height,
      scales: { x: { time: false }, y: chart.range ? { range: chart.range } : {} },
      legend: { live: true },
      cursor: { points: { size: 7 }, drag: { x: false, y: false } },
      axes: [{ ...axis, values: (_, ticks) => ticks.map((t) => String(t)) }, { ...axis, size: 64, values: (_, ticks) => ticks.map(chart.format) }],
      series: [
        { label: "step", value: (_, v) => (v === null ? "" : String(v)) },
        ...chart.lines.map((line) => ({
          label: line.name, stroke: line.colour, width: line.dash ? 1.5 : 2.25, dash: line.dash, points: { show: chart.steps.length < 40, size: 5 },
          value: (_: uPlot, v: number | null) => (v === null ? "" : chart.format(v)),
        })),
      ],
      hooks: { draw: [(u) => line(u, steps[store.now.snapshot])] },
    },
    [chart.steps, ...chart.lines.map((l) => l.values)] as uPlot.AlignedData,
    holder,
  );
  holder.prepend(el("p", { class: "axis" }, chart.title));
  made.over.addEventListener("click", () => choose(made, store, steps));
  const gone = made.destroy.bind(made);
  made.destroy = () => {
    gone();
    holder.replaceChildren();
  };
  return made;
}

/** Mark the step that is shown. */
function line(u: uPlot, step: number): void {
  const x = u.valToPos(step, "x", true);
  u.ctx.save();
  u.ctx.strokeStyle = inkNow();
  u.ctx.globalAlpha = 0.55;
  u.ctx.setLineDash([3, 3]);
  u.ctx.beginPath();
  u.ctx.moveTo(x, u.bbox.top);
  u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
  u.ctx.stroke();
  u.ctx.restore();
}

function choose(u: uPlot, store: Store, steps: number[]): void {
  const step = u.posToVal(u.cursor.left ?? 0, "x");
  const distance = steps.map((s) => Math.abs(s - step));
  store.set({ snapshot: distance.indexOf(Math.min(...distance)) });
}

function rowsOf(data: ReportDocument, store: Store): (string | number | null)[][] {
  return [
    ["figure", "line", "step", "value"],
    ...chartsOf(data, store).flatMap((c) => c.lines.flatMap((l) => l.values.map((v, i) => [c.title, l.name, c.steps[i], v]))),
  ];
}

/** The charts as SVG, for saving and for paper. */
function picture(charts: Chart[]): SVGSVGElement {
  const [width, each, left, right] = [860, 230, 64, 150];
  const ink = inkNow();
  const out = svg("svg", { viewBox: `0 0 ${width} ${each * charts.length}`, "font-family": "system-ui, sans-serif", "font-size": 12, fill: "currentColor" });
  charts.forEach((chart, c) => {
    const values = chart.lines.flatMap((l) => l.values.filter((v): v is number => v !== null));
    const [low, high] = chart.range ?? [Math.min(...values), Math.max(...values)];
    const x = (step: number) => left + ((step - chart.steps[0]) / (chart.steps[chart.steps.length - 1] - chart.steps[0] || 1)) * (width - left - right);
    const y = (value: number) => each * c + each - 34 - ((Math.max(low, Math.min(high, value)) - low) / (high - low || 1)) * (each - 70);
    out.append(svg("text", { x: left, y: each * c + 18, fill: ink, "font-weight": 600 }, chart.title));
    for (const v of [low, (low + high) / 2, high]) out.append(svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end", fill: ink }, chart.format(v)));
    for (const step of [chart.steps[0], chart.steps[chart.steps.length - 1]]) out.append(svg("text", { x: x(step), y: each * (c + 1) - 14, "text-anchor": "middle", fill: ink }, `step ${step}`));
    chart.lines.forEach((l, i) => {
      const points = l.values.map((v, k) => (v === null ? "" : `${x(chart.steps[k])},${y(v)}`)).filter(Boolean).join(" ");
      out.append(svg("polyline", { points, fill: "none", stroke: l.colour, "stroke-width": 2, "stroke-dasharray": l.dash?.join(" ") }));
      out.append(svg("text", { x: width - right + 14, y: each * c + 44 + i * 18, fill: l.colour, "font-weight": 600 }, l.name));
    });
  });
  return out;
}
