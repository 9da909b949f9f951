// The strongest paths, a search among those that the file holds, and one path step by step.

import type { PathTable, ReportDocument } from "../data";
import { deadNow, saidOfDead } from "../dead";
import { button, el, fit, plainly, power, powerOf, significant, svg, table } from "../dom";
import { flowNow, momentNow } from "../examples";
import { pictureOfTable } from "../export";
import { section } from "../section";
import type { State, Store } from "../state";
import { leavesOf, startOf, stepsOf, tableOf, type Step } from "../walk";

const MOST = 200;

export function pathsView(data: ReportDocument, store: Store): HTMLElement | null {
  if (!data.snapshots.some((s) => Object.values(s.paths).some((table) => table.starts.leaf?.length))) return null;
  const { root, controls, body } = section(
    "paths",
    "Paths",
    "Those from the parameters chosen above, strongest first; a search looks among all that this file holds. Choose one to read it step by step: each operator it passes, the local derivative there, and the " +
      "product so far on a log scale, from the parameter down to the loss. It is lit up in the flow above, if that is of its parameter.",
    "One path is one term of the gradient's sum; others may cancel it.",
    { svg: () => pictureOfTable(titleNow(data, store), cellsNow(data, store)), rows: () => rowsNow(data, store) },
  );
  const names = el("datalist", { id: "parameters" });
  const parameter = el("input", { id: "search-parameter", list: "parameters", placeholder: "name or part of it", size: 26, spellcheck: "false", autocomplete: "off" });
  const index = el("input", { id: "search-index", placeholder: "e.g. 3, 5", size: 10, spellcheck: "false", autocomplete: "off" });
  controls.append(
    el("label", { class: "field", for: "search-parameter" }, el("span", {}, "Parameter"), parameter),
    el("label", { class: "field", for: "search-index" }, el("span", {}, "Index"), index),
    names,
  );
  const list = el("ol", { class: "pathlist", "aria-label": "Paths, strongest first" });
  const found = el("p", { class: "found", role: "status" });
  const detail = el("div", { class: "detail" });
  body.append(el("div", { class: "columns" }, el("div", { class: "side" }, found, list), detail));

  const draw = () => {
    const paths = tableOf(data, store.now.snapshot, store.now.kind);
    if (parameter.value.trim() !== store.now.search) parameter.value = store.now.search;
    if (index.value !== store.now.at) index.value = store.now.at;
    const hits = listed(data, store, store.now);
    list.replaceChildren(...hits.slice(0, MOST).map((i) => entry(data, store, paths!, i)));
    const dead = deadAmong(data, store);
    found.textContent = [summary(data, store, paths, hits.length, dead.length), deadLine(dead)].filter(Boolean).join(" ");
    if (hits.length || !paths) showDetail(data, store, detail);
    else detail.replaceChildren(...(dead.length ? saidOfDead(momentNow(data, store), dead) : ["Nothing found, so no path is shown."]).map((text) => el("p", { class: "none" }, text)));
  };
  names.append(...namesOf(data).map((name) => el("option", { value: name })));
  parameter.addEventListener("input", () => {
    const [, name, at] = parameter.value.match(LABEL) ?? [];
    store.set({ search: name ?? parameter.value.trim(), at: at ?? index.value });
  });
  index.addEventListener("input", () => store.set({ search: parameter.value.trim(), at: index.value }));
  list.addEventListener("keydown", (event) => moveFocus(list, event));
  store.watch(["snapshot", "example", "kind", "group", "path", "search", "at"], () => {
    const focus = document.activeElement?.getAttribute("data-path");
    draw();
    if (focus) list.querySelector<HTMLElement>(`[data-path="${CSS.escape(focus)}"]`)?.focus();
  });
  return root;
}

const LABEL = /^\s*(.+)\[([-\d,\s]*)\]\s*$/; // of a scalar, as the list writes it

function moveFocus(list: HTMLElement, event: KeyboardEvent): void {
  const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!move) return;
  const buttons = [...list.querySelectorAll("button")];
  const next = buttons[buttons.indexOf(document.activeElement as HTMLButtonElement) + move];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

function numbersIn(index: string): string[] {
  return index.match(/-?\d+/g) ?? [];
}

