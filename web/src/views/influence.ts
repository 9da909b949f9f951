// Which components the paths of which parameters cross, as a heat map.

import { influenceIn, legendOf, linesBefore, other, points } from "../against";
import { inkOn, moved, shadeOf } from "../colours";
import type { InfluenceRow, ReportDocument, Snapshot } from "../data";
import { el, explain, fit, hinted, percent, scaleOfShares, svg } from "../dom";
import { momentNow, whoseLine } from "../examples";
import { shareBy } from "../measures";
import { drawnBy, section } from "../section";
import type { Store } from "../state";

const FEW_GROUPS = 4; // up to which both kinds of trace show at once
const NARROW = 620; // pixels, below which names give way to figures
const DEAD = "the share of (example, parameter scalar) pairs without any path of non-zero weight to the loss";

export function influenceView(data: ReportDocument, store: Store): HTMLElement | null {
  if (!data.snapshots.some((s) => s.influence.length)) return null;
  let drawn: SVGSVGElement | null = null;
  const { root, body } = section(
    "influence",
    "Influence",
    "Each cell: of the paths from a row's parameters, the share that crosses the column's component. ○ marks " +
      "components in which some of those parameters live, which their paths cross trivially. Dead: " +
      `${DEAD}${hasWords(data) ? ", such as embedding rows of words that an example does not use" : ""}; they are in no share.`,
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
  const holder = el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Influence heat map" });
  body.append(holder);
  const draw = () => {
    const before = other(data, store);
    const measure = shareBy(store);
    const said = measure === "share" ? "Share of paths" : "Share of the paths’ weight";
    drawn = heatMap(rowsNow(data, store), measure, holder.clientWidth || 1100, before);
    const legend = legendOf(before) ?? scaleOfShares(said, "○ parameters inside · – no path, so no share");
    holder.replaceChildren(...[whoseLine(data, store), legend, drawn].filter((part) => part !== null));
    hinted(holder);
  };
  drawnBy(root, store, ["snapshot", "against", "example", "measure", "kind"], draw);
  return root;
}

function hasWords(data: ReportDocument): boolean {
  return data.snapshots.some((s) => s.examples?.some((e) => e.tokens) || Object.values(s.paths).some((p) => p.steps.token.some((t) => t !== null)));
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
  const several = new Set(lines.map((l) => l.kind)).size > 1;
  const nameOf = (l: InfluenceRow) => `${fit(l.of, room < NARROW ? (several ? 10 : 16) : 27)}${several ? ` · ${l.kind}` : ""}`;
  const left = 20 + 7 * Math.max(...lines.map((l) => nameOf(l).length));
  const longest = Math.max(...components.map((c) => fit(c, 28).length));
  const cell = { w: Math.max(room < NARROW ? 36 : 40, Math.min(120, (room - left - 60) / (components.length + 1))), h: 26 };
  const flat = components.every((c) => c.length * 6.6 < cell.w - 4);
  const top = flat ? 30 : 18 + longest * 4.9;
  const width = left + (components.length + 1) * cell.w + 14 + (flat ? 10 : longest * 4.6);
  const out = svg("svg", { class: "heat", "aria-label": "Influence" });
  const first = room < NARROW ? cell.w + 14 : 0; // on a phone what is dead stands where it is seen
  const deadAt = left + (first ? 0 : components.length * cell.w + 14);
  components.forEach((name, i) => out.append(heading(name, left + first + i * cell.w, top, cell.w, flat)));
  out.append(heading("dead", deadAt, top, cell.w, flat));
  let y = top;
  lines.forEach((line, r) => {
    y += r && lines[r - 1].kind !== line.kind ? cell.h + 10 : r ? cell.h : 0;
    out.append(svg("text", { x: left - 8, y: y + cell.h / 2 + 4, "text-anchor": "end", class: "row" }, nameOf(line), svg("title", {}, `${line.of}, ${line.kind} paths`)));
    for (const row of rows) {
      if (row.kind !== line.kind || row.of !== line.of) continue;
      out.append(crossing(row, measure, left + first + components.indexOf(row.component) * cell.w, y, cell, before));
    }
    out.append(dead(line, deadAt, y, cell));
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
  const shade = share ?? 0;
  const group = svg(
    "g",
    { tabindex: 0, role: "img", class: "cell", "data-component": row.component, "data-of": row.of, "data-kind": row.kind, "aria-label": `${row.of}, ${row.component}, ${row.kind}: ${before ? points(difference) : percent(share)}` },
    before ? svg("rect", { x: x + 1, y: y + 1, width: cell.w - 2, height: cell.h - 2, rx: 3, class: tint.look, "fill-opacity": tint.strength || 1 }) : svg("rect", { x: x + 1, y: y + 1, width: cell.w - 2, height: cell.h - 2, rx: 3, fill: share === null ? "none" : shadeOf(shade), class: share === null ? "void" : share < 0.0005 ? "zero" : "" }),
    svg("text", { x: x + cell.w / 2, y: y + cell.h / 2 + 4, "text-anchor": "middle", fill: before || share === null || share < 0.0005 ? "currentColor" : inkOn(shade) }, before ? points(difference) : cell.w < 56 ? whole(share) : percent(share)),
    row.inside ? svg("circle", { cx: x + cell.w - 7, cy: y + 7, r: 2.5, fill: "none", stroke: before || share === null ? "currentColor" : inkOn(shade) }) : null,
  );
  explain(group, () => [
    `${row.of} → ${row.component}, ${row.kind}`,
    ...(row.seen === false
      ? ["none of its calls was seen, so nobody can tell"]
      : row.dead_share === 1
      ? ["dead: none of these parameters has a path to the loss, so nothing trains them"]
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
  const group = svg(
    "g",
    { tabindex: 0, role: "img", class: "dead", "data-of": row.of, "data-kind": row.kind, "aria-label": `${row.of}, ${row.kind}: ${percent(row.dead_share)} dead` },
    svg("rect", { x: x + 1, y: y + 1, width: cell.w - 2, height: cell.h - 2, rx: 3 }),
    svg("rect", { x: x + 1, y: y + cell.h - 4, width: (cell.w - 2) * (row.dead_share ?? 0), height: 3, class: "bar" }),
    svg("text", { x: x + cell.w / 2, y: y + cell.h / 2 + 3, "text-anchor": "middle" }, cell.w < 56 ? whole(row.dead_share) : percent(row.dead_share)),
  );
  explain(group, () => [
    `${row.of}: ${percent(row.dead_share)} dead`,
    DEAD,
    row.dead_share === 1 ? "nothing trains these parameters here" : row.dead_share ? "nothing trains those scalars in those examples; they are in no share" : "every scalar has a path in every example",
  ]);
  return group;
}
