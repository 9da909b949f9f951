// Fold the flow between operator calls to what is open. Pure, so that what goes in is what comes out.

import type { FlowColumns, Graph, TreeColumns } from "./data";

export interface CutNode {
  id: string;
  tree: "modules" | "groups" | "loss";
  number: number;
  label: string;
  name: string;
  kind: string;
  column: number;
  paths: number;
  weights: number;
  /** What a run stands for, from its first part to its last. */
  members?: CutNode[];
  /** Whether branches meet in it. */
  meets?: boolean;
}

export interface CutLink {
  source: string;
  target: string;
  paths: number; // 0 of a way that the program has and no path takes
  weights: number;
}

export interface Cut {
  nodes: CutNode[];
  links: CutLink[];
}

/** A cut of which runs are one node each; `runs` has those that are unfolded, too. */
export interface Folded extends Cut {
  runs: (CutNode & { members: CutNode[] })[];
}

/** Give for each node the one that shows in its place. Parents come before their children. */
export function shownFor(tree: TreeColumns, open: Set<number>): number[] {
  const unfolded: boolean[] = [];
  return tree.parent.reduce<number[]>((shown, parent, n) => {
    const visible = parent < 0 || unfolded[parent];
    unfolded[n] = visible && open.has(n);
    shown[n] = visible ? n : shown[parent];
    return shown;
  }, []);
}

export function childrenOf(tree: TreeColumns): number[][] {
  const children: number[][] = tree.parent.map(() => []);
  tree.parent.forEach((parent, n) => parent >= 0 && children[parent].push(n));
  return children;
}

/** Compose the layers among siblings to columns: an open node is as wide as what shows inside it. */
export function columnsOf(tree: TreeColumns, open: Set<number>): number[] {
  const children = childrenOf(tree);
  const width: number[] = [];
  const begins: number[][] = [];
  for (let n = tree.parent.length - 1; n >= 0; n--) {
    if (!open.has(n) || !children[n].length) {
      width[n] = 1;
      continue;
    }
    const layers: number[] = [];
    for (const c of children[n]) layers[tree.layer[c]] = Math.max(layers[tree.layer[c]] ?? 1, width[c]);
    begins[n] = [];
    width[n] = 0;
    for (let layer = 0; layer < layers.length; layer++) {
      begins[n][layer] = width[n];
      width[n] += layers[layer] ?? 0;
    }
  }
  const column = [0];
  for (let n = 1; n < tree.parent.length; n++) {
    const parent = tree.parent[n];
    column[n] = column[parent] + (begins[parent]?.[tree.layer[n]] ?? 0);
  }
  return column;
}

export function cutAt(graph: Graph, flow: FlowColumns, open: Set<number>, openGroups: Set<number>): Cut {
  const ofCall = new Map<number, number>();
  graph.modules.item.forEach((item, n) => item >= 0 && ofCall.set(item, n));
  const ofParameter = new Map<number, number>();
  graph.groups.item.forEach((item, n) => item >= 0 && ofParameter.set(item, n));
  const [modules, groups] = [shownFor(graph.modules, open), shownFor(graph.groups, openGroups)];
  const ids = new Map<number, string>();
  const idOf = (end: number) => {
    const known = ids.get(end);
    if (known !== undefined) return known;
    const id = end < 0 ? `p${groups[ofParameter.get(-1 - end)!]}` : `m${modules[ofCall.get(end)!]}`;
    ids.set(end, id);
    return id;
  };

  const from = new Map<string, Map<string, CutLink>>();
  const links: CutLink[] = [];
  const add = (source: string, target: string, paths: number, weights: number) => {
    if (source === target) return;
    const to = from.get(source) ?? new Map<string, CutLink>();
    let link = to.get(target);
    if (!link) {
      link = { source, target, paths: 0, weights: 0 };
      from.set(source, to.set(target, link));
      links.push(link);
    }
    link.paths += paths;
    link.weights += weights;
  };
  flow.source.forEach((source, i) => add(idOf(source), idOf(flow.target[i]), flow.paths[i], flow.weights[i]));
  const last = graph.calls.number[graph.calls.number.length - 1];
  if (flow.total) add(idOf(last), "loss", flow.total, flow.weight);
  for (const [source, target] of passedBy(graph, links, idOf)) add(source, target, 0, 0);
  return { nodes: nodesOf(graph, links, open), links };
}

