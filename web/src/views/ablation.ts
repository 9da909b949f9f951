// Did the components that carry most also hurt most when they were left out?

import { scaleLinear } from "d3-scale";
import { ofComponent } from "../colours";
import type { AgreementRow, Outcome, ReportDocument } from "../data";
import { count, el, explain, menu, percent, svg, table } from "../dom";
import { drawnBy, section } from "../section";
import type { Store } from "../state";
import { chains, dips, samples, spread } from "./dips";

export function ablationView(data: ReportDocument, store: Store): HTMLElement | null {
  const { ablation, agreement } = data;
  if (!ablation?.rows.length || !agreement) return null;
  let drawn: SVGSVGElement | null = null;
  const { root, controls, body } = section(
    "ablation",
    "Ablation",
    `One point a component: to the right, more paths cross it; further up, the model without it needed more training samples ` +
      `to ${goalOf(data)}, or never did. Below, how far the held-out loss lay above the full model's, on average over training, ` +
      "for every set of components that was left out. If influence foretold damage, points rise to the right.",
    "Bars are 95 % intervals over seeds. One seed is one draw, and has none; few points prove little: see n.",
    { svg: () => drawn, rows: () => rowsOf(data) },
  );
  let row = agreement.rows[0];
  const [holder, below] = [el("div", { class: "scroll" }), el("div", { class: "scroll" })];
  const verdict = el("p", { class: "verdict", role: "status" });
  const draw = () => {
    drawn = scatter(data, row, Math.max(300, Math.min(holder.clientWidth || 640, 760)));
    holder.replaceChildren(drawn);
    if (ablation.sets) below.replaceChildren(dips(data, Math.max(300, Math.min(below.clientWidth || 640, 760))));
    const rho = rhoOf(row);
    const seeds = (row.seeds ?? 1) > 1 ? ` components, ${row.seeds} seeds` : "";
    verdict.replaceChildren(el("strong", {}, `Spearman ρ = ${rho}, n = ${row.n}${seeds}`), ` (${row.verdict}): influence ${row.influence}; damage ${row.damage}.`);
  };
  const names: [string, string][] = agreement.rows.map((r, i) => [String(i), `${r.kind} paths${r.measure === "share" ? "" : ", by weight"}`]);
  controls.append(
    menu("Influence of", names, "0", (i) => {
      row = agreement.rows[Number(i)];
      draw();
    }, "agreement"),
  );
  body.append(verdict, el("div", { class: "beside" }, holder, el("div", {}, outcomes(data), orders(agreement.rows))));
  body.append(el("div", { class: "beside" }, below, el("div", {}, chains(data))));
  drawnBy(root, store, [], draw);
  return root;
}

function goalOf(data: ReportDocument): string {
  const reference = data.ablation?.reference_perplexity;
  if (data.ablation && reference === undefined) return "solve the task";
  return `reach the full model's best held-out perplexity${reference === undefined ? "" : `, ${reference.toFixed(1)}`}`;
}

function rhoOf(row: AgreementRow): string {
  const write = (value: number) => value.toFixed(2).replace("-", "−");
  return row.spearman === null ? "undefined" : spread({ mean: row.spearman, low: row.spearman_low ?? null, high: row.spearman_high ?? null, n: row.seeds ?? 1 }, write);
}

function shareOf(data: ReportDocument, row: AgreementRow, component: string): number | null {
  return data.influence?.find((r) => r.kind === row.kind && r.component === component)?.[row.measure] ?? null;
}

