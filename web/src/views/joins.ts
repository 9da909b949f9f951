// By which branch paths come where branches meet again: layers down, branches across.

import { joinsIn, keyOf, legendOf, linesBefore, other, points } from "../against";
import { inkOn, moved, shadeOf } from "../colours";
import type { JoinGrid, JoinTable, ReportDocument, Snapshot } from "../data";
import { count, el, explain, fit, hinted, menu, percent, scaleOfShares, svg, type Attributes } from "../dom";
import { momentNow, momentOf, whoseLine } from "../examples";
import { measuresOf, PLACE } from "../measures";
import { section } from "../section";
import type { Measure, Store } from "../state";

const TABLES: Record<string, string> = { early: "of the earliest parameters", all: "of all parameters" };
const WHOLE: Record<Measure, string> = { share: "Share of paths", weighted_share: "Share of the paths’ weight", along: "Part of the gradient, along the whole" };
const FEW = 0.01; // of a group's paths: what fewer of them do is no finding
const MOST_GRIDS = 12;
const NO_CHOICE = "These paths have no choice: no two branches meet on their way.";
const NOT_MEASURED = "Parts of the gradient are known of the earliest parameters, of all examples together; these are shares of paths.";
const NOTHING_THEN = "The file has no joins of the moment that is subtracted: these are shares, not differences.";
const NOT_KEPT = "Joins are kept of the last step: move the slider there.";

export function joinsView(data: ReportDocument, store: Store): HTMLElement | null {
  if (!data.snapshots.some((s) => s.joins?.some((t) => t.grids.length))) return null;
  let table = tables(data, store)[0]?.table ?? "early";
  let all = false;
  const { root, controls, body } = section(
    "joins",
    "Joins",
    "Where branches meet again, a path could have come by another one. Each row is such a place, each column a branch: the share of " +
      "the paths that had a choice there, in percent. “around” is a branch in which nothing is computed: a skip. “paths” says what " +
      "part of all paths comes there with a choice; where that is under 1%, cells are pale.",
    measuresOf(data).includes("along")
      ? "A share of paths is not a share of the gradient: that is told by “part of the gradient” under Count."
      : "A share of paths is not a share of the gradient: that is another number, told by report(signed=True) or gradtrace trace --signed.",
    { svg: () => pictureOf(...gridsNow()), rows: () => rowsOf(data, store) },
  );
  const holder = el("div", { class: "grids" });
  const foundNow = () => tables(data, store).find((t) => t.table === table) ?? tables(data, store)[0];
  const gridsNow = (): [string, JoinGrid[], Measure] => {
    const found = foundNow();
    const grids = found ? [...found.grids].sort((a, b) => weight(b) - weight(a)) : [];
    return [found ? titleOf(found, store.now.example) : "", all ? grids : grids.slice(0, MOST_GRIDS), measured(found, store.now.measure)];
  };
  const draw = () => {
    const found = foundNow();
    const [title, shown, measure] = gridsNow();
    const more = (found?.grids.length ?? 0) - shown.length;
    const then = other(data, store);
    const was = found && joinsIn(then, found);
    const before = was?.size ? then : undefined;
    holder.replaceChildren(
      ...[whoseLine(data, store), legendOf(before) ?? scaleOfShares(WHOLE[measure], "hatched: no such branch there")].filter((l) => l !== null),
      el("p", { class: "of" }, title),
      measure === store.now.measure ? "" : el("p", { class: "none" }, NOT_MEASURED),
      then && found && !before ? el("p", { class: "none" }, NOTHING_THEN) : "",
      ...(shown.length ? [] : [el("p", { class: "none" }, found ? NO_CHOICE : NOT_KEPT)]),
      ...(was ? shown.map((grid) => gridTable(grid, measure, before, was)) : []),
    );
    hinted(...holder.querySelectorAll<HTMLElement>(".scroll"));
    if (more > 0) {
      const button = el("button", { type: "button", class: "plain more" }, `${more} more`);
      button.addEventListener("click", () => ((all = true), draw()));
      holder.append(button);
    }
  };
  const names = [...new Set(data.snapshots.flatMap((s) => s.joins ?? []).map((t) => t.table))];
  controls.append(menu("Paths", names.map((n) => [n, TABLES[n] ?? n]), table, (name) => ((table = name), draw()), "joins-of"));
  body.append(holder);
  addEventListener("resize", () => hinted(...holder.querySelectorAll<HTMLElement>(".scroll")));
  store.watch(["snapshot", "against", "example", "measure", "kind"], draw);
  root.addEventListener("themechange", draw);
  return root;
}

