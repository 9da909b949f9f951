// Where the paths run, from the parameters on the left to the loss on the right.

import { scaleLinear } from "d3-scale";
import { strength } from "../colours";
import { childrenOf, cutAt, flowOf, rangeOf, shownFor, skipsOf, type Cut, type CutLink, type CutNode } from "../cut";
import type { FlowColumns, ReportDocument } from "../data";
import { button, count, el, explain, fit, fitTo, hideTip, menu, percent, power, svg, table } from "../dom";
import { place, type Placed } from "../place";
import { section } from "../section";
import type { Store } from "../state";
import { stepsOf, tableOf } from "../walk";

const NAMED = 0.02; // of the paths, from which on a skip has its name beside it
const CONDENSED = "condensed";

export function flowView(data: ReportDocument, store: Store): HTMLElement {
  let drawn: SVGSVGElement | null = null;
  let rows: (string | number)[][] = [];
  const { root, controls, body } = section(
    "flow",
    "Flow",
    "Parameters enter from the left and the loss is on the right. A ribbon is as wide as the share of best paths that run " +
      "through it; its colour is how strong they are on average. Click a part, or press Enter on it, to open it.",
    "A path is the strongest of very many, not the gradient; a wide ribbon of weak paths can matter less than a thin one.",
    { svg: () => drawn, rows: () => rows },
  );
  const opened = el("div", { class: "opened" });
  const groups = [...new Set(data.snapshots[data.snapshots.length - 1].flows.map((f) => f.of))];
  controls.append(
    menu("Paths start from", groups.map((g) => [g, g]), store.now.group, (group) => store.set({ group }), "group"),
    menu(
      "Width",
      [["paths", "number of paths"], ["weights", "paths by their weight"]],
      store.now.weighted ? "weights" : "paths",
      (value) => store.set({ weighted: value === "weights" }),
      "width",
    ),
    opened,
  );
  const range = rangeOf(data.snapshots.flatMap((s) => s.flows));
  const holder = el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Flow diagram" });
  const totals = el("p", { class: "totals", role: "status" });
  const details = el("details", {}, el("summary", {}, "Ribbons as a table"));
  body.append(totals, holder, details);

  const draw = () => {
    hideTip();
    const focus = document.activeElement?.getAttribute("data-id");
    const flow = flowOf(data.snapshots[store.now.snapshot].flows, store.now.group, store.now.kind);
    if (!flow) {
      totals.textContent = "";
      details.replaceChildren(el("summary", {}, "Ribbons as a table"));
      holder.replaceChildren(el("p", { class: "none" }, "At this step the program ran other operators than at the last one, whose picture this is."));
      drawn = null;
      rows = [];
      return;
    }
    const cut = cutAt(data.graph, flow, store.now.open, store.now.openGroups);
    showOpen(opened, data, store);
    totals.textContent = totalsOf(flow, data.snapshots[store.now.snapshot].step);
    rows = [
      ["from", "to", "paths", "share", "weight", "share of weight", "log2 of mean weight"],
      ...cut.links.map((l) => [
        nameOf(cut, l.source), nameOf(cut, l.target), l.paths, l.paths / flow.total, l.weights, l.weights / flow.weight,
        meanLog2(flow, l) ?? "",
      ]),
    ];
    details.replaceChildren(el("summary", {}, "Ribbons as a table"), tableOfLinks(cut, flow));
    if (!flow.total) {
      holder.replaceChildren(el("p", { class: "none" }, "None of these parameters has a path to the loss."));
      drawn = null;
      return;
    }
    drawn = diagram(data, store, cut, flow, range, holder.clientWidth || 1100);
    drawn.dataset.open = [...store.now.open].join(" ");
    holder.replaceChildren(drawn);
    if (focus) holder.querySelector<SVGElement>(`[data-id="${focus}"]`)?.focus();
  };
  store.watch(["snapshot", "kind", "group", "weighted", "open", "openGroups", "path"], draw);
  addEventListener("resize", draw);
  root.addEventListener("themechange", draw);
  return root;
}

function totalsOf(flow: FlowColumns, step: number | null): string {
  return `${count(flow.total)} ${flow.kind} paths reach the loss${step === null ? "" : ` at step ${step}`}.`;
}

