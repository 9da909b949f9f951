// By which branch paths come where branches meet again: layers down, branches across.

import { joinsIn, keyOf, legendOf, linesBefore, other, points } from "../against";
import { cividis, inkOn, moved, placeOf } from "../colours";
import type { JoinGrid, JoinTable, ReportDocument, Snapshot } from "../data";
import { count, el, explain, menu, percent, scaleOfShares } from "../dom";
import { momentNow, whoseLine } from "../examples";
import { section } from "../section";
import type { Store } from "../state";

const TABLES: Record<string, string> = { early: "of the earliest parameters", all: "of all parameters" };
const NAMES = { share: "share of paths", weighted_share: "paths by their weight" };
const MOST_GRIDS = 12;
const NO_CHOICE = "These paths have no choice: no two branches meet on their way.";
const NOT_KEPT = "Joins are kept of the last step: move the slider there.";

export function joinsView(data: ReportDocument, store: Store): HTMLElement | null {
  if (!data.snapshots.some((s) => s.joins?.some((t) => t.grids.length))) return null;
  let table = tables(data, store)[0]?.table ?? "early";
  let all = false;
  const { root, controls, body } = section(
    "joins",
    "Joins",
    "Where branches meet again, a path could have come by another one. Each row is such a place, each column a branch: the share of " +
      "the paths that had a choice there, in percent. “around” is a branch in which nothing is computed: a skip. “paths” says how " +
      "many of all paths come there with a choice.",
    "Shares depend on the basis in which activations are written; what a branch adds to the gradient is another number.",
    {
      rows: () => [
        ["parameters", "trace", "join", "operator", "branch", "paths", "share", "weighted share"],
        ...tables(data, store).flatMap((t) =>
          t.grids.flatMap((g) =>
            g.joins.flatMap((j, n) =>
              Object.entries(j.branches).map(([name, values]) => [t.table, t.kind, g.labels[n], g.operator, name, ...values]),
            ),
          ),
        ),
      ],
    },
  );
  const holder = el("div", { class: "grids" });
  const draw = () => {
    const found = tables(data, store).find((t) => t.table === table) ?? tables(data, store)[0];
    const grids = found ? [...found.grids].sort((a, b) => weight(b) - weight(a)) : [];
    const shown = all ? grids : grids.slice(0, MOST_GRIDS);
    const more = grids.length - shown.length;
    const before = other(data, store);
    holder.replaceChildren(
      ...[whoseLine(data, store), legendOf(before) ?? scaleOfShares()].filter((l) => l !== null),
      el("p", { class: "of" }, found ? `Paths from ${group(found)}: ${count(found.paths)}${store.now.example === null ? "" : ", of all examples"}` : ""),
      ...(grids.length ? [] : [el("p", { class: "none" }, found ? NO_CHOICE : NOT_KEPT)]),
      ...(found ? shown.map((grid) => gridTable(grid, store.now.measure, before, joinsIn(before, found))) : []),
    );
    if (more > 0) {
      const button = el("button", { type: "button", class: "plain more" }, `${more} more`);
      button.addEventListener("click", () => ((all = true), draw()));
      holder.append(button);
    }
  };
  const names = [...new Set(data.snapshots.flatMap((s) => s.joins ?? []).map((t) => t.table))];
  controls.append(
    menu("Paths", names.map((n) => [n, TABLES[n] ?? n]), table, (name) => ((table = name), draw()), "joins-of"),
    menu(
      "Count",
      Object.entries(NAMES) as [string, string][],
      store.now.measure,
      (measure) => store.set({ measure: measure as "share" | "weighted_share" }),
      "joins-measure",
    ),
  );
  body.append(holder);
  store.watch(["snapshot", "against", "example", "measure", "kind"], draw);
  root.addEventListener("themechange", draw);
  return root;
}

function tables(data: ReportDocument, store: Store): JoinTable[] {
  const found = momentNow(data, store).joins ?? [];
  const own = found.filter((t) => t.kind === store.now.kind);
  return own.length ? own : found;
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

function gridTable(grid: JoinGrid, measure: "share" | "weighted_share", before: Snapshot | undefined, was: Before): HTMLElement {
  const head = el("tr", {}, el("th", { scope: "col" }, "join"), el("th", { scope: "col" }, "paths"), ...grid.branches.map((b) => el("th", { scope: "col" }, b)));
  const rows = grid.joins.map((join, n) =>
    el(
      "tr",
      {},
      el("th", { scope: "row", title: join.source }, grid.labels[n]),
      el("td", {}, join.share === null ? count(join.paths) : percent(join.share)),
      ...grid.branches.map((b) => cell(grid, n, b, measure, before, was)),
    ),
  );
  const caption = el("caption", {}, `${grid.operator}${grid.pattern ? ` in ${grid.pattern}` : ""}`);
  const holder = el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": `Join grid: ${grid.operator} in ${grid.pattern}` });
  holder.append(el("table", { class: "joins" }, caption, el("thead", {}, head), el("tbody", {}, ...rows)));
  return holder;
}

function cell(grid: JoinGrid, n: number, branch: string, measure: "share" | "weighted_share", before: Snapshot | undefined, was: Before): HTMLElement {
  const [join, label] = [grid.joins[n], grid.labels[n]];
  const found = join.branches[branch];
  if (!found) return el("td", { class: "void" });
  const [paths, share, weighted] = found;
  const value = measure === "share" ? share : weighted;
  const then = was.get(keyOf(grid, n, branch))?.[measure === "share" ? 1 : 2];
  const difference = value === null || then === null || then === undefined ? null : value - then;
  const shown = before ? points(difference) : percent(value);
  const out = el("td", { class: "share", tabindex: 0, "data-branch": branch, "aria-label": `${label}, ${branch}: ${shown}` }, before ? shown : brief(value));
  if (before) tint(out, difference);
  else if (value !== null && value >= 0.0005) shade(out, value);
  explain(out, () => [
    `${label}: ${branch}`,
    `${percent(share)} of the paths that had a choice there: ${paths.toLocaleString("en")}`,
    `${percent(weighted)} of their weight`,
    ...linesBefore(before, then, value),
    `${grid.operator} of what comes from ${join.fork}, ${join.source}`,
  ]);
  return out;
}

/** The page's policy allows no style in its text. */
function shade(out: HTMLElement, value: number): void {
  const at = placeOf(value);
  out.style.background = cividis(at);
  out.style.color = inkOn(at);
}

function tint(out: HTMLElement, difference: number | null): void {
  const { look, strength } = moved(difference ?? 0);
  out.classList.add(look);
  out.style.setProperty("--strength", `${100 * strength}%`);
}

function brief(share: number | null): string {
  if (share === null) return "–";
  if (share > 0 && share < 0.0005) return "<0.1";
  return share >= 0.9995 && share < 1 ? ">99.9" : String(Number((100 * share).toFixed(1)));
}
