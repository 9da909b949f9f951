// One example of the batch, where each was traced on its own: its shares in the place of those of all.

import type { Example, FlowColumns, JoinGrid, JoinTable, ReportDocument, Shares, Snapshot } from "./data";
import { el, fit, menu } from "./dom";
import { flowOf } from "./cut";
import type { Store } from "./state";

/** What the views show: a moment, of all examples or of the chosen one. */
export function momentNow(data: ReportDocument, store: Store): Snapshot {
  return momentOf(data.snapshots[store.now.snapshot], store.now.example);
}

export function momentOf(taken: Snapshot, example: number | null): Snapshot {
  const own = example === null ? undefined : taken.examples?.[example];
  return own ? ofExample(taken, own) : taken;
}

function ofExample(taken: Snapshot, own: Example): Snapshot {
  const influence = taken.influence.map((row, i) => {
    const [share, weighted_share, dead_share] = own.influence[i];
    return { ...row, share, weighted_share, dead_share, examples: 1 };
  });
  const flows = taken.flows.map((flow, i) => {
    const { total, weight, paths, weights } = own.flows?.[i] ?? {};
    return paths ? { ...flow, total: total!, weight: weight!, paths, weights: weights!, own: true } : flow;
  });
  return { ...taken, influence, flows, joins: taken.joins?.map((table, t) => tableOf(table, own.joins[t], totalOf(taken, own, table))) };
}

/** How many paths an example has of those that a table is of; an older version does not say. */
function totalOf(taken: Snapshot, own: Example, table: JoinTable): number | undefined {
  const at = taken.flows.findIndex((flow) => flow.kind === table.kind && flow.total === table.paths);
  return own.flows?.[at]?.total;
}

/** A table with an example's paths. */
function tableOf(table: JoinTable, own: Example["joins"][number], total: number | undefined): JoinTable {
  const grids = table.grids.map((grid, g) => ({ ...grid, joins: grid.joins.map((join, j) => ({ ...join, ...cameTo(grid, join, own[g][j], total) })) }));
  return { ...table, paths: total ?? table.paths, grids };
}

function cameTo(grid: JoinGrid, join: JoinGrid["joins"][number], own: Shares[], total: number | undefined) {
  const names = grid.branches.filter((name) => Object.hasOwn(join.branches, name));
  const paths = own.reduce((sum, [n]) => sum + n, 0);
  return { paths, share: total ? paths / total : null, branches: Object.fromEntries(names.map((name, i) => [name, own[i]])) };
}

/** The flow that shows: of the chosen parameters, and of the chosen example if the file has its own. */
export function flowNow(data: ReportDocument, store: Store): FlowColumns | undefined {
  return flowOf(momentNow(data, store).flows, store.now.group, store.now.kind);
}

export function examplesOf(data: ReportDocument): Example[] {
  return data.snapshots.find((s) => s.examples?.length)?.examples ?? [];
}

/** What an example is called: by its number, and its words where there are some. */
export function titleOf(example: Example, number: number): string {
  return example.tokens ? `${number}: ${example.tokens.join(" ")}` : `example ${number}`;
}

export function exampleMenu(data: ReportDocument, store: Store): HTMLElement | null {
  const examples = examplesOf(data);
  if (!examples.length) return null;
  const options = examples.map((example, i): [string, string] => [String(i), fit(titleOf(example, i), 40)]);
  const now = () => String(store.now.example ?? "");
  const choose = (text: string) => store.set({ example: text ? Number(text) : null });
  const out = menu("Example", [["", `all ${examples.length}`], ...options], now(), choose, "example");
  const select = out.querySelector("select")!;
  store.watch(["example"], () => (select.value = now()));
  return out;
}

/** Whose figures a view shows, where an example is chosen. */
export function whoseLine(data: ReportDocument, store: Store, own = true): HTMLElement | null {
  const { example } = store.now;
  const found = example === null ? undefined : data.snapshots[store.now.snapshot].examples?.[example];
  if (example === null) return null;
  if (!found || !own) return el("p", { class: "whose" }, `Of all examples: the file has nothing of example ${example} alone here.`);
  const words = found.tokens?.map((token) => el("q", {}, token)) ?? [];
  return el("p", { class: "whose" }, `Of example ${example} alone${words.length ? ": " : "."}`, ...words.flatMap((w) => [w, " "]));
}