function nameOf(cut: Cut, id: string): string {
  const node = cut.nodes.find((n) => n.id === id)!;
  return node.kind === "operators" || node.kind === "operator" ? `${node.label}${node.name && node.kind === "operators" ? ` (${node.name})` : ""}` : node.name || node.label;
}

/** log2 of the mean weight of the paths in a ribbon. */
function meanLog2(flow: FlowColumns, link: { paths: number; weights: number }): number | null {
  return flow.unit_log2 === null || !link.weights ? null : flow.unit_log2 + Math.log2(link.weights / link.paths);
}

function tableOfLinks(cut: Cut, flow: FlowColumns): HTMLElement {
  const sorted = [...cut.links].sort((a, b) => b.paths - a.paths);
  const rows = sorted.map((l) => [
    nameOf(cut, l.source), nameOf(cut, l.target), count(l.paths), percent(l.paths / flow.total),
    percent(l.weights / flow.weight), power(meanLog2(flow, l)),
  ]);
  return table(["from", "to", "paths", "share", "share of weight", "mean strength"], rows, [2, 3, 4, 5]);
}

/** A chip for every open part, to close it again. */
function showOpen(holder: HTMLElement, data: ReportDocument, store: Store): void {
  const chips: HTMLElement[] = [];
  for (const [key, tree] of [["openGroups", data.graph.groups], ["open", data.graph.modules]] as const) {
    for (const n of store.now[key]) {
      if (n === 0) continue;
      const shown = shownFor(tree, store.now[key])[n];
      const inside = childrenOf(tree)[n][0];
      if (shown !== n || inside === undefined) continue;
      const name = key === "openGroups" ? `parameters ${tree.name[n]}` : tree.name[n] || tree.label[n];
      chips.push(button(`${fit(name, 32)} ×`, () => close(store, key, n), { class: "chip", "aria-label": `Close ${name}` }));
    }
  }
  const { open: first, openGroups: firstGroups } = store.first;
  const reset = button("Fold as at first", () => store.set({ open: first, openGroups: firstGroups }), { class: "plain" });
  const moved = (["open", "openGroups"] as const).some((key) => {
    const before = key === "open" ? first : firstGroups;
    return before.size !== store.now[key].size || [...before].some((n) => !store.now[key].has(n));
  });
  holder.replaceChildren(...(chips.length ? [el("span", { class: "label" }, "Open:"), ...chips] : []), ...(moved ? [reset] : []));
}

/** The flow that a page opens with: the last moment's, of the first group. */
export function firstFlow(data: ReportDocument): FlowColumns | undefined {
  return data.snapshots[data.snapshots.length - 1].flows[0];
}

function close(store: Store, key: "open" | "openGroups", n: number): void {
  const rest = new Set(store.now[key]);
  rest.delete(n);
  store.set({ [key]: rest });
}

function canOpen(data: ReportDocument, node: CutNode): boolean {
  return node.tree !== "loss" && node.kind !== CONDENSED && data.graph[node.tree].parent.includes(node.number);
}

function toggle(data: ReportDocument, store: Store, node: CutNode): void {
  if (node.tree === "loss" || !canOpen(data, node)) return;
  const key = node.tree === "modules" ? "open" : "openGroups";
  store.set({ [key]: new Set([...store.now[key], node.number]) });
}

function diagram(data: ReportDocument, store: Store, cut: Cut, flow: FlowColumns, range: [number, number], room: number): SVGSVGElement {
  const weigh = (l: CutLink) => (store.now.weighted ? l.weights : l.paths);
  const placed = place(cut, weigh, room);
  const [low, high] = range;
  const scale = scaleLinear([low, high], [0, 1]).clamp(true);
  const height = placed.height + 46;
  const out = svg("svg", {
    viewBox: `0 0 ${placed.width} ${height}`, width: placed.width, height, class: "flow", "aria-label": "Flow of paths",
  });
  const skips = skipsOf(cut);
  out.append(
    ribbons(placed, cut, flow, scale, skips), lit(data, store, placed), names(placed, cut, flow, skips),
    parts(data, store, placed, flow), legend(placed, low, high),
  );
  return out;
}

type Scale = (log2: number) => number;

type Skips = Map<CutLink, CutNode[]>;

