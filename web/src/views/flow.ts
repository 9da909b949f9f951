// Where the paths run, from the parameters on the left to the loss on the right.

import { scaleLinear } from "d3-scale";
import { flowIn, legendOf, linesBefore, other } from "../against";
import { moved, strength } from "../colours";
import { aboveOf, childrenOf, cutAt, foldRuns, rangeOf, shownFor, skipsOf, type Cut, type Folded, type CutLink, type CutNode } from "../cut";
import type { FlowColumns, ReportDocument, Snapshot } from "../data";
import { button, count, el, explain, fit, fitTo, hideTip, hinted, menu, percent, plainly, power, powerOf, svg, table } from "../dom";
import { saidOfDead } from "../dead";
import { flowNow, momentNow, whoseLine } from "../examples";
import { callsOf, joinsOf, labelsOf, lanesOf, type Lanes } from "../lanes";
import { layerAlone, openLayer, repeatedLayers } from "../layers";
import { amountOf, weighted } from "../measures";
import { place, type Placed } from "../place";
import { drawnBy, section } from "../section";
import type { Store } from "../state";
import { leavesOf, stepsOf, tableOf } from "../walk";

const NAMED = 0.02; // of the paths, from which on a skip has its name beside it
const CONDENSED = "condensed";

export function flowView(data: ReportDocument, store: Store): HTMLElement | null {
  if (!data.snapshots.some((s) => s.flows.length)) return null;
  let drawn: SVGSVGElement | null = null;
  let rows: (string | number)[][] = [];
  const { root, controls, body } = section(
    "flow",
    "Flow",
    "Parameters enter from the left and the loss is on the right. A ribbon is as wide as the share of the paths, or of their weight, that runs " +
      "through it; its colour is how strong they are on average. A broken line is a way that none of them takes. Parts that they all " +
      "cross one after the other are one, “first … last”. Click a part, or press Enter on it, to open it.",
    "A path is one of very many ways, not the gradient; a wide ribbon of weak paths can matter less than a thin one.",
    { svg: () => drawn, rows: () => rows },
  );
  const opened = el("div", { class: "opened" });
  const groups = [...new Set(data.snapshots[data.snapshots.length - 1].flows.map((f) => f.of))];
  controls.append(
    menu("Paths start from", groups.map((g) => [g, g]), store.now.group, (group) => store.set({ group }), "group"),
    ...layersField(data, store),
    opened,
  );
  const range = rangeOf(data.snapshots.flatMap((s) => s.flows));
  const holder = el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Flow diagram" });
  const whose = el("div", {});
  const totals = el("p", { class: "totals", role: "status" });
  const details = el("details", {}, el("summary", {}, "Ribbons as a table"));
  body.append(whose, totals, holder, details);

  const draw = () => {
    hideTip();
    const focus = document.activeElement?.getAttribute("data-id");
    const flow = flowNow(data, store);
    const heavy = weighted(store);
    whose.replaceChildren(...[whoseLine(data, store, flow?.own ?? false)].filter((line) => line !== null));
    if (!flow) {
      totals.textContent = "";
      details.replaceChildren(el("summary", {}, "Ribbons as a table"));
      holder.replaceChildren(el("p", { class: "none" }, "Here the program ran other operators than in the last one, whose picture this is."));
      drawn = null;
      rows = [];
      return;
    }
    const cut = foldRuns(cutAt(data.graph, flow, store.now.open, store.now.openGroups), store.now.unfolded);
    nameParts(data, cut, flow, store);
    const taken = cut.links.filter((l) => l.paths > 0);
    showOpen(opened, data, store, cut.runs);
    totals.textContent = totalsOf(data, store, flow);
    rows = [
      ["from", "to", "paths", "share", "weight", "share of weight", "log2 of mean weight"],
      ...taken.map((l) => [
        nameOf(cut, l.source), nameOf(cut, l.target), l.paths, l.paths / flow.total, l.weights, l.weights / flow.weight,
        meanLog2(flow, l) ?? "",
      ]),
    ];
    details.replaceChildren(el("summary", {}, "Ribbons as a table"), tableOfLinks(cut, taken, flow, heavy));
    if (!flow.total) {
      const { example } = store.now;
      const dead =
        example === null
          ? "Dead: none of these parameters has a path to the loss, so no gradient reaches them and nothing trains them."
          : `None of these parameters has a path to the loss in example ${example}, which does not train them.`;
      const known = saidOfDead(momentNow(data, store), [store.now.group, ...namesIn(data, store.now.group)], example === null);
      holder.replaceChildren(...[dead, ...known].map((text) => el("p", { class: "none" }, text)));
      drawn = null;
      return;
    }
    const before = other(data, store);
    drawn = diagram(data, store, cut, flow, range, holder.clientWidth || 1100, before);
    drawn.dataset.open = [...store.now.open].join(" ");
    holder.replaceChildren(...[legendOf(before), drawn].filter((part) => part !== null));
    hinted(holder);
    if (focus) partNow(data, holder, focus)?.focus();
  };
  drawnBy(root, store, ["snapshot", "against", "example", "kind", "group", "measure", "open", "openGroups", "unfolded", "path"], draw);
  return root;
}

