// Place a cut with d3-sankey. A link over several columns gets an unseen node in each, so that it goes around what is
// between and not underneath.

import { sankey } from "d3-sankey";
import type { Cut, CutLink, CutNode } from "./cut";

export interface Placed {
  nodes: (CutNode & { x0: number; x1: number; y0: number; y1: number })[];
  links: (CutLink & { width: number; d: string; middle: [number, number] })[];
  height: number;
  width: number;
}

interface Point {
  id: string;
  column: number;
  node?: CutNode;
  x0?: number;
  x1?: number;
  y0?: number;
  y1?: number;
}

interface Piece {
  source: string | Point;
  target: string | Point;
  value: number;
  of: number;
  y0?: number;
  y1?: number;
  width?: number;
}

const NODE = 12;
const PADDING = 34; // a part's name and figure, and the least that is seen of the part above
const TOP = 26;

export function place(cut: Cut, weigh: (link: CutLink) => number, room: number): Placed {
  const shown = cut.links;
  const total = Math.max(...cut.nodes.filter((n) => n.tree === "loss").map((n) => inflow(n.id, shown, weigh)), 1e-300);
  const [points, pieces] = dissect(cut, shown, (link) => Math.max(weigh(link) / total, 1e-4));
  const columns = Math.max(...points.map((p) => p.column)) + 1;
  const crowd = Math.max(...Array.from({ length: columns }, (_, c) => points.filter((p) => p.column === c).length));
  const width = Math.max(room, columns * 104 + 60); // room for a short name above each
  const height = Math.min(900, Math.max(220, 170 + crowd * (PADDING + 10)));
  const last = 64;
  const graph = sankey<Point, Piece>()
    .nodeId((p) => p.id)
    .nodeAlign((p) => (p as Point).column)
    .nodeWidth(NODE)
    .nodePadding(PADDING)
    .iterations(32)
    .extent([[4, TOP], [width - last, height - 10]])({ nodes: points, links: pieces as never });
  const nodes = graph.nodes.filter((p) => p.node).map((p) => ({ ...p.node!, x0: p.x0!, x1: p.x1!, y0: p.y0!, y1: p.y1! }));
  const links = shown.map((link, i) => {
    const chain = (graph.links as unknown as Piece[]).filter((piece) => piece.of === i);
    return { ...link, width: Math.max(1, chain[0].width ?? 1), ...route(chain) };
  });
  return { nodes, links, height, width };
}

function inflow(id: string, links: CutLink[], weigh: (link: CutLink) => number): number {
  return links.filter((l) => l.target === id).reduce((sum, l) => sum + weigh(l), 0);
}

function dissect(cut: Cut, links: CutLink[], value: (link: CutLink) => number): [Point[], Piece[]] {
  const used = new Set(links.flatMap((l) => [l.source, l.target]));
  const points: Point[] = cut.nodes.filter((n) => used.has(n.id)).map((node) => ({ id: node.id, column: node.column, node }));
  const at = new Map(points.map((p) => [p.id, p.column]));
  const pieces: Piece[] = [];
  links.forEach((link, of) => {
    let before = link.source;
    for (let column = at.get(link.source)! + 1; column < at.get(link.target)!; column++) {
      const id = `${of}@${column}`;
      points.push({ id, column });
      pieces.push({ source: before, target: id, value: value(link), of });
      before = id;
    }
    pieces.push({ source: before, target: link.target, value: value(link), of });
  });
  return [points, pieces];
}

function route(chain: Piece[]): { d: string; middle: [number, number] } {
  const parts: string[] = [];
  let middle: [number, number] = [0, 0];
  chain.forEach((piece, i) => {
    const [x0, x1] = [(piece.source as Point).x1!, (piece.target as Point).x0!];
    const half = (x0 + x1) / 2;
    parts.push(`${i ? "L" : "M"}${x0},${piece.y0}C${half},${piece.y0} ${half},${piece.y1} ${x1},${piece.y1}`);
    if (i === Math.floor((chain.length - 1) / 2)) middle = chain.length % 2 ? [half, (piece.y0! + piece.y1!) / 2] : [x1, piece.y1!];
  });
  return { d: parts.join(""), middle };
}