/** What a skip goes around, as a person would say it. */
function around(skips: Skips, cut: Cut, link: { source: string; target: string }): string {
  const original = cut.links.find((l) => l.source === link.source && l.target === link.target);
  const passed = original && skips.get(original);
  if (!passed) return "";
  const ends = passed.length > 1 ? `${passed[0].label} … ${passed[passed.length - 1].label}` : passed[0].label;
  return `around ${ends}`;
}

/** Skips by name, where there is room beside their ribbons. */
function names(placed: Placed, cut: Cut, flow: FlowColumns, skips: Skips): SVGGElement {
  const group = svg("g", { class: "skips", "aria-hidden": "true" });
  const taken = placed.nodes.map((n) => ({ x0: n.x0 - 4, x1: n.x0 + columnWidthOf(placed), y0: n.y0 - 27, y1: n.y1 + 2 }));
  for (const link of [...placed.links].sort((a, b) => b.width - a.width)) {
    const text = fit(around(skips, cut, link), 28);
    if (!text || link.paths < NAMED * flow.total) continue;
    const x = link.middle[0];
    const y = link.middle[1] - Math.min(0.25 * link.width, 40) - (link.width < 40 ? 9 : 0); // not where the chosen path runs
    const box = { x0: x - 3.3 * text.length, x1: x + 3.3 * text.length, y0: y - 8, y1: y + 6 };
    if (box.x0 < 0 || box.x1 > placed.width || taken.some((t) => t.x0 < box.x1 && box.x0 < t.x1 && t.y0 < box.y1 && box.y0 < t.y1)) continue;
    taken.push(box);
    group.append(svg("text", { x, y: y + 4, "text-anchor": "middle" }, text));
  }
  return group;
}

function ribbons(placed: Placed, cut: Cut, flow: FlowColumns, scale: Scale, skips: Skips): SVGGElement {
  const group = svg("g", { class: "ribbons" });
  for (const link of [...placed.links].sort((a, b) => b.width - a.width)) {
    const log2 = meanLog2(flow, link);
    const path = svg("path", {
      d: link.d, "stroke-width": link.width, stroke: strength(log2 === null ? 0 : scale(log2)),
      "data-source": link.source, "data-target": link.target, "data-paths": link.paths,
    });
    explain(path, () => [
      [`${nameOf(cut, link.source)} → ${nameOf(cut, link.target)}`, around(skips, cut, link)].filter(Boolean).join(", "),
      `${count(link.paths)} of ${count(flow.total)} paths: ${percent(link.paths / flow.total)}`,
      `${percent(link.weights / flow.weight)} of their weight`,
      `mean strength ${power(log2)}`,
    ]);
    group.append(path);
  }
  return group;
}

function parts(data: ReportDocument, store: Store, placed: Placed, flow: FlowColumns): SVGGElement {
  const group = svg("g", { class: "parts" });
  const columnWidth = columnWidthOf(placed);
  for (const node of placed.nodes) {
    const opens = canOpen(data, node);
    const share = percent(node.paths / flow.total);
    const label = fitTo(node.label, node.tree === "loss" ? 60 : columnWidth - (opens ? 20 : 4));
    const part = svg(
      "g",
      {
        class: `part ${node.tree} ${node.kind}${opens ? " opens" : ""}`, tabindex: 0, role: opens ? "button" : "img",
        "aria-expanded": opens ? "false" : null, "data-id": node.id, "data-paths": node.paths, "data-name": node.name,
        "aria-label": `${node.name || node.label}: ${share} of paths${opens ? "; opens" : ""}`,
      },
      svg("rect", { x: node.x0, y: node.y0, width: node.x1 - node.x0, height: Math.max(2, node.y1 - node.y0), rx: 2 }),
      svg("text", { x: node.x0, y: node.y0 - 15, class: "name" }, opens ? svg("tspan", { class: "more" }, "▸ ") : null, label),
      svg("text", { x: node.x0, y: node.y0 - 4, class: "share" }, share),
    );
    explain(part, () => linesAbout(data, node, flow, opens));
    if (opens) {
      part.addEventListener("click", () => toggle(data, store, node));
      part.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        toggle(data, store, node);
      });
    }
    group.append(part);
  }
  return group;
}