/** Ways that go on from what some paths cross, and that none of them takes. */
function passedBy(graph: Graph, crossed: CutLink[], idOf: (end: number) => string): [string, string][] {
  const after = new Map<string, Set<string>>();
  graph.links?.source.forEach((source, i) => {
    const id = idOf(source);
    after.set(id, (after.get(id) ?? new Set()).add(idOf(graph.links!.target[i])));
  });
  const reached = new Set(crossed.map((link) => link.target));
  const out: [string, string][] = [];
  for (const id of reached) {
    for (const target of after.get(id) ?? []) {
      reached.add(target);
      out.push([id, target]);
    }
  }
  return out;
}

function nodesOf(graph: Graph, links: CutLink[], open: Set<number>): CutNode[] {
  const column = columnsOf(graph.modules, open);
  const nodes = new Map<string, CutNode>();
  for (const id of links.flatMap((link) => [link.source, link.target])) {
    if (!nodes.has(id)) nodes.set(id, describe(graph, id, column));
  }
  for (const link of links) {
    const [source, target] = [nodes.get(link.source)!, nodes.get(link.target)!];
    target.paths += link.paths;
    target.weights += link.weights;
    if (source.tree === "groups") {
      source.paths += link.paths;
      source.weights += link.weights;
    }
  }
  const all = [...nodes.values()];
  compress(all, links);
  return all;
}

function describe(graph: Graph, id: string, column: number[]): CutNode {
  const zero = { paths: 0, weights: 0 };
  if (id === "loss") return { id, tree: "loss", number: -1, label: "loss", name: "loss", kind: "loss", column: 0, ...zero };
  const number = Number(id.slice(1));
  const tree = id[0] === "m" ? "modules" : "groups";
  const { label, name, kind } = graph[tree];
  const at = tree === "modules" ? column[number] : 0;
  return { id, tree, number, label: label[number], name: name[number], kind: kind[number], column: at, ...zero };
}

/** Put each run of parts that have one way in and one way out into one, but for those whose first part is unfolded. */
export function foldRuns(cut: Cut, unfolded: Set<number>): Folded {
  const into = groupedBy(cut.links, (link) => link.target);
  const out = groupedBy(cut.links, (link) => link.source);
  const byId = new Map(cut.nodes.map((node) => [node.id, node]));
  const next = (node: CutNode): CutNode | undefined => {
    const links = out.get(node.id) ?? [];
    const after = byId.get(links[0]?.target);
    return links.length === 1 && after?.tree === "modules" && into.get(after.id)!.length === 1 ? after : undefined;
  };
  const modules = cut.nodes.filter((node) => node.tree === "modules");
  const inner = new Set(modules.map((node) => next(node)?.id));
  const runs: Folded["runs"] = [];
  for (const first of modules.filter((node) => !inner.has(node.id) && next(node))) {
    const members = [first];
    for (let at = next(first); at; at = next(at)) members.push(at);
    const last = members[members.length - 1];
    const text = (key: "label" | "name") => `${first[key] || first.label} … ${last[key] || last.label}`;
    runs.push({ ...first, id: `r${first.number}`, kind: "run", label: text("label"), name: text("name"), members });
  }
  const home = new Map(runs.flatMap((run) => (unfolded.has(run.number) ? [] : run.members.map((m) => [m.id, run] as const))));
  const nodes = [...new Set(cut.nodes.map((node) => home.get(node.id) ?? { ...node }))];
  const ends = cut.links.map((l) => ({ ...l, source: home.get(l.source)?.id ?? l.source, target: home.get(l.target)?.id ?? l.target }));
  const links = ends.filter((l) => l.source !== l.target);
  compress(nodes, links);
  return { nodes, links, runs };
}

function groupedBy<T>(all: T[], key: (one: T) => string): Map<string, T[]> {
  const out = new Map<string, T[]>();
  for (const one of all) out.set(key(one), [...(out.get(key(one)) ?? []), one]);
  return out;
}

/** Leave no column empty; parameters stand right before where they are first used, the loss at the end. */
function compress(nodes: CutNode[], links: CutLink[]): void {
  const used = [...new Set(nodes.filter((n) => n.tree === "modules").map((n) => n.column))].sort((a, b) => a - b);
  const byId = new Map(nodes.map((n) => [n.id, n]));
  for (const node of nodes) if (node.tree === "modules") node.column = used.indexOf(node.column) + 1;
  for (const node of nodes) {
    if (node.tree === "loss") node.column = used.length + 1;
    if (node.tree === "groups") {
      const targets = links.filter((l) => l.source === node.id).map((l) => byId.get(l.target)!.column);
      node.column = Math.min(...targets) - 1;
    }
  }
  const first = Math.min(...nodes.map((n) => n.column));
  for (const node of nodes) node.column -= first;
}

