// Parameters from which no path leads to the loss, and what the file says of them.

import type { ReportDocument, Snapshot } from "./data";
import { momentNow } from "./examples";
import type { Store } from "./state";
import { leavesOf } from "./walk";

const EVERYTHING = "all parameters";

/** Those without any path, by number: of the chosen example, if the file has its own flow. */
export function deadNow(data: ReportDocument, store: Store): Set<number> {
  const moment = momentNow(data, store);
  const all = moment.flows.find((f) => f.of === EVERYTHING && f.kind === store.now.kind);
  const { name } = data.graph.parameters;
  const living = all && leavesOf(all);
  const told = new Set(aboutDead(moment).flatMap((f) => f.cells.flatMap((c) => (c.value === 1 ? [c.row] : []))));
  return new Set(name.flatMap((n, i) => ((living ? !living.has(i) : told.has(n)) ? [i] : [])));
}

function aboutDead(moment: Snapshot): NonNullable<Snapshot["findings"]> {
  return moment.findings?.filter((f) => f.kind === "dead") ?? [];
}

/** What the file says of parameters that are dead: what speaks of some of these, or else of any if it may. */
export function saidOfDead(moment: Snapshot, names: string[], any = true): string[] {
  const all = aboutDead(moment);
  const own = all.filter((f) => f.cells.some((c) => names.some((name) => c.row === name || c.row.startsWith(`${name}.`))));
  return (own.length || !any ? own : all).map((f) => f.text);
}