function tables(data: ReportDocument, store: Store): JoinTable[] {
  return ofKind(momentNow(data, store).joins ?? [], store.now.kind);
}

function ofKind(found: JoinTable[], kind: string): JoinTable[] {
  const own = found.filter((t) => t.kind === kind);
  return own.length ? own : found;
}

/** What a table has figures of: parts of the gradient were measured of one, and of no single example. */
function measured(table: JoinTable | undefined, measure: Measure): Measure {
  const known = table?.grids.some((g) => g.joins.some((j) => Object.values(j.branches).some((b) => b[3] !== undefined)));
  return measure === "along" && !known ? "share" : measure;
}

function titleOf(table: JoinTable, example: number | null): string {
  return `Paths from ${group(table)}: ${count(table.paths)}${example === null ? "" : ` of example ${example}`}`;
}

/** Of all examples together, and then of each. */
function rowsOf(data: ReportDocument, store: Store): (string | number | null | undefined)[][] {
  const taken = data.snapshots[store.now.snapshot];
  const signed = measuresOf(data).includes("along");
  const moments: [string | number, number | null][] = [["all", null], ...(taken.examples ?? []).map((_, n): [number, number] => [n, n])];
  const rows = moments.flatMap(([name, example]) => ofKind(momentOf(taken, example).joins ?? [], store.now.kind).map((t) => [name, t] as const));
  return [
    ["example", "parameters", "trace", "join", "operator", "branch", "paths", "share", "weighted share", ...(signed ? ["part of the gradient"] : [])],
    ...rows.flatMap(([example, t]) =>
      t.grids.flatMap((g) =>
        g.joins.flatMap((j, n) =>
          Object.entries(j.branches).map(([name, [paths, share, heavy, along]]) => [example, t.table, t.kind, g.labels[n], g.operator, name, paths, share, heavy, ...(signed ? [along] : [])]),
        ),
      ),
    ),
  ];
}

function group(table: JoinTable): string {
  if (table.of.length === table.of_all) return `all ${table.of_all} parameters`;
  return table.of.length > 3 ? `${table.of.length} parameters, ${table.of[0]} to ${table.of[table.of.length - 1]}` : table.of.join(", ");
}

/** What comes first: grids of modules' branches that many paths come to. */
function weight(grid: JoinGrid): number {
  return Math.max(...grid.joins.map((j) => j.share ?? j.paths)) * Math.sqrt(grid.joins.length) * (grid.modules ? 1 : 0.1);
}

type Before = ReturnType<typeof joinsIn>;

function gridTable(grid: JoinGrid, measure: Measure, before: Snapshot | undefined, was: Before): HTMLElement {
  const head = el("tr", {}, el("th", { scope: "col" }, "join"), el("th", { scope: "col" }, "paths"), ...grid.branches.map((b) => el("th", { scope: "col" }, ...breakable(b))));
  const rows = grid.joins.map((join, n) =>
    el(
      "tr",
      { class: isFew(join) ? "few" : null },
      el("th", { scope: "row", title: join.source }, ...breakable(grid.labels[n])),
      el("td", {}, join.share === null ? count(join.paths) : percent(join.share)),
      ...grid.branches.map((b) => cell(grid, n, b, measure, before, was)),
    ),
  );
  const caption = el("caption", {}, captionOf(grid));
  const holder = el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": `Join grid: ${grid.operator} in ${grid.pattern}` });
  holder.append(el("table", { class: "joins" }, caption, el("thead", {}, head), el("tbody", {}, ...rows)));
  return holder;
}

