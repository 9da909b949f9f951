// An address for every state: what is chosen stands behind the #, so that a link shows what its sender saw.

import type { ReportDocument } from "./data";
import { examplesOf } from "./examples";
import { measuresOf } from "./measures";
import type { State, Store } from "./state";

const numbers = (set: Set<number>) => [...set].sort((a, b) => a - b).join(".");
const setOf = (text: string) => new Set(text.split(".").filter(Boolean).map(Number));

/** What an address says of a state; what it does not say, or says wrongly, stays as it is. */
export function read(data: ReportDocument, hash: string): Partial<State> {
  const said = new URLSearchParams(hash.replace(/^#/, ""));
  const out: Partial<State> = {};
  const one = <T>(key: string, known: (text: string) => T | undefined): T | undefined => {
    const text = said.get(key);
    return text === null ? undefined : known(text);
  };
  const among = (values: string[]) => (text: string) => (values.includes(text) ? text : undefined);
  const flows = data.snapshots[data.snapshots.length - 1].flows;
  const nodes = (count: number) => (text: string) => {
    const found = setOf(text);
    return [...found].every((n) => Number.isInteger(n) && n >= 0 && n < count) ? found : undefined;
  };
  const moment = (text: string) => {
    const found = data.snapshots.findIndex((s) => (s.name ?? String(s.step)) === text);
    return found < 0 ? undefined : found;
  };
  const values: Partial<Record<keyof State, unknown>> = {
    snapshot: one("step", moment),
    against: one("less", (text) => (text ? moment(text) : null)),
    example: one("example", (text) => (/^\d+$/.test(text) && Number(text) < examplesOf(data).length ? Number(text) : undefined)),
    kind: one("kind", among(flows.map((f) => f.kind))),
    group: one("of", among(flows.map((f) => f.of))),
    measure: one("count", among(measuresOf(data))),
    open: one("open", nodes(data.graph.modules.parent.length)),
    openGroups: one("groups", nodes(data.graph.groups.parent.length)),
    unfolded: one("runs", nodes(data.graph.modules.parent.length)),
    path: one("path", (text) => pathOf(data, text)),
    search: one("find", (text) => text),
    at: one("at", (text) => text),
  };
  for (const [key, value] of Object.entries(values)) if (value !== undefined) Object.assign(out, { [key]: value });
  return out;
}

function pathOf(data: ReportDocument, text: string): State["path"] | undefined {
  const [leaf, ...index] = text.split(".");
  const known = /^\d+$/.test(leaf) && Number(leaf) < data.graph.parameters.name.length && index.every((i) => /^\d+$/.test(i));
  return known ? { leaf: Number(leaf), index: index.join(", ") } : undefined;
}

function written(data: ReportDocument, now: State, first: State): string {
  const moment = (at: number | null) => (at === null ? "" : (data.snapshots[at].name ?? String(data.snapshots[at].step)));
  const said: [string, string, unknown, unknown][] = [
    ["step", moment(now.snapshot), now.snapshot, first.snapshot],
    ["less", moment(now.against), now.against, first.against],
    ["example", String(now.example ?? ""), now.example, first.example],
    ["kind", now.kind, now.kind, first.kind],
    ["of", now.group, now.group, first.group],
    ["count", now.measure, now.measure, first.measure],
    ["open", numbers(now.open), numbers(now.open), numbers(first.open)],
    ["groups", numbers(now.openGroups), numbers(now.openGroups), numbers(first.openGroups)],
    ["runs", numbers(now.unfolded), numbers(now.unfolded), numbers(first.unfolded)],
    ["path", now.path ? [now.path.leaf, ...now.path.index.split(", ")].join(".") : "", JSON.stringify(now.path), JSON.stringify(first.path)],
    ["find", now.search, now.search, first.search],
    ["at", now.at, now.at, first.at],
  ];
  return new URLSearchParams(said.filter(([, , a, b]) => a !== b).map(([key, value]) => [key, value])).toString();
}

/** Keep the address at what the page shows, and the page at its address. */
export function follow(data: ReportDocument, store: Store): void {
  const { first } = store;
  store.set(read(data, location.hash));
  const tell = () => {
    const address = written(data, store.now, first);
    try {
      history.replaceState(null, "", address ? `#${address}` : location.hash.includes("=") ? " " : location.hash || " ");
    } catch {
      // a frame of a notebook has no address
    }
  };
  store.watch(["snapshot", "against", "example", "kind", "group", "measure", "open", "openGroups", "unfolded", "path", "search", "at"], tell);
  addEventListener("hashchange", () => location.hash.includes("=") && location.reload());
}