const MOST_SHOWN = 24;
const ALL = 0.999; // of the paths: a part that they have no choice about
const SOME = 0.01;

/** Open what all paths cross and inside which they part or could, the earliest first, as long as the picture stays readable. */
export function openWherePathsPart(
  graph: Graph, flow: FlowColumns | undefined, joins: number[] = [], begun: Iterable<number> = graph.modules.open, within?: number,
): Set<number> {
  const open = new Set(begun);
  if (!flow?.total) return open;
  const children = childrenOf(graph.modules);
  const groups = new Set(graph.groups.open);
  let cut = cutAt(graph, flow, open, groups);
  const inside = (n: number) => within === undefined || aboveOf(graph.modules, n).includes(within);
  for (const parts of [whereTheyPart(graph, flow), foldersOf(graph, new Set(joins))]) {
    for (;;) {
      const next = cut.nodes
        .filter((n) => n.tree === "modules" && children[n.number].length && parts.has(n.number) && inside(n.number))
        .filter((n) => n.paths >= ALL * flow.total)
        .sort((a, b) => a.column - b.column)
        .find((n) => {
          const opened = cutAt(graph, flow, new Set([...open, n.number]), groups);
          const fits = foldRuns(opened, new Set()).nodes.length <= MOST_SHOWN;
          if (fits) cut = opened;
          return fits;
        });
      if (!next) break;
      open.add(next.number);
    }
  }
  return open;
}

/** A node and what it is in, up to the root. */
export function aboveOf(tree: TreeColumns, n: number): number[] {
  const out: number[] = [];
  for (let at = n; at >= 0; at = tree.parent[at]) out.push(at);
  return out;
}

/** Folders with a call inside that some paths cross and others do not. */
function whereTheyPart(graph: Graph, flow: FlowColumns): Set<number> {
  const through = new Map<number, number>();
  flow.target.forEach((call, i) => through.set(call, (through.get(call) ?? 0) + flow.paths[i]));
  const some = [...through].filter(([, paths]) => paths >= SOME * flow.total && paths <= (1 - SOME) * flow.total);
  return foldersOf(graph, new Set(some.map(([call]) => call)));
}

/** What calls are in. */
function foldersOf(graph: Graph, calls: Set<number>): Set<number> {
  const { item, parent } = graph.modules;
  return new Set(item.flatMap((call, n) => (call >= 0 && calls.has(call) ? aboveOf(graph.modules, parent[n]) : [])));
}

/** log2 of the mean weight from the palest ribbon to the strongest, the same in all pictures of a file. */
export function rangeOf(flows: FlowColumns[]): [low: number, high: number] {
  const levels: number[] = [];
  for (const flow of flows) {
    flow.paths.forEach((paths, i) => {
      if (flow.unit_log2 !== null && paths >= 0.001 * flow.total && flow.weights[i] > 0) {
        levels.push(flow.unit_log2 + Math.log2(flow.weights[i] / paths));
      }
    });
  }
  const high = levels.reduce((a, b) => Math.max(a, b), -Infinity);
  return [levels.reduce((a, b) => Math.min(a, b), high - LEAST_RANGE), high]; // no strong colours for no difference
}

const LEAST_RANGE = 3;

/** Links that go around what is between: the names of what they leave out, by link. */
export function skipsOf(cut: Cut): Map<CutLink, CutNode[]> {
  const column = new Map(cut.nodes.map((n) => [n.id, n.column]));
  const reach = (start: string, from: "source" | "target", to: "source" | "target", within: (id: string) => boolean) => {
    const seen = new Set([start]);
    for (const id of seen) for (const l of cut.links) if (l[from] === id && within(l[to])) seen.add(l[to]);
    return seen;
  };
  const out = new Map<CutLink, CutNode[]>();
  for (const link of cut.links) {
    const [begin, end] = [column.get(link.source)!, column.get(link.target)!];
    if (end - begin < 2 || link.source[0] === "p") continue;
    const within = (id: string) => column.get(id)! > begin && column.get(id)! < end;
    const after = reach(link.source, "source", "target", within);
    const before = reach(link.target, "target", "source", within);
    const around = cut.nodes.filter((n) => within(n.id) && after.has(n.id) && before.has(n.id)).sort((a, b) => a.column - b.column);
    if (around.length) out.set(link, around);
  }
  return out;
}

/** What one flow is called in the menus. */
export function flowOf(flows: FlowColumns[], group: string, kind: string): FlowColumns | undefined {
  return flows.find((f) => f.of === group && f.kind === kind) ?? flows.find((f) => f.kind === kind);
}
