// What leaving out components cost, against their influence: means over seeds, with their intervals.

import { scaleLinear } from "d3-scale";
import { short } from "../axes";
import { ofComponent } from "../colours";
import type { Cost, Interval, Outcome, ReportDocument } from "../data";
import { count, el, explain, percent, svg, table } from "../dom";

/** One point a set of components that was left out: its influence, and how much higher the held-out loss was without it. */
export function dips(data: ReportDocument, width: number): SVGSVGElement {
  const { rows, sets } = data.ablation!;
  const components = rows.map((r) => r.component);
  const known = (sets ?? []).filter((s) => s.influence.mean !== null && s.dip.mean !== null);
  const [height, left, right, top, bottom] = [330, 86, 40, 24, 54];
  const ends = (one: Interval) => [one.mean, one.low, one.high].filter((v): v is number => v !== null);
  const [across, up] = [known.flatMap((s) => ends(s.influence)), known.flatMap((s) => ends(s.dip))];
  const x = scaleLinear([Math.min(0, ...across), Math.max(0.01, ...across) * 1.12], [left, width - right]).nice(5);
  const y = scaleLinear([Math.min(0, ...up), Math.max(1e-6, ...up) * 1.06], [height - bottom, top]).nice(5);
  const out = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "scatter", "aria-label": "Dip in performance against influence" });
  for (const tick of x.ticks(6)) out.append(svg("line", { x1: x(tick), x2: x(tick), y1: top, y2: height - bottom, class: "grid" }), svg("text", { x: x(tick), y: height - bottom + 18, "text-anchor": "middle" }, `${+(tick * 100).toFixed(1)}%`));
  for (const tick of y.ticks(5)) out.append(svg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "grid" }), svg("text", { x: left - 10, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  out.append(svg("line", { x1: left, x2: width - right, y1: y(0), y2: y(0), class: "full" }));
  out.append(svg("text", { x: (left + width - right) / 2, y: height - 10, "text-anchor": "middle", class: "axis" }, "influence: share of paths from the embedding"));
  out.append(svg("text", { transform: `translate(16,${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "axis" }, "dip: rise of the held-out loss, nats"));
  const placed: Box[] = [];
  for (const set of known) {
    const { influence, dip } = set;
    const [cx, cy, name] = [x(influence.mean!), y(dip.mean!), set.absent.join(", ")];
    const colour = set.absent.length === 1 ? ofComponent(components, set.absent[0]) : "var(--soft)";
    const point = svg("g", { tabindex: 0, role: "img", class: "dip", "data-absent": name, "data-influence": influence.mean, "data-dip": dip.mean, "aria-label": `without ${name}: influence ${spread(influence, percent)}, dip ${spread(dip, short)}` });
    if (dip.low !== null && dip.high !== null) point.append(svg("line", { x1: cx, x2: cx, y1: y(dip.low), y2: y(dip.high), class: "error", stroke: colour }));
    if (influence.low !== null && influence.high !== null) point.append(svg("line", { x1: x(influence.low), x2: x(influence.high), y1: cy, y2: cy, class: "error", stroke: colour }));
    point.append(svg("circle", { cx, cy, r: 6, fill: colour }));
    const at = room(placed, [cx, cy], 7.4 * name.length + 4, [left, width]);
    if (at) point.append(svg("text", { x: at[0], y: at[1], class: "name" }, name));
    explain(point, () => [`without ${name}`, `influence ${spread(influence, percent)}`, `dip ${spread(dip, short)} nats`, `${samples(set)} samples`, `n = ${dip.n} seed${dip.n > 1 ? "s" : ""}`]);
    out.append(point);
  }
  return out;
}

type Box = [left: number, top: number, right: number, bottom: number];

/** Where a name beside a point meets no other: its left end and baseline; null if nowhere, and then the tooltip has it. */
function room(placed: Box[], [x, y]: [number, number], width: number, [from, to]: [number, number]): [number, number] | null {
  for (const dy of [-7, 17, -23, 33, -39, 49]) {
    for (const dx of [9, -9 - width]) {
      const box: Box = [x + dx, y + dy - 13, x + dx + width, y + dy + 5];
      const free = placed.every((b) => box[2] <= b[0] || b[2] <= box[0] || box[3] <= b[1] || b[3] <= box[1]);
      if (!free || box[0] < from || box[2] > to || box[1] < 0 || box[3] > 290) continue;
      placed.push(box);
      return [box[0], y + dy];
    }
  }
  return null;
}

/** Both orders of leaving out beside each other, by how many are out. */
export function chains(data: ReportDocument): HTMLElement | null {
  const cumulative = data.ablation?.cumulative;
  if (!cumulative) return null;
  const cells = (cost: Cost) => [spread(cost.influence, percent), spread(cost.dip, short), samples(cost)];
  const rows = cumulative.least.map((least, i) => [String(least.removed), ...cells(least), ...cells(cumulative.most[i])]);
  const headings = ["least", "most"].flatMap((first) => [`${first} first: influence`, "dip", "samples"]);
  const made = table(["left out", ...headings], rows, [0, 1, 2, 3, 4, 5, 6]);
  made.prepend(el("caption", {}, "Least influential left out first, then the next; and most influential first"));
  return el("div", {}, el("p", {}, cumulative.sentence), el("div", { class: "scroll" }, made));
}

/** Samples until a model got there; of several seeds the mean if all did, else how many. */
export function samples(outcome: Outcome): string {
  if (outcome.samples !== null) return count(outcome.samples);
  return outcome.reached ? `${outcome.reached} of ${outcome.seeds} seeds` : "not reached";
}

/** A mean, and its interval where there is one. */
export function spread(value: Interval | undefined, write: (value: number) => string): string {
  if (!value || value.mean === null) return "–";
  const { mean, low, high } = value;
  return low === null || high === null ? write(mean) : `${write(mean)} [${write(low)}, ${write(high)}]`;
}