/** Parameters of a group that goes by the beginning of their names. */
function namesIn(data: ReportDocument, group: string): string[] {
  return data.graph.parameters.name.filter((name) => name === group || name.startsWith(`${group}.`));
}

/** Call operators by what they are in, and what computes where branches meet as the table of joins does. */
function nameParts(data: ReportDocument, cut: Folded, flow: FlowColumns, store: Store): void {
  const { item } = data.graph.modules;
  const shown = shownFor(data.graph.modules, store.now.open);
  const inside = new Map<number, string[]>();
  for (const [call, label] of labelsOf(joinsOf(data, store.now.snapshot, flow, store.now.example))) {
    const at = shown[item.indexOf(call)];
    inside.set(at, [...new Set([...(inside.get(at) ?? []), label])]);
  }
  for (const node of cut.nodes.flatMap((n) => [n, ...(n.members ?? [])])) {
    if (node.tree === "modules" && node.kind === "module" && !node.members && node.name.length <= WHOLE) node.label = node.name;
    if (node.tree !== "modules" || node.kind === "module" || node.members) continue;
    const [found, home, own] = [inside.get(node.number), moduleAbove(data, node.number), node.label.replace(/_$/, "")];
    if (node.kind === "operator" || node.kind === "operators") node.name = `${home} ${own}`.trim();
    if (!found) {
      if (node.kind === "operator") node.label = `${tail(home)} ${own}`.trim();
      continue;
    }
    node.meets = true;
    const [first, last] = [found[0], found[found.length - 1]];
    const numbered = last.startsWith("#"); // a number among those of the whole program, which says nothing of where
    if (node.kind === "operator") node.name = numbered ? `${node.name} ${last}` : `${last} ${own}`;
    node.label = node.kind !== "operator" ? [...new Set([tail(first), tail(last)])].join(" – ") : numbered ? `${tail(home)} ${own} ${last}`.trim() : `${tail(last)} ${own}`;
  }
  tellApart(cut.nodes.flatMap((n) => (n.tree === "modules" ? n.members ?? [n] : [])));
  for (const run of cut.nodes.filter((n) => n.members)) run.name = [...new Set([run.members![0].name, run.members![run.members!.length - 1].name])].join(" … ");
  for (const run of [...cut.runs, ...cut.nodes]) if (run.members) run.label = [...new Set(endsOf(run as { members: CutNode[] }))].join(" … ");
}

/** The module, or the call of it, that an operator is in. */
function moduleAbove(data: ReportDocument, number: number): string {
  const { kind, name } = data.graph.modules;
  const at = aboveOf(data.graph.modules, number).slice(1).find((n) => kind[n] === "module");
  return at === undefined ? "" : name[at];
}

/** Number what would have one name. */
function tellApart(nodes: CutNode[]): void {
  const same = new Map<string, CutNode[]>();
  for (const node of nodes) same.set(node.name || node.label, [...(same.get(node.name || node.label) ?? []), node]);
  for (const alike of same.values()) {
    if (alike.length < 2) continue;
    [...alike].sort((a, b) => a.number - b.number).forEach((node, i) => {
      node.name = `${node.name || node.label} ${i + 1}`;
      node.label = `${node.label} ${i + 1}`;
    });
  }
}

