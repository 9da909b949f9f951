// On how many paths the gradient of each layer is spread.

import { scaleLinear } from "d3-scale";
import { answersWith, batchMenu, grainMenu, liveOf, nameOf, rowsOf, tall, type Grain } from "../answers";
import { axisAcross, powerOfTwo, raised, rowsOfBars, ticksOf, type Tick } from "../axes";
import type { AnswerRow, ReportDocument } from "../data";
import { count, explain, svg } from "../dom";
import { drawnBy, section } from "../section";
import type { Store } from "../state";

const LEAST = 1; // bits on the scale, so that rounding is not drawn large

export function entropyView(data: ReportDocument, store: Store): HTMLElement | null {
  const answers = answersWith(data, "mean").filter((a) => a.semiring === "entropy");
  if (!answers.length) return null;
  let drawn: SVGSVGElement | null = null;
  const now: { grain: Grain; batch: number } = { grain: "layers", batch: answers[0].batch };
  const rows = () => rowsOf(answers.find((a) => a.batch === now.batch)!, now.grain);
  const { root, controls, body } = section(
    "entropy",
    "Entropy",
    "Over how many paths the weight that reaches a scalar is spread: a bar is the mean over a layer's scalars that have a path, the " +
      "line behind it ends at the largest. 0 bits are one path, H bits are as spread as 2^H equally strong ones, the paths in effect.",
    "Weights are taken without their sign, so paths that cancel count like any others; and a layer further from the loss has more paths to begin with.",
    { svg: () => drawn, rows: () => cellsOf(rows()) },
  );
  const holder = tall("Entropy of each layer");
  const draw = () => {
    drawn = chart(rows(), Math.max(520, holder.clientWidth || 1100));
    holder.replaceChildren(drawn);
  };
  const choose = (change: Partial<typeof now>) => {
    Object.assign(now, change);
    draw();
  };
  const batches = batchMenu("entropy", answers, (batch) => choose({ batch }));
  controls.append(grainMenu("entropy", (grain) => choose({ grain })), ...(batches ? [batches] : []));
  body.append(holder);
  drawnBy(root, store, [], draw);
  return root;
}

function inEffect(bits: number): string {
  const text = powerOfTwo(bits);
  return `${text} path${text === "1" ? "" : "s"}`;
}

function chart(rows: AnswerRow[], width: number): SVGSVGElement {
  const { out, left, top, bottom, height, y } = rowsOfBars(rows.map(nameOf), width, "Entropy");
  const most = Math.max(LEAST, ...rows.map((r) => r.max ?? 0));
  const x = scaleLinear([0, most], [left, width - 190]);
  out.append(axisAcross(x, ticksOf(x, count), [top, bottom], "entropy, bits"));
  out.append(axisAcross(x, effects(most), [top, bottom], "paths in effect, 2^H", true));
  rows.forEach((row, i) => out.append(measure(row, x, y(i), height)));
  return out;
}

/** Powers of ten on a scale of bits. */
function effects(bits: number): Tick[] {
  const most = Math.floor(bits * Math.log10(2));
  const step = Math.max(1, Math.ceil(most / 6));
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => ({ at: (i * step) / Math.log10(2), text: i ? `10${raised(i * step)}` : "1" }));
}

function measure(row: AnswerRow, x: (bits: number) => number, y: number, height: number): SVGGElement {
  const [mean, max] = [row.mean ?? 0, row.max ?? 0];
  const said = row.live ? `${mean.toFixed(1)} bits, ${inEffect(mean)}` : "no path";
  const thick = height * 0.55;
  const group = svg(
    "g",
    { tabindex: 0, role: "img", class: "measure", "data-name": nameOf(row), "data-mean": row.mean ?? null, "data-max": row.max ?? null, "aria-label": `${nameOf(row)}: ${said}` },
    svg("rect", { x: x(0), y: y - height / 2, width: x(max) - x(0), height, class: "hit" }),
    row.live ? svg("path", { d: `M${x(0)},${y}H${x(max)}M${x(max)},${y - 4}V${y + 4}`, class: "reach" }) : null,
    row.live ? svg("rect", { x: x(0), y: y - thick / 2, width: Math.max(1, x(mean) - x(0)), height: thick, rx: 2, class: "solid" }) : null,
    svg("text", { x: x(max) + 10, y: y + 4, class: row.live ? "value" : "value void" }, said),
  );
  explain(group, () => [
    nameOf(row),
    ...(row.live ? [`mean ${mean.toFixed(2)} bits: ${inEffect(mean)} in effect`, `median ${(row.median ?? 0).toFixed(2)}, largest ${max.toFixed(2)} bits: ${inEffect(max)}`] : []),
    liveOf(row),
  ]);
  return group;
}

/** 2^bits for a spreadsheet; in words where no float holds it. */
function numberOf(bits: number): number | string {
  return bits < 1024 ? 2 ** bits : powerOfTwo(bits);
}

function cellsOf(rows: AnswerRow[]): (string | number | null | undefined)[][] {
  const head = ["name", "scalars", "scalars with a path", "mean entropy, bits", "median", "largest", "paths in effect at the mean"];
  return [head, ...rows.map((r) => [nameOf(r), r.scalars, r.live, r.mean, r.median, r.max, r.live ? numberOf(r.mean ?? 0) : null])];
}
