// What is subtracted where two results, or two moments of a training, are looked at side by side.

import type { FlowColumns, InfluenceRow, JoinTable, ReportDocument, Snapshot } from "./data";
import { el, menu } from "./dom";
import { momentOf } from "./examples";
import type { Store } from "./state";

/** What a moment is called: by its step, or by the name of its result. */
export function nameOf(snapshot: Snapshot): string {
  return snapshot.name ?? `step ${snapshot.step}`;
}

/** What is subtracted from the moment that shows; nothing, if nothing is chosen or it is the same. */
export function other(data: ReportDocument, store: Store): Snapshot | undefined {
  const { against, snapshot } = store.now;
  return against === null || against === snapshot ? undefined : momentOf(data.snapshots[against], store.now.example);
}

/** A menu of moments to subtract, where there are several. */
export function againstMenu(data: ReportDocument, store: Store): HTMLElement | null {
  if (data.snapshots.length < 2) return null;
  const options = data.snapshots.map((s, i): [string, string] => [String(i), nameOf(s)]);
  const chosen = () => String(store.now.against ?? "");
  const out = menu("Less", [["", "nothing"], ...options], chosen(), (i) => store.set({ against: i ? Number(i) : null }), "against");
  const select = out.querySelector("select")!;
  store.watch(["against"], () => (select.value = chosen()));
  return out;
}

/** Percentage points, with their sign. */
export function points(difference: number | null | undefined): string {
  if (difference === null || difference === undefined || Number.isNaN(difference)) return "–";
  const text = (100 * Math.abs(difference)).toFixed(1).replace(/\.0$/, "");
  return text === "0" ? "0" : `${difference < 0 ? "−" : "+"}${text}`;
}

/** What there was of it before, and what came to it, as lines of a tip. */
export function linesBefore(before: Snapshot | undefined, was: number | null | undefined, is: number | null | undefined): string[] {
  if (!before) return [];
  const known = was !== null && was !== undefined && is !== null && is !== undefined;
  return [known ? `${(100 * was).toFixed(1)}% in ${nameOf(before)}: ${points(is - was)} pt` : `not told in ${nameOf(before)}`];
}

/** A row of influence, of another moment. */
export function influenceIn(before: Snapshot | undefined, row: InfluenceRow): InfluenceRow | undefined {
  return before?.influence.find((r) => r.of === row.of && r.kind === row.kind && r.component === row.component);
}

type Values = JoinTable["grids"][number]["joins"][number]["branches"][string];

/** A table's shares by grid, join and branch, of another moment. */
export function joinsIn(before: Snapshot | undefined, like: JoinTable): Map<string, Values> {
  const table = before?.joins?.find((t) => t.table === like.table && t.kind === like.kind);
  const all = (table?.grids ?? []).flatMap((grid) =>
    grid.joins.flatMap((join, n) => Object.entries(join.branches).map(([name, values]) => [keyOf(grid, n, name), values] as const)),
  );
  return new Map(all);
}

export function keyOf(grid: { pattern: string; operator: string; labels: string[] }, n: number, branch: string): string {
  return [grid.pattern, grid.operator, grid.labels[n], branch].join("\n");
}

/** The same flow, of another moment. */
export function flowIn(before: Snapshot | undefined, flow: FlowColumns): FlowColumns | undefined {
  return before?.flows.find((f) => f.of === flow.of && f.kind === flow.kind);
}

/** What colours mean where a difference shows. */
export function legendOf(before: Snapshot | undefined): HTMLElement | null {
  if (!before) return null;
  const key = (look: string, text: string) => [el("span", { class: `swatch ${look}` }), text];
  return el("p", { class: "difference" }, `In points, less ${nameOf(before)}: `, ...key("more", "more paths "), ...key("fewer", "fewer"));
}