/** The first and the last part of a run that say something: modules, and where branches meet, if it has any. */
function endsOf(run: { members: CutNode[] }): [string, string] {
  const telling = run.members.filter((m) => m.kind === "module" || m.meets);
  const named = telling.length ? telling : run.members;
  return [named[0].label, named[named.length - 1].label];
}

const SHORT = 14;
const WHOLE = 12; // letters of a module's name that stand as they are, so that an opened part shows what it is in

/** The end of a dotted name that is long. */
function tail(name: string): string {
  const parts = name.split(".");
  while (parts.length > 1 && parts.join(".").length > SHORT) parts.shift();
  return parts.join(".");
}

/** A label in so many pixels; a run's is that of its first part and of its last. */
function labelIn(node: CutNode, room: number): string {
  const ends = node.label.split(" … ");
  if (!node.members || ends.length < 2) return fitTo(node.label, room);
  const whole = fitTo(ends.join("…"), room);
  if (whole === ends.join("…")) return whole;
  const last = fitTo(ends[1], room / 2 - 4);
  return `${fitTo(ends[0], Math.max(room / 2 - 4, room - 8 - 7 * last.length))}…${last}`.replace("……", "…");
}

/** What shows a part that had the focus, or the first of what it has become. */
function partNow(data: ReportDocument, holder: HTMLElement, id: string): SVGElement | undefined {
  const shown = [...holder.querySelectorAll<SVGElement>(".part")];
  const same = shown.find((part) => part.dataset.id === id);
  const [tree, number] = [id[0] === "p" ? data.graph.groups : data.graph.modules, Number(id.slice(1))];
  const inside = (part: SVGElement) => (part.dataset.id![0] === "p") === (id[0] === "p") && aboveOf(tree, Number(part.dataset.id!.slice(1))).includes(number);
  return same ?? shown.filter((part) => part.dataset.id !== "loss").find(inside);
}

/** A slider over repeated layers, of which it opens one; there is none where no layers are repeated. */
function layersField(data: ReportDocument, store: Store): HTMLElement[] {
  const layers = repeatedLayers(data.graph);
  if (!layers) return [];
  const input = el("input", { type: "range", id: "layer", min: -1, max: layers.members.length - 1, step: 1 });
  const shown = el("output", { for: "layer" });
  input.addEventListener("input", () => {
    const { now, first } = store;
    const flow = flowNow(data, store);
    const joins = callsOf(joinsOf(data, now.snapshot, flow, now.example));
    const chosen = Number(input.value);
    store.set({ unfolded: first.unfolded, open: chosen < 0 ? first.open : openLayer(data.graph, flow, joins, now.open, layers, chosen) });
  });
  store.watch(["open"], () => {
    const alone = layerAlone(layers, store.now.open);
    input.value = String(alone);
    shown.textContent = alone < 0 ? "as at first" : data.graph.modules.name[layers.members[alone]];
    input.setAttribute("aria-valuetext", shown.textContent);
  });
  return [el("label", { class: "field", for: "layer" }, el("span", {}, `Open one of ${layers.pattern}`), input, shown)];
}

function totalsOf(data: ReportDocument, store: Store, flow: FlowColumns): string {
  const { step } = data.snapshots[store.now.snapshot];
  const { path } = store.now;
  const elsewhere = path !== null && !leavesOf(flow).has(path.leaf) && flow.total > 0;
  const said = [
    `${count(flow.total)} ${flow.kind} paths${flow.own ? ` of example ${store.now.example}` : store.now.example === null ? "" : " of all examples"} reach the loss${step === null ? "" : ` at step ${step}`}.`,
    !flow.total ? "" : `Widths and percentages are of ${weighted(store) ? "the paths’ weight" : "the number of paths"}${store.now.measure === "along" ? ": parts of the gradient are known of joins only" : ""}.`,
    elsewhere ? `The chosen path, from ${data.graph.parameters.name[path.leaf]}, is none of them.` : "",
  ];
  return said.filter(Boolean).join(" ");
}

function nameOf(cut: Cut, id: string): string {
  const node = cut.nodes.find((n) => n.id === id)!;
  return node.tree === "groups" ? `parameters ${node.name}` : node.name || node.label;
}

/** log2 of the mean weight of the paths in a ribbon. */
function meanLog2(flow: FlowColumns, link: { paths: number; weights: number }): number | null {
  return flow.unit_log2 === null || !link.weights ? null : flow.unit_log2 + Math.log2(link.weights / link.paths);
}