function columnWidthOf(placed: Placed): number {
  const xs = [...new Set(placed.nodes.map((n) => Math.round(n.x0)))].sort((a, b) => a - b);
  return Math.min(...xs.slice(1).map((x, i) => x - xs[i]), 240);
}

function linesAbout(data: ReportDocument, node: CutNode, flow: FlowColumns, opens: boolean): string[] {
  const lines = [
    node.name && node.name !== node.label ? `${node.label} (${node.name})` : node.label,
    `${count(node.paths)} of ${count(flow.total)} paths: ${percent(node.paths / flow.total)}`,
    `${percent(node.weights / flow.weight)} of their weight, mean strength ${power(meanLog2(flow, node))}`,
  ];
  if (node.tree === "modules") lines.push(...operatorsIn(data, node.number));
  if (node.kind === CONDENSED) lines.push("these call each other in turns, so they are shown as one");
  return opens ? [...lines, "click to open"] : lines;
}

function operatorsIn(data: ReportDocument, number: number): string[] {
  const { parent, item, kind } = data.graph.modules;
  const inside: number[] = [];
  item.forEach((call, n) => {
    if (call < 0) return;
    for (let at = n; at >= 0; at = parent[at]) if (at === number) inside.push(call);
  });
  const { number: numbers, operator, source } = data.graph.calls;
  if (kind[number] !== "operator") return [`${count(inside.length)} operator calls`];
  const at = numbers.indexOf(inside[0]);
  return [`${operator[at]}, call ${inside[0]}`, source[at]].filter(Boolean);
}

function legend(placed: Placed, low: number, high: number): SVGGElement {
  const group = svg("g", { class: "legend", transform: `translate(4,${placed.height + 14})` });
  const [width, parts] = [180, 30];
  for (let i = 0; i < parts; i++) {
    group.append(svg("rect", { x: (i * width) / parts, width: width / parts + 0.5, height: 8, fill: strength(i / (parts - 1)) }));
  }
  for (const [i, [kind, text]] of [["groups", "parameters"], ["modules", "components; ▸ opens"], ["lit", "the chosen path"]].entries()) {
    const x = [560, 660, 810][i];
    group.append(svg("rect", { x, width: 10, height: 10, rx: 2, y: -1, class: `key ${kind}` }), svg("text", { x: x + 16, y: 8 }, text));
  }
  if (!Number.isFinite(low)) return group;
  group.append(
    svg("text", { y: 22 }, power(low)),
    svg("text", { x: width, y: 22, "text-anchor": "end" }, power(high)),
    svg("text", { x: width + 12, y: 8 }, "mean weight of a ribbon's paths, one scale for the file"),
  );
  return group;
}

/** The chosen path, over the ribbons that it takes. */
function lit(data: ReportDocument, store: Store, placed: Placed): SVGGElement {
  const group = svg("g", { class: "lit", "aria-hidden": "true" });
  const chosen = store.now.path;
  const paths = tableOf(data, store.now.snapshot, store.now.kind);
  const steps = chosen && paths ? stepsOf(paths, chosen) : [];
  if (!chosen || !steps.length) return group;
  const modules = shownFor(data.graph.modules, store.now.open);
  const groups = shownFor(data.graph.groups, store.now.openGroups);
  const nodeOfCall = new Map(data.graph.modules.item.map((item, n) => [item, n]));
  const leaf = data.graph.groups.item.indexOf(chosen.leaf);
  const stops = [`p${groups[leaf]}`, ...steps.map((s) => `m${modules[nodeOfCall.get(s.call)!]}`), "loss"];
  const visited = stops.filter((id, i) => id !== stops[i - 1]);
  for (const id of visited) {
    const node = placed.nodes.find((n) => n.id === id);
    if (node) group.append(svg("rect", { x: node.x0 - 2, y: node.y0 - 2, width: node.x1 - node.x0 + 4, height: node.y1 - node.y0 + 4, rx: 3 }));
  }
  visited.slice(1).forEach((id, i) => {
    const link = placed.links.find((l) => l.source === visited[i] && l.target === id);
    if (link) group.append(svg("path", { d: link.d, class: "under" }), svg("path", { d: link.d }));
  });
  return group;
}
