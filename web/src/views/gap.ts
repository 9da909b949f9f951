// How far the strongest path of each layer is, at most, from what no path exceeds.

import { scaleLinear, type ScaleLinear } from "d3-scale";
import { answersWith, batchMenu, grainMenu, liveOf, nameOf, rowsOf, tall, type Grain } from "../answers";
import { axisAcross, factor, rowsOfBars, short, ticksOf } from "../axes";
import type { AnswerRow, ReportDocument } from "../data";
import { explain, menu, power, svg } from "../dom";
import { drawnBy, section } from "../section";
import type { Store } from "../state";

const LEAST = { weight: 3, gap: 0.01 }; // bits on the scales, so that rounding is not drawn large

type Scale = ScaleLinear<number, number>;

export function gapView(data: ReportDocument, store: Store): HTMLElement | null {
  const answers = answersWith(data, "log2_strongest");
  if (!answers.length) return null;
  let drawn: SVGSVGElement | null = null;
  const now: { grain: Grain; batch: number; semiring: string } = { grain: "layers", batch: answers[0].batch, semiring: answers[0].semiring };
  const rows = () => rowsOf(answers.find((a) => a.batch === now.batch && a.semiring === now.semiring)!, now.grain);
  const { root, controls, body } = section(
    "gap",
    "Certified gap",
    "Left, a layer's strongest path (dot) and a bound that none of its paths exceeds (upright line): Power(p), which is computed " +
      "without looking for paths. Right, how far apart they are: up to rounding, no path is stronger by more. The line behind ends at the largest gap of a single scalar.",
    "A gap above 0 does not say that there is a stronger path, for N equally strong ones alone leave log2(N)/p bits; nor does it say that the strongest path matters.",
    { svg: () => drawn, rows: () => cellsOf(now.semiring, rows()) },
  );
  const holder = tall("Certified gap of each layer");
  const draw = () => {
    drawn = chart(now.semiring, rows(), Math.max(720, holder.clientWidth || 1100));
    holder.replaceChildren(drawn);
  };
  const choose = (change: Partial<typeof now>) => {
    Object.assign(now, change);
    draw();
  };
  const names = [...new Set(answers.map((a) => a.semiring))];
  const bounds = names.length < 2 ? null : menu("Bound", names.map((n) => [n, n]), names[0], (semiring) => choose({ semiring }), "gap-bound");
  const batches = batchMenu("gap", answers, (batch) => choose({ batch }));
  controls.append(grainMenu("gap", (grain) => choose({ grain })), ...[bounds, batches].filter((m) => m !== null));
  body.append(holder);
  drawnBy(root, store, [], draw);
  return root;
}

function chart(bound: string, rows: AnswerRow[], width: number): SVGSVGElement {
  const { out, left, top, bottom, height, y } = rowsOfBars(rows.map(nameOf), width, "Certified gap");
  const ends = rows.flatMap((r) => [r.log2_strongest, r.log2_max]).filter((n): n is number => typeof n === "number");
  const high = ends.length ? Math.max(...ends) : 0;
  const low = Math.min(high - LEAST.weight, ...ends);
  const half = left + (width - left) * 0.42;
  const weight = scaleLinear([low, high], [left + 14, half - 24]).nice(4);
  const gap = scaleLinear([0, Math.max(LEAST.gap, ...rows.map((r) => r.gap_max ?? 0))], [half + 20, width - 190]);
  out.append(axisAcross(weight, ticksOf(weight, (log2) => power(log2).replace(/\.00$/, "")), [top, bottom], "weight of a path, |∂loss/∂parameter| along it"));
  out.append(axisAcross(gap, ticksOf(gap, short), [top, bottom], `gap between it and ${bound}, bits`));
  out.append(axisAcross(gap, ticksOf(gap, (bits) => `×${factor(bits)}`), [top, bottom], "no path is stronger by more than", true));
  rows.forEach((row, i) => out.append(measure(bound, row, weight, gap, y(i), height)));
  return out;
}

function measure(bound: string, row: AnswerRow, weight: Scale, gap: Scale, y: number, height: number): SVGGElement {
  const [lower, upper, most] = [row.log2_strongest ?? null, row.log2_max ?? null, row.gap_max ?? 0];
  const known = row.gap !== undefined && row.gap !== null && lower !== null && upper !== null;
  const said = known ? `${row.gap! < 0.0005 ? "<0.001" : row.gap!.toFixed(3)} bits, ×${factor(row.gap!)}` : row.live ? "infinite" : "no path";
  const thick = height * 0.55;
  const group = svg(
    "g",
    {
      tabindex: 0, role: "img", class: "measure", "data-name": nameOf(row), "data-strongest": lower, "data-upper": upper, "data-gap": row.gap ?? null,
      "aria-label": `${nameOf(row)}: ${known ? `strongest path ${power(lower)}, ${bound} ${power(upper)}, gap ${said}` : said}`,
    },
    svg("rect", { x: weight.range()[0], y: y - height / 2, width: gap(most) - weight.range()[0], height, class: "hit" }),
    ...(known
      ? [
          svg("path", { d: `M${weight(lower)},${y}H${weight(upper)}M${weight(upper)},${y - thick / 2}V${y + thick / 2}`, class: "bound" }),
          svg("circle", { cx: weight(lower), cy: y, r: 4, class: "dot" }),
          svg("path", { d: `M${gap(0)},${y}H${gap(most)}M${gap(most)},${y - 4}V${y + 4}`, class: "reach" }),
          svg("rect", { x: gap(0), y: y - thick / 2, width: Math.max(1, gap(row.gap!) - gap(0)), height: thick, rx: 2, class: "solid" }),
        ]
      : []),
    svg("text", { x: gap(most) + 10, y: y + 4, class: known ? "value" : "value void" }, said),
  );
  explain(group, () => [
    nameOf(row),
    ...(known
      ? [
          `strongest path ${power(lower)}; no path exceeds ${power(upper)}`,
          `so none is stronger than ${factor(row.gap!)} times it (${short(row.gap!)} bits)`,
          `scalar by scalar: median ${short(row.gap_median ?? 0)}, largest ${short(most)} bits`,
        ]
      : []),
    liveOf(row),
  ]);
  return group;
}

function cellsOf(bound: string, rows: AnswerRow[]): (string | number | null | undefined)[][] {
  const head = ["name", "scalars", "scalars with a path", "log2 of the strongest path", `log2 of ${bound}`, "gap, bits", "at most times as strong", "median gap of its scalars", "largest"];
  return [head, ...rows.map((r) => [nameOf(r), r.scalars, r.live, r.log2_strongest, r.log2_max, r.gap, r.gap === undefined || r.gap === null ? null : 2 ** r.gap, r.gap_median, r.gap_max])];
}
