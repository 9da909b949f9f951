// One example of the batch, where each was traced on its own: its shares in the place of those of all.

import type { Example, JoinGrid, JoinTable, ReportDocument, Snapshot } from "./data";
import { el, fit, menu } from "./dom";
import { flowOf } from "./cut";
import type { Store } from "./state";
import { strongestOf } from "./walk";

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
  return { ...taken, influence, joins: taken.joins?.map((table, t) => tableOf(table, own.joins[t])) };
}

/** A table with an example's paths: those that come to a join with a choice are a number, and no share of all. */
function tableOf(table: JoinTable, own: Example["joins"][number]): JoinTable {
  const grids = table.grids.map((grid, g) => ({ ...grid, joins: grid.joins.map((join, j) => ({ ...join, ...cameTo(grid, join, own[g][j]) })) }));
  return { ...table, grids };
}

function cameTo(grid: JoinGrid, join: JoinGrid["joins"][number], own: Example["joins"][number][number][number]) {
  const names = grid.branches.filter((name) => Object.hasOwn(join.branches, name));
  return { paths: own.reduce((sum, [paths]) => sum + paths, 0), share: null, branches: Object.fromEntries(names.map((name, i) => [name, own[i]])) };
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
  const choose = (text: string) => {
    const example = text ? Number(text) : null;
    const { snapshot, group, kind } = store.now;
    store.set({ example, path: strongestOf(data, snapshot, flowOf(data.snapshots[snapshot].flows, group, kind), example) ?? store.now.path });
  };
  const out = menu("Example", [["", `all ${examples.length}`], ...options], now(), choose, "example");
  const select = out.querySelector("select")!;
  store.watch(["example"], () => (select.value = now()));
  return out;
}

/** Whose figures a view shows, where it is one example's. */
export function whoseLine(data: ReportDocument, store: Store): HTMLElement | null {
  const { example } = store.now;
  const found = example === null ? undefined : data.snapshots[store.now.snapshot].examples?.[example];
  if (!found) return null;
  const words = found.tokens?.map((token) => el("q", {}, token)) ?? [];
  return el("p", { class: "whose" }, `Of example ${example} alone${words.length ? ": " : "."}`, ...words.flatMap((w) => [w, " "]));
}