function tableOfLinks(cut: Cut, links: CutLink[], flow: FlowColumns, heavy: boolean): HTMLElement {
  const sorted = [...links].sort((a, b) => amountOf(heavy, b) - amountOf(heavy, a));
  const rows = sorted.map((l) => [
    nameOf(cut, l.source), nameOf(cut, l.target), count(l.paths), percent(l.paths / flow.total),
    percent(l.weights / flow.weight), powerOf(meanLog2(flow, l)),
  ]);
  return table(["from", "to", "paths", "share of paths", "share of weight", "mean strength"], rows, [2, 3, 4, 5]);
}

/** A chip for every open part, to close it again. */
function showOpen(holder: HTMLElement, data: ReportDocument, store: Store, runs: CutNode[]): void {
  const chips = runs
    .filter((run) => store.now.unfolded.has(run.number))
    .map((run) => button(`${fit(run.label, 32)} ×`, () => close(store, "unfolded", run.number), { class: "chip", "aria-label": `Fold ${run.name}` }));
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
  const { open, openGroups, unfolded } = store.first;
  const reset = button("Fold as at first", () => store.set({ open, openGroups, unfolded }), { class: "plain" });
  const moved = (["open", "openGroups", "unfolded"] as const).some((key) => {
    const before = store.first[key];
    return before.size !== store.now[key].size || [...before].some((n) => !store.now[key].has(n));
  });
  const was = holder.querySelector("details")?.open ?? false;
  const list = el("details", { open: was }, el("summary", {}, `${chips.length} open part${chips.length === 1 ? "" : "s"}`), el("div", { class: "chips" }, ...chips));
  holder.replaceChildren(...(chips.length ? [list] : []), ...(moved ? [reset] : []));
}

/** The flow that a page opens with: the last moment's, of the first group that has a path. */
export function firstFlow(data: ReportDocument): FlowColumns | undefined {
  const { flows } = data.snapshots[data.snapshots.length - 1];
  return flows.find((flow) => flow.total) ?? flows[0];
}

function close(store: Store, key: "open" | "openGroups" | "unfolded", n: number): void {
  const rest = new Set(store.now[key]);
  rest.delete(n);
  store.set({ [key]: rest });
}

function canOpen(data: ReportDocument, node: CutNode): boolean {
  return node.members !== undefined || node.tree !== "loss" && node.kind !== CONDENSED && data.graph[node.tree].parent.includes(node.number);
}

function toggle(data: ReportDocument, store: Store, node: CutNode): void {
  if (node.tree === "loss" || !canOpen(data, node)) return;
  const key = node.members ? "unfolded" : node.tree === "modules" ? "open" : "openGroups";
  store.set({ [key]: new Set([...store.now[key], node.number]) });
}

function diagram(data: ReportDocument, store: Store, cut: Cut, flow: FlowColumns, range: [number, number], room: number, before?: Snapshot): SVGSVGElement {
  const heavy = weighted(store);
  const weigh = (l: CutLink) => amountOf(heavy, l);
  const placed = place(cut, weigh, room);
  const [low, high] = range;
  const scale = scaleLinear([low, high], [0, 1]).clamp(true);
  const height = placed.height + Math.max(46, keysAt(placed.width) + 34);
  const out = svg("svg", {
    viewBox: `0 0 ${placed.width} ${height}`, width: placed.width, height, class: "flow", "aria-label": "Flow of paths",
  });
  const skips = skipsOf(cut);
  const lanes = lanesIn(data, store, cut, flow);
  out.append(
    ribbons(placed, cut, flow, heavy, scale, skips, before && { before, shares: sharesIn(data, store, cut, flow, before) }),
    lit(data, store, placed, flow), names(placed, cut, flow, heavy, skips),
    parts(data, store, placed, flow, heavy, lanes), legend(placed, low, high, before === undefined),
  );
  return out;
}