function scatter(data: ReportDocument, row: AgreementRow, width: number): SVGSVGElement {
  const { full, rows } = data.ablation!;
  const components = rows.map((r) => r.component);
  const height = 330;
  const [left, right, top, bottom] = [86, 40, 24, 54];
  const never = top + 22;
  const reached = [full, ...rows].map((r) => r.samples).filter((s): s is number => s !== null);
  const shares = components.map((c) => shareOf(data, row, c) ?? 0);
  const x = scaleLinear([0, Math.max(0.01, ...shares) * 1.12], [left, width - right]).nice(5);
  const range = reached.length ? [Math.min(...reached) * 0.92, Math.max(...reached) * 1.06] : [0, 1];
  const y = scaleLinear(range, [height - bottom, never + 44]).nice(4);
  const out = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "scatter", "aria-label": "Ablation damage against influence" });
  out.append(svg("rect", { x: left, y: top, width: width - left - right, height: 44, class: "never" }));
  out.append(svg("text", { x: left - 10, y: never + 4, "text-anchor": "end" }, "not reached"));
  for (const tick of x.ticks(6)) out.append(svg("line", { x1: x(tick), x2: x(tick), y1: top, y2: height - bottom, class: "grid" }), svg("text", { x: x(tick), y: height - bottom + 18, "text-anchor": "middle" }, `${+(tick * 100).toFixed(1)}%`));
  for (const tick of reached.length ? y.ticks(4) : []) out.append(svg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "grid" }), svg("text", { x: left - 10, y: y(tick) + 4, "text-anchor": "end" }, count(tick)));
  if (full.samples !== null) {
    out.append(svg("line", { x1: left, x2: width - right, y1: y(full.samples), y2: y(full.samples), class: "full" }));
    out.append(svg("text", { x: width - right - 4, y: y(full.samples) - 6, "text-anchor": "end", class: "note" }, `full model: ${count(full.samples)}`));
  }
  out.append(svg("text", { x: (left + width - right) / 2, y: height - 10, "text-anchor": "middle", class: "axis" }, "influence: share of paths from the embedding"));
  out.append(svg("text", { transform: `translate(16,${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "axis" }, `samples to ${data.ablation!.reference_perplexity === undefined ? "solve the task" : "the reference loss"}`));
  const written: [number, number, number][] = []; // of the names so far: from, to, at which height
  rows.forEach((r) => {
    const share = shareOf(data, row, r.component);
    const [cx, cy] = [x(share ?? 0), r.samples === null ? never : y(r.samples)];
    const nearEdge = cx > width - right - 90;
    const [from, to] = nearEdge ? [cx - 12 - 8 * r.component.length, cx] : [cx, cx + 12 + 8 * r.component.length];
    let at = cy + 4;
    while (written.some(([a, b, y]) => from < b && a < to && Math.abs(at - y) < 16)) at -= 16;
    written.push([from, to, at]);
    const point = svg(
      "g",
      { tabindex: 0, role: "img", class: "point", "data-component": r.component, "data-share": share, "data-samples": r.samples ?? "not reached", "aria-label": `${r.component}: influence ${percent(share)}, samples: ${samples(r)}` },
      svg("circle", { cx, cy, r: 7, fill: ofComponent(components, r.component) }),
      svg("text", { x: cx + (nearEdge ? -12 : 12), y: at, "text-anchor": nearEdge ? "end" : "start", class: "name" }, r.component),
    );
    explain(point, () => [
      `without ${r.component}`,
      `${samples(r)}: samples to ${goalOf(data)}`,
      `final perplexity ${r.final_perplexity.toFixed(1)}`,
      `influence ${percent(share)}`,
    ]);
    out.append(point);
  });
  return out;
}

function outcomes(data: ReportDocument): HTMLElement {
  const { full, rows } = data.ablation!;
  const all = [{ ...full, component: "" }, ...rows];
  const ends = (r: Outcome) => (full.score ? [spread(r.score, percent), spread(r.beyond, percent)] : [r.best_perplexity.toFixed(1), r.final_perplexity.toFixed(1)]);
  const cells = all.map((r) => [r.component ? `without ${r.component}` : "full model", count(r.parameters), samples(r), ...ends(r)]);
  const last = full.score ? ["final score", "beyond the lengths"] : ["best perplexity", "final perplexity"];
  const made = table(["model", "parameters", "samples", ...last], cells, [1, 2, 3, 4]);
  made.prepend(el("caption", {}, `Samples to ${goalOf(data)}`));
  return el("div", { class: "scroll" }, made);
}

function orders(rows: AgreementRow[]): HTMLElement {
  const cells = rows.map((r) => [r.kind, r.measure === "share" ? "plain" : "by weight", r.influence, r.damage, r.verdict, `${rhoOf(r)} (${r.n})`]);
  const made = table(["traces", "influence", "order of influence", "order of damage", "verdict", "ρ (n)"], cells, [5]);
  made.prepend(el("caption", {}, "Order of influence against order of damage, most first"));
  return el("div", { class: "scroll" }, made);
}

function dipsOf(data: ReportDocument, component: string): (number | null)[] {
  const dip = data.ablation?.sets?.find((s) => s.absent.length === 1 && s.absent[0] === component)?.dip;
  return [dip?.mean ?? null, dip?.low ?? null, dip?.high ?? null, dip?.n ?? null];
}

function rowsOf(data: ReportDocument): (string | number | null)[][] {
  const head = ["component", "samples", "best perplexity", "final perplexity", "best share", "best weighted share", "greedy share", "greedy weighted share", "dip", "dip low", "dip high", "seeds"];
  const rows = data.ablation?.rows ?? [];
  const of = (c: string, kind: string, measure: "share" | "weighted_share") => data.influence?.find((r) => r.kind === kind && r.component === c)?.[measure] ?? null;
  return [head, ...rows.map((r) => [r.component, r.samples, r.best_perplexity, r.final_perplexity, of(r.component, "best", "share"), of(r.component, "best", "weighted_share"), of(r.component, "greedy", "share"), of(r.component, "greedy", "weighted_share"), ...dipsOf(data, r.component)])];
}