/** A dotted name that may break after its dots. */
function breakable(name: string): (string | Node)[] {
  return name.split(/(?<=\.)/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
}

function captionOf(grid: JoinGrid): string {
  return `${grid.operator}${grid.pattern ? ` in ${grid.pattern}` : ""}`;
}

function cell(grid: JoinGrid, n: number, branch: string, measure: Measure, before: Snapshot | undefined, was: Before): HTMLElement {
  const [join, label] = [grid.joins[n], grid.labels[n]];
  const found = join.branches[branch];
  if (!found) return el("td", { class: "void", title: "no such branch here" });
  const [paths, share, weighted, along] = found;
  const value = found[PLACE[measure]] ?? null;
  const then = was.get(keyOf(grid, n, branch))?.[PLACE[measure]];
  const difference = value === null || then === null || then === undefined ? null : value - then;
  const shown = before ? points(difference) : percent(value);
  const out = el("td", { class: value === 0 ? "share zero" : "share", tabindex: 0, "data-branch": branch, "aria-label": `${label}, ${branch}: ${shown}` }, before ? shown : brief(value));
  if (before) tint(out, difference);
  else if (value !== null && isShaded(join, value)) shade(out, value);
  explain(out, () => [
    `${label}: ${branch}`,
    `${percent(share)} of the paths that had a choice there: ${paths.toLocaleString("en")}`,
    `${percent(weighted)} of their weight`,
    ...(along === undefined ? [] : [`${percent(along)} of the gradient that comes in there, along the whole`]),
    ...linesBefore(before, then, value),
    `the branches part after ${join.fork} and meet at ${grid.operator}, ${join.source}`,
  ]);
  return out;
}

/** Whether so few paths come to a join that its shares say little. */
function isFew(join: JoinGrid["joins"][number]): boolean {
  return join.share !== null && join.share < FEW;
}

/** Whether a share has a colour: a zero has none, nor what few paths say. */
function isShaded(join: JoinGrid["joins"][number], value: number): boolean {
  return value >= 0.0005 && !isFew(join);
}

/** The page's policy allows no style in its text. */
function shade(out: HTMLElement, value: number): void {
  out.style.background = shadeOf(value);
  out.style.color = inkOn(value);
}

function tint(out: HTMLElement, difference: number | null): void {
  const { look, strength } = moved(difference ?? 0);
  out.classList.add(look);
  out.style.setProperty("--strength", `${100 * strength}%`);
}

function brief(share: number | null): string {
  if (share === null) return "–";
  if (share > 0 && share < 0.0005) return "<0.1";
  return share >= 0.9995 && share < 1 ? ">99.9" : (100 * share).toFixed(1).replace("-", "−");
}

const LINE = { height: 22, cell: 70, letter: 6.8 };

/** The tables as a picture. */
function pictureOf(title: string, grids: JoinGrid[], measure: Measure): SVGSVGElement {
  const ink = getComputedStyle(document.body).color;
  const text = (x: number, y: number, said: string, more: Attributes = {}) => svg("text", { x, y, fill: ink, ...more }, said);
  const left = 20 + LINE.letter * Math.max(8, ...grids.flatMap((g) => g.labels.map((l) => l.length)));
  const width = left + LINE.cell * (1 + Math.max(0, ...grids.map((g) => g.branches.length))) + 20;
  const out = svg("svg", { "font-family": "system-ui, sans-serif", "font-size": 12 }, text(10, 20, `${title} · ${WHOLE[measure]}, %`, { "font-weight": 600 }));
  let y = 50;
  for (const grid of grids) {
    out.append(text(10, y, captionOf(grid), { "font-weight": 600 }));
    const right = (i: number) => left + LINE.cell * (i + 1) - 6;
    ["paths", ...grid.branches].forEach((name, i) => out.append(text(right(i), y, fit(name, 10), { "text-anchor": "end" })));
    grid.joins.forEach((join, n) => {
      y += LINE.height;
      out.append(text(10, y, grid.labels[n]), text(right(0), y, join.share === null ? count(join.paths) : percent(join.share), { "text-anchor": "end" }));
      grid.branches.forEach((branch, i) => {
        const value = join.branches[branch]?.[PLACE[measure]];
        if (value === undefined || value === null) return;
        const shaded = isShaded(join, value);
        if (shaded) out.append(svg("rect", { x: right(i) + 8, y: y - 15, width: LINE.cell - 4, height: LINE.height - 2, fill: shadeOf(value) }));
        out.append(text(right(i + 1), y, brief(value), { "text-anchor": "end", fill: shaded ? inkOn(value) : ink }));
      });
    });
    y += LINE.height + 18;
  }
  for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${y}`, width, height: y })) out.setAttribute(name, String(value));
  return out;
}