/** Heads and experts, by the part in which they alone meet. */
function lanesIn(data: ReportDocument, store: Store, cut: Cut, flow: FlowColumns): Map<string, LanesIn> {
  const { item } = data.graph.modules;
  const shown = shownFor(data.graph.modules, store.now.open);
  const home = new Map(cut.nodes.flatMap((node) => (node.members ?? [node]).map((m) => [m.id, node.id] as const)));
  const out = new Map<string, LanesIn[]>();
  for (const [call, { lanes, come }] of lanesOf(joinsOf(data, store.now.snapshot, flow, store.now.example), flow, weighted(store))) {
    const [at, id] = [item.indexOf(call), home.get(`m${shown[item.indexOf(call)]}`)];
    if (id) out.set(id, [...(out.get(id) ?? []), { lanes, come, through: moduleAbove(data, at) }]);
  }
  return new Map([...out].filter(([, found]) => found.length === 1).map(([id, [lanes]]) => [id, lanes]));
}

type LanesIn = Lanes & { through: string };

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
function names(placed: Placed, cut: Cut, flow: FlowColumns, heavy: boolean, skips: Skips): SVGGElement {
  const group = svg("g", { class: "skips", "aria-hidden": "true" });
  const column = columnWidthOf(placed);
  const boxes = placed.nodes.flatMap((n) => [
    { x0: n.x0 - 4, x1: n.x0 + column, y0: n.y0 - 27, y1: n.y0 },
    { x0: n.x0 - 4, x1: n.x1 + 4, y0: n.y0, y1: n.y1 + 2 },
  ]);
  for (const link of [...placed.links].sort((a, b) => b.width - a.width)) {
    const text = fit(around(skips, cut, link), 28);
    if (!text || shareOf(flow, heavy, link) < NAMED) continue;
    const x = link.middle[0];
    const y = link.middle[1] - Math.min(0.25 * link.width, 40) - (link.width < 40 ? 9 : 0); // not where the chosen path runs
    const box = { x0: x - 3.3 * text.length, x1: x + 3.3 * text.length, y0: y - 8, y1: y + 6 };
    if (box.x0 < 0 || box.x1 > placed.width || boxes.some((t) => t.x0 < box.x1 && box.x0 < t.x1 && t.y0 < box.y1 && box.y0 < t.y1)) continue;
    boxes.push(box);
    group.append(svg("text", { x, y: y + 4, "text-anchor": "middle" }, text));
  }
  return group;
}

type Shares = Map<string, [number, number]>; // of paths and of their weight, by the ends of a ribbon

/** How wide the same ribbons are at another moment. */
function sharesIn(data: ReportDocument, store: Store, cut: Cut, flow: FlowColumns, before: Snapshot): Shares | undefined {
  const then = flowIn(before, flow);
  if (!then?.total) return undefined;
  const home = new Map(cut.nodes.flatMap((node) => (node.members ?? []).map((m) => [m.id, node.id] as const)));
  const out: Shares = new Map();
  for (const link of cutAt(data.graph, then, store.now.open, store.now.openGroups).links) {
    const key = `${home.get(link.source) ?? link.source} ${home.get(link.target) ?? link.target}`;
    const [paths, weights] = out.get(key) ?? [0, 0];
    out.set(key, [paths + link.paths / then.total, weights + link.weights / then.weight]);
  }
  return out;
}

/** The part of a flow's paths, or of their weight, that something is. */
function shareOf(flow: FlowColumns, heavy: boolean, of: { paths: number; weights: number }): number {
  return amountOf(heavy, of) / (heavy ? flow.weight : flow.total);
}

function ribbons(
  placed: Placed, cut: Cut, flow: FlowColumns, heavy: boolean, scale: Scale, skips: Skips, then?: { before: Snapshot; shares: Shares | undefined },
): SVGGElement {
  const group = svg("g", { class: "ribbons" });
  for (const link of [...placed.links].sort((a, b) => Number(a.paths > 0) - Number(b.paths > 0) || b.width - a.width)) {
    const log2 = meanLog2(flow, link);
    const share = shareOf(flow, heavy, link);
    const was = then?.shares && (then.shares.get(`${link.source} ${link.target}`)?.[heavy ? 1 : 0] ?? 0);
    const tint = moved(was === undefined ? 0 : share - was);
    const path = svg("path", {
      d: link.d, "stroke-width": link.width, "data-source": link.source, "data-target": link.target,
      class: [link.paths ? "" : "idle", then ? tint.look : ""].filter(Boolean).join(" ") || null,
      stroke: then || !link.paths ? null : strength(log2 === null ? 0 : scale(log2)),
      style: then ? `stroke-opacity: ${0.25 + 1.6 * tint.strength}` : null,
      "data-paths": link.paths, "data-difference": was === undefined ? null : share - was,
    });
    explain(path, () => [
      [`${nameOf(cut, link.source)} → ${nameOf(cut, link.target)}`, around(skips, cut, link)].filter(Boolean).join(", "),
      ...amountsOf(flow, heavy, link),
      `mean strength ${power(log2)} (${plainly(log2)})`,
      ...linesBefore(then?.before, was, share),
    ]);
    group.append(path);
  }
  return group;
}

