// Read paths out of the table of steps that they share.

import type { FlowColumns, PathTable, ReportDocument } from "./data";
import type { State } from "./state";

export interface Step {
  call: number;
  index: number[];
  derivative: number | null;
  token: string | null;
  /** log2 of the absolute product of the derivatives so far. */
  running: number;
}

export function tableOf(data: ReportDocument, snapshot: number, kind: string): PathTable | undefined {
  return data.snapshots[snapshot].paths[kind] ?? Object.values(data.snapshots[snapshot].paths)[0];
}

/** Where a scalar's path begins: in the example that is looked at, if the file has that one, else in the one where it is strongest. */
export function startOf(table: PathTable, chosen: { leaf: number; index: string }, example: number | null): number {
  const leaves = table.starts.leaf ?? [];
  const found = leaves.flatMap((leaf, i) => (leaf === chosen.leaf && table.starts.index![i].join(", ") === chosen.index ? [i] : []));
  return found.find((i) => table.starts.example?.[i] === example) ?? found[0] ?? -1;
}

export function stepsOf(table: PathTable, chosen: { leaf: number; index: string }, example: number | null): Step[] {
  const start = startOf(table, chosen, example);
  const out: Step[] = [];
  let running = 0;
  for (let at = start < 0 ? -1 : table.starts.first![start]; at >= 0; at = table.steps.next[at]) {
    const derivative = table.steps.derivative[at];
    running += Math.log2(Math.abs(derivative ?? 0));
    out.push({ call: table.steps.call[at], index: table.steps.index[at], derivative, token: table.steps.token[at], running });
  }
  return out;
}

/** The parameters that a flow starts from. */
export function leavesOf(flow: FlowColumns | undefined): Set<number> {
  return new Set((flow?.source ?? []).flatMap((source, i) => (source < 0 && flow!.paths[i] > 0 ? [-1 - source] : [])));
}

/** The strongest path of a flow's own parameters: of all examples, or of one. */
export function strongestOf(data: ReportDocument, snapshot: number, flow: FlowColumns | undefined, example: number | null): State["path"] {
  const starts = tableOf(data, snapshot, flow?.kind ?? "")?.starts;
  const own = leavesOf(flow);
  const at = starts?.leaf?.findIndex((leaf, i) => own.has(leaf) && (example === null || starts.example?.[i] === example)) ?? -1;
  return at < 0 ? null : { leaf: starts!.leaf![at], index: starts!.index![at].join(", ") };
}
