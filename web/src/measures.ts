// What a path counts as, in all views at once: one, or its weight.

import type { ReportDocument } from "./data";
import { menu } from "./dom";
import type { Measure, Store } from "./state";

export const MEASURES: Record<Measure, string> = { share: "number of paths", weighted_share: "paths by their weight", along: "part of the gradient" };

/** Where a measure stands in a branch's figures. */
export const PLACE: Record<Measure, 1 | 2 | 3> = { share: 1, weighted_share: 2, along: 3 };

/** The measures that a file has figures of. */
export function measuresOf(data: ReportDocument): Measure[] {
  const grids = data.snapshots.flatMap((s) => s.joins ?? []).flatMap((t) => t.grids);
  const signed = grids.some((g) => g.joins.some((j) => Object.values(j.branches).some((b) => b[3] !== undefined)));
  return signed ? ["share", "weighted_share", "along"] : ["share", "weighted_share"];
}

export function countMenu(data: ReportDocument, store: Store): HTMLElement {
  const options = measuresOf(data).map((m): [string, string] => [m, MEASURES[m]]);
  return menu("Count", options, store.now.measure, (measure) => store.set({ measure: measure as Measure }), "count");
}

/** How views count that know of no part of the gradient: by number. */
export function weighted(store: Store): boolean {
  return store.now.measure === "weighted_share";
}

/** The figure of a row of influence that is meant. */
export function shareBy(store: Store): "share" | "weighted_share" {
  return weighted(store) ? "weighted_share" : "share";
}

/** So much of paths, or of their weight. */
export function amountOf(heavy: boolean, of: { paths: number; weights: number }): number {
  return heavy ? of.weights : of.paths;
}