/** Which paths show: those from the chosen parameters, or what a search finds: names by part or glob, an index by its first numbers. */
export function listed(data: ReportDocument, store: Store, now: State): number[] {
  const paths = tableOf(data, now.snapshot, now.kind);
  const own = now.search || now.at.trim() ? null : leavesOf(flowNow(data, store));
  const wanted = numbersIn(now.at);
  const meant = searched(data, now.search);
  const met = new Set<string>(); // of all examples, that in which a scalar's path is strongest comes first
  const once = (key: string) => !met.has(key) && met.add(key);
  return (paths?.starts.leaf ?? [])
    .map((leaf, i) => ({ leaf, name: data.graph.parameters.name[leaf], index: paths!.starts.index![i], i }))
    .filter(({ i }) => now.example === null || paths!.starts.example?.[i] === now.example)
    .filter(({ leaf, name, index }) => (!own || own.has(leaf)) && meant(name) && wanted.every((n, k) => String(index[k]) === n))
    .filter(({ leaf, index }) => once(`${leaf} ${index}`))
    .map(({ i }) => i);
}

/** A path that is not among those that show gives way to the first of them. */
export function settled(data: ReportDocument, store: Store, now: State): Partial<State> {
  const paths = tableOf(data, now.snapshot, now.kind);
  const all = listed(data, store, now).map((i) => ({ leaf: paths!.starts.leaf![i], index: paths!.starts.index![i].join(", ") }));
  const there = now.path && all.some(({ leaf, index }) => leaf === now.path!.leaf && index === now.path!.index);
  return there || (!now.path && !all.length) ? {} : { path: all[0] ?? null };
}

/** The parameters without any path that a search means, or that are chosen where nothing is searched. */
function deadAmong(data: ReportDocument, store: Store): string[] {
  const { search, at, group } = store.now;
  const { name } = data.graph.parameters;
  const found = searched(data, search);
  const meant = (n: string) => (search ? found(n) : !at.trim() && (n === group || n.startsWith(`${group}.`)));
  return [...deadNow(data, store)].map((i) => name[i]).filter(meant);
}

function deadLine(names: string[]): string {
  const shown = names.length > 6 ? [...names.slice(0, 5), `${names.length - 5} more`] : names;
  return names.length ? `Dead: no path leads from ${shown.join(", ")} to the loss.` : "";
}

/** All names of parameters, those that shared ones have besides at the end. */
function namesOf(data: ReportDocument): string[] {
  return [...data.graph.parameters.name, ...Object.keys(data.graph.parameters.also ?? {})];
}

/** Which parameters a search means, by any of their names. */
function searched(data: ReportDocument, search: string): (name: string) => boolean {
  const glob = globOf(search);
  const others = Object.entries(data.graph.parameters.also ?? {}).filter(([further]) => glob(further));
  const meant = new Set(others.map(([, name]) => name));
  return (name) => glob(name) || meant.has(name);
}

function globOf(text: string): (name: string) => boolean {
  if (!text.includes("*")) return (name) => name.toLowerCase().includes(text.toLowerCase());
  const pattern = new RegExp(`^${text.split("*").map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&")).join(".*")}$`, "i");
  return (name) => pattern.test(name);
}

function summary(data: ReportDocument, store: Store, paths: PathTable | undefined, hits: number, dead: number): string {
  const { search, at, example } = store.now;
  const held = paths?.starts.leaf?.length ?? 0;
  const wanted = numbersIn(at);
  if (at.trim() && !wanted.length) return "An index is one number for each axis, such as 3, 5.";
  const first = data.graph.parameters.also?.[search];
  const shared = first ? `${search} is another name of ${first}. ` : "";
  if (hits) return `${shared}${hits} of ${held} paths in this file${example === null ? "" : `, of example ${example}`}${hits > MOST ? `, the first ${MOST} shown` : ""}.`;
  if (!paths) return "No paths of this step are in the file: the program ran other operators than at the last one.";
  if (!held) return "No path of non-zero weight was found.";
  if (dead) return "";
  const { name, shape: shapes } = data.graph.parameters;
  if (search && !namesOf(data).some(globOf(search))) return "No parameter of this trace has such a name: frozen ones are not among them.";
  const shape = shapes[name.indexOf(first ?? search)];
  if (shape && wanted.some((n, axis) => !(Number(n) >= 0 && Number(n) < shape[axis]))) return `${search} has no such index: its shape is (${shape.join(", ")}).`;
  const whole = shape?.length && wanted.length === shape.length;
  const ask = whole ? ` If there is one, trace.path(${JSON.stringify(first ?? search)}, (${wanted.join(", ")},)${example === null ? "" : `, example=${example}`}) in Python gives it.` : "";
  const kept = example === null ? "the strongest of all and of each parameter, and some of all strengths" : `of example ${example} its strongest, of all parameters and of each group, and others that are strongest in it`;
  return `${shared}Not among the ${held} paths that this file holds: ${kept}.${ask}`;
}

