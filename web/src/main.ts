// The page: its headline, what is chosen for all views, and the views one below the other, as they print.

import "uplot/dist/uPlot.min.css";
import "./style.css";
import { follow } from "./address";
import { openWherePathsPart } from "./cut";
import { load, type ReportDocument } from "./data";
import { isDark } from "./colours";
import { button, el, menu } from "./dom";
import { exampleMenu, examplesOf } from "./examples";
import { glossed } from "./glossary";
import { callsOf, joinsOf } from "./lanes";
import { countMenu } from "./measures";
import { Store } from "./state";
import { strongestOf } from "./walk";
import { againstMenu, nameOf } from "./against";
import { ablationView } from "./views/ablation";
import { changesView } from "./views/changes";
import { entropyView } from "./views/entropy";
import { firstFlow, flowView } from "./views/flow";
import { gapView } from "./views/gap";
import { influenceView } from "./views/influence";
import { joinsView } from "./views/joins";
import { lengthsView } from "./views/lengths";
import { pathsView, settled } from "./views/paths";
import { provenanceView } from "./views/provenance";
import { trainingView } from "./views/training";

function begin(data: ReportDocument): Store {
  const last = data.snapshots.length - 1;
  const flow = firstFlow(data);
  return new Store({
    snapshot: last,
    against: data.kind === "compare" ? 0 : null,
    example: null,
    kind: flow?.kind ?? "best",
    group: flow?.of ?? "",
    measure: "share",
    open: openWherePathsPart(data.graph, flow, callsOf(joinsOf(data, last, flow))),
    openGroups: new Set(data.graph.groups.open),
    unfolded: new Set<number>(),
    path: strongestOf(data, last, flow, null),
    search: "",
    at: "",
  });
}

/** What a path is on this page, before anything is said of some. */
function whatPathsAre(data: ReportDocument): HTMLElement {
  const rows = data.snapshots.flatMap((s) => s.influence);
  const kinds = new Set(data.snapshots.flatMap((s) => s.flows.map((f) => f.kind)));
  const each = rows.some((r) => r.examples > 1) ? " and each example" : "";
  const greedy = "the greedy one, which goes from each step on to where |local derivative × gradient| is largest";
  const best = "the best one, whose product of local derivatives is the largest of all";
  const which = kinds.size > 1 ? `${greedy}, or ${best}, as “Traces” says` : kinds.has("best") ? best : `${greedy}, and need not be the strongest`;
  const text = `A path here is one way from a scalar of a parameter to the loss, and one is followed for each scalar${each}: ${which}. The gradient is the sum over all ways, of which most are not followed.`;
  return el("p", { class: "what" }, ...glossed(text));
}

const FOLLOWS = ["joins", "flow", "influence", "paths", "provenance"]; // an example, or say that they don't

function sayWhose(data: ReportDocument, store: Store, view: HTMLElement): void {
  if (FOLLOWS.includes(view.id) || !examplesOf(data).length) return;
  const line = el("p", { class: "whose", hidden: true }, "Of all examples.");
  view.querySelector(".how")!.after(line);
  store.watch(["example"], () => (line.hidden = store.now.example === null));
}

function slider(data: ReportDocument, store: Store): HTMLElement | null {
  const steps = data.snapshots.map((s) => s.step);
  if (steps.length < 2) return null;
  if (data.kind === "compare") {
    const options = data.snapshots.map((s, i): [string, string] => [String(i), nameOf(s)]);
    return menu("Result", options, String(store.now.snapshot), (i) => store.set({ snapshot: Number(i) }), "step");
  }
  const input = el("input", { type: "range", id: "step", min: 0, max: steps.length - 1, step: 1 });
  const shown = el("output", { for: "step" });
  input.addEventListener("input", () => store.set({ snapshot: Number(input.value) }));
  store.watch(["snapshot"], () => {
    input.value = String(store.now.snapshot);
    shown.textContent = String(steps[store.now.snapshot]);
    input.setAttribute("aria-valuetext", `step ${steps[store.now.snapshot]}`);
  });
  return el("label", { class: "field", for: "step" }, el("span", {}, "Training step"), input, shown);
}

function setTheme(theme: string): void {
  document.documentElement.dataset.theme = theme;
  for (const view of document.querySelectorAll("section")) view.dispatchEvent(new Event("themechange"));
}

function bar(data: ReportDocument, store: Store, views: HTMLElement[]): HTMLElement {
  const kinds = [...new Set(data.snapshots[data.snapshots.length - 1].flows.map((f) => f.kind))];
  const names: Record<string, string> = { best: "best: the strongest path", greedy: "greedy: step by step along |w·g|" };
  const links = views.map((v) => el("a", { href: `#${v.id}` }, v.querySelector("h2")?.textContent ?? v.id));
  const theme = button("Light / dark", () => setTheme(isDark() ? "light" : "dark"), { class: "plain" });
  const choices = el(
    "div",
    { class: "choices" },
    slider(data, store),
    againstMenu(data, store),
    exampleMenu(data, store),
    countMenu(data, store),
    ...(kinds.length > 1 ? [menu("Traces", kinds.map((k) => [k, names[k] ?? k]), store.now.kind, (kind) => store.set({ kind }), "kind")] : []),
    theme,
  );
  return el("nav", { "aria-label": "Views" }, el("div", { class: "links" }, ...links), choices);
}

/** Say which moment the headline speaks of, where the views show another. */
function momentOfHeadline(data: ReportDocument, store: Store): HTMLElement {
  const line = el("p", { class: "moment", role: "status" });
  const last = data.snapshots[store.first.snapshot];
  const of = [data.kind === "compare" || last.step === null ? "" : `of step ${last.step}`, "of all examples", `of ${store.first.kind} paths`];
  store.watch(["snapshot", "example", "kind"], () => {
    const { now, first } = store;
    const shown = [
      now.snapshot === first.snapshot ? "" : nameOf(data.snapshots[now.snapshot]),
      now.example === first.example ? "" : `example ${now.example}`,
      now.kind === first.kind ? "" : `${now.kind} paths`,
    ].filter(Boolean);
    line.hidden = !shown.length;
    line.textContent = shown.length ? `The views below show ${shown.join(", ")}. These sentences are ${of.filter(Boolean).join(", ")}.` : "";
  });
  return line;
}

function printLight(): void {
  let before: string | undefined;
  addEventListener("beforeprint", () => {
    before = document.documentElement.dataset.theme;
    setTheme("light");
  });
  addEventListener("afterprint", () => {
    if (before) setTheme(before);
    else delete document.documentElement.dataset.theme;
  });
}

function main(): void {
  const data = load();
  const app = document.getElementById("app")!;
  const store = begin(data);
  store.settle = (now) => settled(data, store, now);
  follow(data, store);
  const makers = [joinsView, flowView, influenceView, changesView, pathsView, entropyView, lengthsView, gapView, trainingView, ablationView];
  const head = el("header", {}, el("h1", {}, data.title), el("div", { class: "headline" }, ...data.headline.map((s) => el("p", {}, s))), momentOfHeadline(data, store));
  const content = el("main", {});
  app.append(head, content);
  const views: HTMLElement[] = [];
  for (const make of makers) {
    const view = make(data, store);
    if (view) views.push(view);
    if (view) sayWhose(data, store, view);
  }
  views.push(provenanceView(data));
  app.insertBefore(bar(data, store, views), content);
  content.append(whatPathsAre(data), ...views);
  store.begin();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(isDark() ? "dark" : "light"));
  printLight();
  document.documentElement.dataset.ready = "true";
}

main();
