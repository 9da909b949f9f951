// Which components the paths of which parameters cross, as a heat map.

import { influenceIn, legendOf, linesBefore, other, points } from "../against";
import { cividis, inkOn, moved, placeOf } from "../colours";
import type { InfluenceRow, ReportDocument, Snapshot } from "../data";
import { el, explain, fit, menu, percent, scaleOfShares, svg } from "../dom";
import { momentNow, whoseLine } from "../examples";
import { section } from "../section";
import type { Store } from "../state";

const FEW_GROUPS = 4; // up to which both kinds of trace show at once
const NAMES = { share: "share of paths", weighted_share: "paths by their weight" };

export function influenceView(data: ReportDocument, store: Store): HTMLElement | null {
  if (!data.snapshots.some((s) => s.influence.length)) return null;
  let drawn: SVGSVGElement | null = null;
  const { root, controls, body } = section(
    "influence",
    "Influence",
    "Each cell: of all paths from a row's parameters that exist, the share that crosses the column's component. ○ marks " +
      "components in which some of those parameters live, which their paths cross trivially. Dead: the share of (example, " +
      "parameter scalar) pairs without any path, such as embedding rows of words that an example does not use.",
    "It is a share of paths, not of the gradient, and does not say what would happen without the component.",
    {
      svg: () => drawn,
      rows: () => [
        ["parameters", "trace", "component", "share", "weighted share", "dead share", "examples", "parameters inside", "seen"],
        ...rowsNow(data, store).map((r) => [
          r.of, r.kind, r.component, r.share, r.weighted_share, r.dead_share, r.examples, r.inside, r.seen ?? true,
        ]),
      ],
    },
  );
  controls.append(
    menu(
      "Count",
      Object.entries(NAMES) as [string, string][],
      store.now.measure,
      (measure) => store.set({ measure: measure as "share" | "weighted_share" }),
      "measure",
    ),
  );
  const holder = el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Influence heat map" });
  body.append(holder);
  const draw = () => {
    const before = other(data, store);
    drawn = heatMap(rowsNow(data, store), store.now.measure, holder.clientWidth || 1100, before);
    holder.replaceChildren(...[whoseLine(data, store), legendOf(before) ?? scaleOfShares(true), drawn].filter((part) => part !== null));
  };
  store.watch(["snapshot", "against", "example", "measure", "kind"], draw);
  addEventListener("resize", draw);
  root.addEventListener("themechange", draw);
  return root;
}

function rowsNow(data: ReportDocument, store: Store): InfluenceRow[] {
  const rows = momentNow(data, store).influence;
  const many = new Set(rows.map((r) => r.of)).size > FEW_GROUPS;
  const kinds = [...new Set(rows.map((r) => r.kind))];
  const shown = rows.filter((r) => !many || r.kind === store.now.kind || kinds.length === 1);
  return kinds.flatMap((kind) => shown.filter((r) => r.kind === kind));
}

function heatMap(rows: InfluenceRow[], measure: "share" | "weighted_share", room: number, before: Snapshot | undefined): SVGSVGElement {
  const components = [...new Set(rows.map((r) => r.component))];
  const lines = [...new Map(rows.map((r) => [`${r.kind}\n${r.of}`, r])).values()];
  const left = Math.min(250, 20 + 7 * Math.max(...lines.map((l) => fit(l.of, 27).length + l.kind.length + 3)));
  const longest = Math.max(...components.map((c) => fit(c, 28).length));
  const cell = { w: Math.max(40, Math.min(120, (room - left - 60) / (components.length + 1))), h: 26 };
  const flat = components.every((c) => c.length * 6.6 < cell.w - 4);
  const top = flat ? 30 : 18 + longest * 4.9;
  const width = left + (components.length + 1) * cell.w + 14 + (flat ? 10 : longest * 4.6);
  const out = svg("svg", { class: "heat", "aria-label": "Influence" });
  components.forEach((name, i) => out.append(heading(name, left + i * cell.w, top, cell.w, flat)));
  out.append(heading("dead", left + components.length * cell.w + 14, top, cell.w, flat));
  let y = top;
  lines.forEach((line, r) => {
    y += r && lines[r - 1].kind !== line.kind ? cell.h + 10 : r ? cell.h : 0;
    out.append(svg("text", { x: left - 8, y: y + cell.h / 2 + 4, "text-anchor": "end", class: "row" }, `${fit(line.of, 27)} · ${line.kind}`));
    for (const row of rows) {
      if (row.kind !== line.kind || row.of !== line.of) continue;
      out.append(crossing(row, measure, left + components.indexOf(row.component) * cell.w, y, cell, before));
    }
    out.append(dead(line, left + components.length * cell.w + 14, y, cell));
  });
  const height = y + cell.h + 8;
  for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, width, height })) out.setAttribute(name, String(value));
  return out;
}