function entry(data: ReportDocument, store: Store, paths: PathTable, i: number): HTMLElement {
  const [leaf, index] = [paths.starts.leaf![i], paths.starts.index![i].join(", ")];
  const name = data.graph.parameters.name[leaf];
  const chosen = store.now.path?.leaf === leaf && store.now.path.index === index;
  const choose = el(
    "button",
    { type: "button", "aria-pressed": chosen ? "true" : "false", "data-path": `${name}[${index}]`, title: `${name}[${index}]` },
    el("span", { class: "name" }, `${fit(name, 30)}[${index}]`),
    tokenOf(paths, i),
    el("span", { class: "number" }, powerOf(paths.starts.log2![i])),
  );
  choose.addEventListener("click", () => store.set({ path: { leaf, index }, group: groupOf(data, store, leaf) }));
  return el("li", {}, choose);
}

/** The group that a chosen path is of: the one that shows, if it is of that, so that the flow lights it up. */
function groupOf(data: ReportDocument, store: Store, leaf: number): string {
  const { flows } = momentNow(data, store);
  const own = flows.filter((f) => f.kind === store.now.kind && leavesOf(f).has(leaf)).map((f) => f.of);
  return own.includes(store.now.group) || !own.length ? store.now.group : own[0];
}

/** The word at which a path begins, where there are words. */
function tokenOf(paths: PathTable, i: number): HTMLElement | null {
  const token = paths.steps.token[paths.starts.first![i]];
  return token === null || token === undefined ? null : el("q", {}, token);
}

function titleNow(data: ReportDocument, store: Store): string {
  const chosen = store.now.path;
  return chosen ? `${store.now.kind} path from ${data.graph.parameters.name[chosen.leaf]}[${chosen.index}]` : "No path chosen";
}

function stepsNow(data: ReportDocument, store: Store): Step[] {
  const paths = tableOf(data, store.now.snapshot, store.now.kind);
  return paths && store.now.path ? stepsOf(paths, store.now.path, store.now.example) : [];
}

function rowsNow(data: ReportDocument, store: Store): (string | number | null)[][] {
  const { calls } = data.graph;
  return [
    ["module call", "operator", "source", "index", "token", "local derivative", "log2 of the product"],
    ...stepsNow(data, store).map((s) => {
      const at = calls.number.indexOf(s.call);
      return [calls.module[at], calls.operator[at], calls.source[at], s.index.join(" "), s.token, s.derivative, s.running];
    }),
  ];
}

function cellsNow(data: ReportDocument, store: Store): string[][] {
  return rowsNow(data, store).map((row) => row.map((c) => (typeof c === "number" ? significant(c) : (c ?? ""))));
}