/** How many paths, and how much of their weight: what the picture shows comes first. */
function amountsOf(flow: FlowColumns, heavy: boolean, of: { paths: number; weights: number }): string[] {
  const lines = [`${count(of.paths)} of ${count(flow.total)} paths: ${percent(of.paths / flow.total)}`, `${percent(of.weights / flow.weight)} of their weight`];
  return heavy ? [`${percent(of.weights / flow.weight)} of the paths’ weight`, lines[0]] : lines;
}

function parts(data: ReportDocument, store: Store, placed: Placed, flow: FlowColumns, heavy: boolean, lanes: Map<string, LanesIn>): SVGGElement {
  const group = svg("g", { class: "parts" });
  const columnWidth = columnWidthOf(placed);
  for (const node of placed.nodes) {
    const opens = canOpen(data, node);
    const share = percent(shareOf(flow, heavy, node));
    const before = node.tree === "groups" ? "θ " : "";
    const label = before + labelIn(node, node.tree === "loss" ? 60 : columnWidth - (opens ? 20 : 4) - 13 * before.length / 2);
    const part = svg(
      "g",
      {
        class: `part ${node.tree} ${node.kind}${opens ? " opens" : ""}${node.paths ? "" : " idle"}`, tabindex: 0, role: opens ? "button" : "img",
        "aria-expanded": opens ? "false" : null, "data-id": node.id, "data-paths": node.paths, "data-name": node.name,
        "data-members": node.members?.map((m) => m.id).join(" "),
        "aria-label": `${before ? "parameters " : ""}${node.name || node.label}: ${share} of ${heavy ? "the paths’ weight" : "paths"}${opens ? (node.members ? `; ${node.members.length} parts, unfolds` : "; opens") : ""}`,
      },
      svg("rect", { x: node.x0, y: node.y0, width: node.x1 - node.x0, height: heightOf(node), rx: 2 }),
      ...stripes(node, lanes.get(node.id), amountOf(heavy, node)),
      svg("text", { x: node.x0, y: node.y0 - 15, class: "name" }, opens ? svg("tspan", { class: "more" }, "▸ ") : null, label),
      svg("text", { x: node.x0, y: node.y0 - 4, class: "share" }, share),
    );
    explain(part, () => [...linesAbout(data, node, flow, heavy, opens), ...linesOfLanes(flow, heavy, lanes.get(node.id))]);
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

const SEEN = 8; // pixels of a part that few paths cross

function heightOf(node: { y0: number; y1: number }): number {
  return Math.max(SEEN, node.y1 - node.y0);
}

const LANE = 12; // pixels, from which on a lane has its name beside it

function linesOfLanes(flow: FlowColumns, heavy: boolean, found: LanesIn | undefined): string[] {
  if (!found) return [];
  const come = percent(found.come / (heavy ? flow.weight : flow.total));
  return [`of the ${come} through ${found.through || "its branches"}:`, ...found.lanes.map((lane) => `${lane.name}: ${percent(lane.share)}`)];
}

/** A part's lanes, as high as what comes by each of all that crosses the part, named where there is room. */
function stripes(node: { x0: number; x1: number; y0: number; y1: number }, found: LanesIn | undefined, all: number): SVGElement[] {
  const filled = found && all ? Math.min(1, found.come / all) : 0;
  let y = node.y0;
  return (found?.lanes ?? []).flatMap(({ name, share }, i) => {
    const [top, height] = [y, share * filled * heightOf(node)];
    y += height;
    const named = height >= LANE ? svg("text", { x: node.x1 + 4, y: top + height / 2 + 4, class: "lanename" }, name) : null;
    const stripe = svg("rect", { x: node.x0, y: top, width: node.x1 - node.x0, height, class: `lane${i % 2 ? " odd" : ""}`, "data-lane": name, "data-share": share });
    return named ? [stripe, named] : [stripe];
  });
}

function columnWidthOf(placed: Placed): number {
  const xs = [...new Set(placed.nodes.map((n) => Math.round(n.x0)))].sort((a, b) => a - b);
  return Math.min(...xs.slice(1).map((x, i) => x - xs[i]), 240);
}

function linesAbout(data: ReportDocument, node: CutNode, flow: FlowColumns, heavy: boolean, opens: boolean): string[] {
  const log2 = meanLog2(flow, node);
  const lines = [
    `${node.tree === "groups" ? "parameters " : ""}${node.name || node.label}`,
    ...amountsOf(flow, heavy, node),
    `mean strength ${power(log2)} (${plainly(log2)})`,
  ];
  if (node.members) lines.push(...membersOf(node.members));
  else if (node.tree === "modules") lines.push(...operatorsIn(data, node.number));
  if (node.kind === CONDENSED) lines.push("these call each other in turns, so they are shown as one");
  return opens ? [...lines, node.members ? "click to unfold" : "click to open"] : lines;
}

const LISTED = 8;

function membersOf(members: CutNode[]): string[] {
  const names = members.map((m) => m.label);
  const shown = names.length > LISTED ? [...names.slice(0, LISTED - 2), "…", names[names.length - 1]] : names;
  return [`${members.length} parts, one after the other: ${shown.join(", ")}`];
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

const LEGEND = 930; // pixels of a legend in one line,
const SCALE = 540; // and of its scale of colours with what that means beside it

/** How far below its scale of colours a legend's keys stand, 0 where they are beside it. */
function keysAt(width: number): number {
  return width < SCALE ? 46 : width < LEGEND ? 30 : 0;
}

function legend(placed: Placed, low: number, high: number, ramp: boolean): SVGGElement {
  const below = ramp && keysAt(placed.width) > 0;
  const group = svg("g", { class: "legend", transform: `translate(4,${placed.height + 14})` });
  const [width, parts] = [180, 30];
  for (let i = 0; ramp && i < parts; i++) {
    group.append(svg("rect", { x: (i * width) / parts, width: width / parts + 0.5, height: 8, fill: strength(i / (parts - 1)) }));
  }
  for (const [i, [kind, text]] of [["groups", "θ parameters"], ["modules", "components; ▸ opens"], ["lit", "the chosen path"]].entries()) {
    const x = [560, 670, 820][i] - (ramp && !below ? 0 : 560);
    const y = below ? keysAt(placed.width) : 0;
    group.append(svg("rect", { x, width: 10, height: 10, rx: 2, y: y - 1, class: `key ${kind}` }), svg("text", { x: x + 16, y: y + 8 }, text));
  }
  if (!ramp || !Number.isFinite(low)) return group;
  group.append(
    svg("text", { y: 22 }, power(low)),
    svg("text", { x: width, y: 22, "text-anchor": "end" }, power(high)),
    svg("text", placed.width < SCALE ? { y: 36 } : { x: width + 12, y: 8 }, "mean weight of a ribbon's paths, one scale for the file"),
  );
  return group;
}

/** The chosen path, over the ribbons that it takes. */
function lit(data: ReportDocument, store: Store, placed: Placed, flow: FlowColumns): SVGGElement {
  const group = svg("g", { class: "lit", "aria-hidden": "true" });
  const chosen = store.now.path;
  const paths = tableOf(data, store.now.snapshot, store.now.kind);
  const steps = chosen && paths ? stepsOf(paths, chosen, store.now.example) : [];
  if (!chosen || !steps.length || !leavesOf(flow).has(chosen.leaf)) return group; // else it would begin in mid-air
  const modules = shownFor(data.graph.modules, store.now.open);
  const groups = shownFor(data.graph.groups, store.now.openGroups);
  const nodeOfCall = new Map(data.graph.modules.item.map((item, n) => [item, n]));
  const leaf = data.graph.groups.item.indexOf(chosen.leaf);
  const home = new Map(placed.nodes.flatMap((node) => (node.members ?? []).map((m) => [m.id, node.id] as const)));
  const through = steps.map((s) => `m${modules[nodeOfCall.get(s.call)!]}`).map((id) => home.get(id) ?? id);
  const stops = [`p${groups[leaf]}`, ...through, "loss"];
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