function heading(name: string, x: number, y: number, width: number, flat: boolean): SVGTextElement {
  const at = flat ? { x: x + width / 2, y: y - 9, "text-anchor": "middle" } : { transform: `translate(${x + width / 2 - 2},${y - 8}) rotate(-40)` };
  return svg("text", { ...at, class: "column" }, fit(name, 28), svg("title", {}, name));
}

function crossing(row: InfluenceRow, measure: "share" | "weighted_share", x: number, y: number, cell: { w: number; h: number }, before: Snapshot | undefined): SVGGElement {
  const share = row[measure];
  const was = influenceIn(before, row)?.[measure];
  const difference = share === null || was === null || was === undefined ? null : share - was;
  const tint = moved(difference ?? 0);
  const shade = placeOf(share ?? 0);
  const group = svg(
    "g",
    { tabindex: 0, role: "img", class: "cell", "data-component": row.component, "data-of": row.of, "data-kind": row.kind, "aria-label": `${row.of}, ${row.component}, ${row.kind}: ${before ? points(difference) : percent(share)}` },
    before ? svg("rect", { x: x + 1, y: y + 1, width: cell.w - 2, height: cell.h - 2, rx: 3, class: tint.look, "fill-opacity": tint.strength || 1 }) : svg("rect", { x: x + 1, y: y + 1, width: cell.w - 2, height: cell.h - 2, rx: 3, fill: share === null ? "none" : cividis(shade), class: share === null ? "void" : share < 0.0005 ? "zero" : "" }),
    svg("text", { x: x + cell.w / 2, y: y + cell.h / 2 + 4, "text-anchor": "middle", fill: before || share === null || share < 0.0005 ? "currentColor" : inkOn(shade) }, before ? points(difference) : cell.w < 56 ? whole(share) : percent(share)),
    row.inside ? svg("circle", { cx: x + cell.w - 7, cy: y + 7, r: 2.5, fill: "none", stroke: before || share === null ? "currentColor" : inkOn(shade) }) : null,
  );
  explain(group, () => [
    `${row.of} → ${row.component}, ${row.kind}`,
    ...(row.seen === false
      ? ["none of its calls was seen, so nobody can tell"]
      : [`${percent(row.share)} of paths cross it`, `${percent(row.weighted_share)} of their weight`]),
    ...linesBefore(before, was, share),
    `${percent(row.dead_share)} of pairs have no path; ${row.examples} example${row.examples === 1 ? "" : "s"}`,
    ...(row.inside ? ["some of these parameters live inside"] : []),
  ]);
  return group;
}

/** A share in a narrow cell; the exact one is a pointer away. */
function whole(share: number | null): string {
  return share === null ? "–" : share > 0 && share < 0.005 ? "<1" : share < 1 && share >= 0.995 ? ">99" : (share * 100).toFixed(0);
}

function dead(row: InfluenceRow, x: number, y: number, cell: { w: number; h: number }): SVGGElement {
  return svg(
    "g",
    { class: "dead" },
    svg("rect", { x: x + 1, y: y + 1, width: cell.w - 2, height: cell.h - 2, rx: 3 }),
    svg("rect", { x: x + 1, y: y + cell.h - 4, width: (cell.w - 2) * (row.dead_share ?? 0), height: 3, class: "bar" }),
    svg("text", { x: x + cell.w / 2, y: y + cell.h / 2 + 3, "text-anchor": "middle" }, cell.w < 56 ? whole(row.dead_share) : percent(row.dead_share)),
  );
}
