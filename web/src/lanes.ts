// Heads and experts as lanes of the part in which they run side by side: shares of the paths that have a choice there.

import type { FlowColumns, JoinTable, ReportDocument } from "./data";
import { leavesOf } from "./walk";

export interface Lane {
  name: string;
  share: number;
}

const LEAST = 2;

/** The joins of a flow's own parameters, by the kind of their paths. */
export function joinsOf(data: ReportDocument, snapshot: number, flow: FlowColumns | undefined): JoinTable | undefined {
  const { name } = data.graph.parameters;
  const own = new Set([...leavesOf(flow)].map((leaf) => name[leaf]));
  const covers = (table: JoinTable) => table.of.filter((n) => own.has(n)).length === own.size;
  const alive = (table: JoinTable) => table.paths === flow?.total;
  return data.snapshots[snapshot].joins?.find((t) => t.kind === flow?.kind && covers(t) && alive(t));
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
export function lanesOf(table: JoinTable | undefined): Map<number, Lane[]> {
  const out = new Map<number, Lane[]>();
  for (const grid of table?.grids ?? []) {
    for (const join of grid.joins) {
      const lanes = Object.entries(join.branches).map(([name, [, share]]) => ({ name, share: share ?? 0 }));
      const stems = new Set(lanes.map((lane) => lane.name.replace(/\d+/, "*")));
      const [stem] = stems;
      if (lanes.length >= LEAST && stems.size === 1 && stem.includes("*") && !stem.startsWith("part ")) out.set(join.call, lanes);
    }
  }
  return out;
}
