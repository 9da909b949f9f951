// Repeated layers, of which one is open at a time: the others fold to what lies before and behind it.

import { aboveOf, childrenOf, openWherePathsPart } from "./cut";
import type { FlowColumns, Graph } from "./data";

const LEAST = 3;

export interface Layers {
  pattern: string;
  members: number[]; // nodes of the tree, in the order in which they run
}

const patternOf = (name: string) => name.replace(/:\d+$/, "").replace(/\d+/g, "*");

/** The most numerous parts of one name, but for numbers, and of the same parts inside, that run one after the other. */
export function repeatedLayers(graph: Graph): Layers | undefined {
  const { name, label, kind, layer } = graph.modules;
  const inside = childrenOf(graph.modules);
  let best: Layers | undefined;
  for (const children of inside) {
    const alike = new Map<string, number[]>();
    for (const n of children) {
      const pattern = patternOf(name[n]);
      const key = [pattern, ...inside[n].map((c) => label[c])].join(" ");
      if (kind[n] === "module" && pattern.includes("*") && inside[n].length > 1) alike.set(key, [...(alike.get(key) ?? []), n]);
    }
    for (const members of alike.values()) {
      const pattern = patternOf(name[members[0]]);
      const apart = new Set(members.map((n) => layer[n])).size === members.length;
      if (apart && members.length >= Math.max(LEAST, (best?.members.length ?? 0) + 1)) best = { pattern, members };
    }
  }
  return best;
}

/** What is open when one of the layers is, as far as paths part inside it, and no other. */
export function openLayer(graph: Graph, flow: FlowColumns | undefined, joins: number[], open: Set<number>, layers: Layers, chosen: number): Set<number> {
  const all = new Set(layers.members);
  const outside = [...open].filter((n) => !aboveOf(graph.modules, n).some((at) => all.has(at)));
  const begun = [...outside, ...aboveOf(graph.modules, layers.members[chosen])];
  return openWherePathsPart(graph, flow, joins, begun, layers.members[chosen]);
}

/** The layer that alone is open; -1 where several are, or none. */
export function layerAlone(layers: Layers, open: Set<number>): number {
  const found = layers.members.flatMap((n, i) => (open.has(n) ? [i] : []));
  return found.length === 1 ? found[0] : -1;
}