function showDetail(data: ReportDocument, store: Store, holder: HTMLElement): void {
  const paths = tableOf(data, store.now.snapshot, store.now.kind);
  const steps = stepsNow(data, store);
  const heading = el("h3", {}, titleNow(data, store));
  if (!paths || !store.now.path || startOf(paths, store.now.path, store.now.example) < 0) {
    const why = store.now.path ? "This scalar is not among the paths taken down at this moment." : "Choose a path from the list.";
    holder.replaceChildren(heading, el("p", { class: "none" }, why));
    return;
  }
  const last = steps.length ? steps[steps.length - 1].running : 0;
  const example = paths.starts.example?.[startOf(paths, store.now.path, store.now.example)];
  const apart = store.now.example !== null && example !== store.now.example ? "; of the chosen example the file has no path from here" : "";
  const line = el("p", { class: "weight" }, `Weight ${power(last)} (${plainly(last)}), ${steps.length} steps${example === undefined ? "" : `, example ${example}`}${apart}.`);
  holder.replaceChildren(heading, line, el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Steps of the path" }, stepTable(data, steps, scaleOf(paths))));
}

const scales = new WeakMap<PathTable, [low: number, high: number]>();

/** From the weakest product to the strongest on the way of any path of a file: one scale for all of them. */
function scaleOf(paths: PathTable): [low: number, high: number] {
  const { derivative, next } = paths.steps;
  let [low, high] = scales.get(paths) ?? [0, 0];
  for (const first of scales.has(paths) ? [] : (paths.starts.first ?? [])) {
    let log2 = 0;
    for (let at = first; at >= 0; at = next[at]) {
      log2 += Math.log2(Math.abs(derivative[at] ?? 0));
      if (Number.isFinite(log2)) [low, high] = [Math.min(low, log2), Math.max(high, log2)];
    }
  }
  scales.set(paths, [low, high]);
  return [low, high];
}

function stepTable(data: ReportDocument, steps: Step[], [low, high]: [number, number]): HTMLElement {
  const { calls } = data.graph;
  const texts = steps.some((s) => s.token !== null);
  const cellsOf = (s: Step, i: number) => {
    const at = calls.number.indexOf(s.call);
    const operator = calls.operator[at].replace(/^aten\./, "").replace(/\.default$/, "");
    const cells: (string | Node)[] = [
      calls.module[at] === calls.module[calls.number.indexOf(steps[i - 1]?.call)] && i ? "″" : calls.module[at] || "(top)",
      el("span", { title: calls.operator[at] }, operator),
      el("span", { class: "mono" }, s.index.length ? `[${s.index.join(", ")}]` : ""),
      ...(texts ? [s.token === null ? "" : el("q", {}, s.token)] : []),
      significant(s.derivative),
      running(s.running, low, high),
      el("span", { class: "source", title: calls.source[at] }, calls.source[at].split("/").pop() ?? ""),
    ];
    return cells;
  };
  const headings = ["module call", "operator", "position", ...(texts ? ["token"] : []), "∂ local", "product so far", "source"];
  const out = table(headings, steps.map(cellsOf), [texts ? 4 : 3]);
  foldPlain(out, steps);
  return out;
}

/** Fold runs of steps that change nothing, views and sums, behind a line that opens them. */
function foldPlain(out: HTMLTableElement, steps: Step[]): void {
  const lines = [...out.tBodies[0].rows];
  const plain = steps.map((s, i) => Math.abs(s.derivative ?? 0) === 1 && i > 0 && i < steps.length - 1);
  for (let begin = 0; begin < lines.length; begin++) {
    let end = begin;
    while (plain[end]) end++;
    if (end - begin < 2) continue;
    const run = lines.slice(begin, end);
    const operators = [...new Set(run.map((line) => line.cells[1].textContent))].join(", ");
    const show = button(`${run.length} steps of factor ±1`, () => {
      for (const line of run) line.hidden = !line.hidden;
      show.setAttribute("aria-expanded", String(!run[0].hidden));
    }, { class: "plain", "aria-expanded": "false", title: operators });
    for (const line of run) line.hidden = true;
    run[0].before(el("tr", { class: "folded" }, el("td", { colspan: lines[0].cells.length }, show, ` ${fit(operators, 60)}`)));
    begin = end;
  }
}

/** A bar from 2^0 to the running product, all paths of a file on one log axis. */
function running(log2: number, low: number, high: number): HTMLElement {
  const width = 130;
  const x = (value: number) => ((value - low) / (high - low || 1)) * width;
  const end = Number.isFinite(log2) ? x(log2) : 0;
  const bar = svg(
    "svg",
    { class: "running", viewBox: `-1 0 ${width + 2} 14`, width: width + 2, height: 14, "aria-hidden": "true" },
    svg("line", { x1: x(0), x2: x(0), y1: 0, y2: 14, class: "one" }),
    svg("rect", { x: Math.min(end, x(0)), y: 4, width: Math.max(1, Math.abs(x(0) - end)), height: 6, rx: 1 }),
  );
  return el("span", { class: "product" }, bar, el("span", { class: "number" }, powerOf(log2)));
}
