// Heads and experts as lanes of the part in which they run side by side: shares of the paths that have a choice there.

import type { FlowColumns, JoinTable, ReportDocument } from "./data";
import { momentOf } from "./examples";
import { amountOf, PLACE } from "./measures";
import { leavesOf } from "./walk";

export interface Lane {
  name: string;
  share: number; // of what has a choice among the lanes
}

/** The lanes of a call, and how much comes to it with a choice among them. */
export interface Lanes {
  lanes: Lane[];
  come: number;
}

const LEAST = 2;

/** The joins of a flow's own parameters, by the kind of their paths. */
export function joinsOf(data: ReportDocument, snapshot: number, flow: FlowColumns | undefined, example: number | null = null): JoinTable | undefined {
  const { name } = data.graph.parameters;
  const taken = data.snapshots[snapshot];
  const whole = taken.flows.find((f) => f.of === flow?.of && f.kind === flow.kind);
  const own = new Set([...leavesOf(whole)].map((leaf) => name[leaf]));
  const covers = (table: JoinTable) => table.of.filter((n) => own.has(n)).length === own.size;
  const at = taken.joins?.findIndex((t) => t.kind === whole?.kind && covers(t) && t.paths === whole.total) ?? -1;
  return momentOf(taken, flow?.own ? example : null).joins?.[at];
}

/** Calls at which a table's branches, which modules are, meet. */
export function callsOf(table: JoinTable | undefined): number[] {
  return table?.grids.flatMap((g) => (g.modules ? g.joins.map((j) => j.call) : [])) ?? [];
}

/** What a table calls the calls at which branches meet. */
export function labelsOf(table: JoinTable | undefined): Map<number, string> {
  const all = table?.grids.flatMap((g) => g.joins.map((j, n) => [j.call, g.labels[n].replace("(top) ", "")] as const)) ?? [];
  return new Map(all.filter(([, label]) => label !== "(top)"));
}

/** Lanes by the number of the call at which they meet: branches that are all of one name but for their numbers. */
export function lanesOf(table: JoinTable | undefined, flow: FlowColumns, heavy: boolean): Map<number, Lanes> {
  const out = new Map<number, Lanes>();
  for (const grid of table?.grids ?? []) {
    for (const join of grid.joins) {
      const lanes = Object.entries(join.branches).map(([name, shares]) => ({ name, share: shares[PLACE[heavy ? "weighted_share" : "share"]] ?? 0 }));
      const stems = new Set(lanes.map((lane) => lane.name.replace(/\d+/, "*")));
      const [stem] = stems;
      if (lanes.length >= LEAST && stems.size === 1 && stem.includes("*") && !stem.startsWith("part ")) out.set(join.call, { lanes, come: comeTo(join, flow, heavy) });
    }
  }
  return out;
}

/** How many paths come to a join with a choice; and of what weight: so much of what goes into the call. */
function comeTo(join: JoinTable["grids"][number]["joins"][number], flow: FlowColumns, heavy: boolean): number {
  const into = { paths: 0, weights: 0 };
  flow.target.forEach((call, i) => {
    if (call !== join.call) return;
    into.paths += flow.paths[i];
    into.weights += flow.weights[i];
  });
  return heavy && into.paths ? (amountOf(heavy, into) * Math.min(join.paths, into.paths)) / into.paths : join.paths;
}
