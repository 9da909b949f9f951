// The frame of a view: its name, how to read it, what it does not mean, its controls and its exports.

import { button, el } from "./dom";
import { csv, picture, save } from "./export";
import { glossed } from "./glossary";
import type { State, Store } from "./state";

export interface Section {
  root: HTMLElement;
  controls: HTMLElement;
  body: HTMLElement;
}

export interface Exports {
  svg?: () => SVGSVGElement | null; // a view that is a table has none
  rows: () => (string | number | boolean | null | undefined)[][];
}

export function section(id: string, title: string, read: string, not: string, exports: Exports): Section {
  const controls = el("div", { class: "controls" });
  const body = el("div", { class: "body" });
  const saves = el(
    "div",
    { class: "saves" },
    exports.svg ? button("SVG", () => saveSvg(id, exports), { "aria-label": `Save ${title} as SVG`, "data-save": "svg" }) : null,
    button("CSV", () => save(`gradtrace-${id}.csv`, "text/csv", csv(exports.rows())), {
      "aria-label": `Save ${title} as CSV`,
      "data-save": "csv",
    }),
  );
  const met = new Set<string>();
  const notes = el("p", { class: "how" }, ...glossed(read, met), " ", el("em", {}, ...glossed(not, met)));
  const head = el("div", { class: "head" }, el("h2", { id: `${id}-title` }, title), saves);
  const root = el("section", { id, "aria-labelledby": `${id}-title` }, head, notes, controls, body);
  return { root, controls, body };
}

/** Draw once there is room to measure, and again whenever the room, the theme or a named part of the state changes. */
export function drawnBy(root: HTMLElement, store: Store, keys: (keyof State)[], draw: () => void): void {
  store.watch(keys, draw);
  addEventListener("resize", draw);
  root.addEventListener("themechange", draw);
}

function saveSvg(id: string, exports: Exports): void {
  const drawn = exports.svg?.();
  if (!drawn) return;
  const loose = !drawn.isConnected;
  if (loose) document.body.append(drawn); // styles exist only in the page
  save(`gradtrace-${id}.svg`, "image/svg+xml", picture(drawn));
  if (loose) drawn.remove();
}
