// Elements, numbers and tooltips. Text is set as text, never as markup: names come from strangers' models.

import { shadeOf } from "./colours";

export type Attributes = Record<string, string | number | boolean | null | undefined>;
export type Child = Node | string | null | undefined;

const SVG = "http://www.w3.org/2000/svg";

export function el<K extends keyof HTMLElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg<K extends keyof SVGElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill<E extends HTMLElement | SVGElement>(element: E, attributes: Attributes, children: Child[]): E {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "style") element.style.cssText = String(value); // the page's policy forbids the attribute
    else element.setAttribute(name, String(value));
  }
  for (const child of children) if (child !== null && child !== undefined) element.append(child);
  return element;
}

export function button(text: string, run: () => void, attributes: Attributes = {}): HTMLButtonElement {
  const made = el("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", run);
  return made;
}

/** A labelled menu. */
export function menu(
  label: string,
  options: [value: string, text: string][],
  chosen: string,
  run: (value: string) => void,
  id: string,
): HTMLElement {
  const select = el("select", { id });
  for (const [value, text] of options) select.append(el("option", { value, selected: value === chosen }, text));
  select.addEventListener("change", () => run(select.value));
  return el("label", { class: "field", for: id }, el("span", {}, label), select);
}

export function table(headings: string[], rows: (string | Node)[][], numeric: number[] = []): HTMLTableElement {
  const cell = (tag: "td" | "th", content: string | Node, i: number) =>
    el(tag, { class: numeric.includes(i) ? "number" : null, scope: tag === "th" ? "col" : null }, content);
  const head = el("thead", {}, el("tr", {}, ...headings.map((h, i) => cell("th", h, i))));
  const body = el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((c, i) => cell("td", c, i)))));
  return el("table", {}, head, body);
}

export function percent(share: number | null | undefined): string {
  return share === null || share === undefined || Number.isNaN(share) ? "–" : `${(share * 100).toFixed(1)}%`;
}

export function count(number: number): string {
  return Number.isInteger(number) ? number.toLocaleString("en-US") : Number(number.toPrecision(5)).toLocaleString("en-US");
}

export function power(log2: number | null | undefined): string {
  if (log2 === null || log2 === undefined || !Number.isFinite(log2)) return "0";
  return `2^${log2.toFixed(2).replace("-", "−")}`;
}

/** A power of two in ordinary terms, however small. */
export function plainly(log2: number | null | undefined): string {
  if (log2 === null || log2 === undefined || !Number.isFinite(log2)) return "0";
  const log10 = log2 * Math.LOG10E * Math.LN2;
  if (Math.abs(log10) < 2) return `≈ ${Number((2 ** log2).toPrecision(2))}`;
  const exponent = Math.floor(log10);
  return `≈ ${(10 ** (log10 - exponent)).toFixed(1)}e${exponent}`.replace("-", "−");
}

/** A power of two, and in ordinary terms where it is pointed at. */
export function powerOf(log2: number | null | undefined): HTMLElement {
  return el("span", { title: plainly(log2) }, power(log2));
}

export function significant(number: number | null): string {
  return number === null ? "–" : Number(number.toPrecision(5)).toString().replace("-", "−");
}

/** Shorten a name in the middle of what it starts and ends with. */
export function fit(name: string, most: number): string {
  return name.length <= most ? name : `${name.slice(0, Math.max(1, most - 1))}…`;
}

const FONT = '600 12px system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif'; // of names, in style.css
const ruler = document.createElement("canvas").getContext("2d");

/** Shorten a name to some pixels. */
export function fitTo(name: string, room: number): string {
  if (!ruler) return fit(name, Math.floor(room / 8));
  ruler.font = FONT;
  let most = name.length;
  while (most > 1 && ruler.measureText(fit(name, most)).width > room) most--;
  return fit(name, most);
}

const TENTHS = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1];

/** What the colours of cells mean, in words and in colours. */
export function scaleOfShares(what: string, more: string): HTMLElement {
  const ramp = el("span", { class: "ramp", "aria-hidden": "true" }, ...TENTHS.map((t) => el("span", { style: `background: ${shadeOf(t)}` })));
  return el("p", { class: "difference" }, `${what}: 0% `, ramp, ` 100% · ${more}`);
}

/** Say below what scrolls sideways that it does, where it does. All are measured before anything moves. */
export function hinted(...holders: HTMLElement[]): void {
  const over = holders.map((holder) => holder.scrollWidth > holder.clientWidth + 1);
  holders.forEach((holder, i) => {
    const next = holder.nextElementSibling;
    const hint = next?.classList.contains("hint") ? next : null;
    if (over[i] && !hint) holder.after(el("p", { class: "hint" }, "scroll sideways for more →"));
    if (!over[i]) hint?.remove();
  });
}

const tip = el("div", { class: "tip", role: "tooltip", id: "tip", hidden: true });

/** Where a text goes that must not cover the picture that it speaks of: under it, above it, or at the far end of the screen. */
function besides(field: DOMRect, height: number, y: number): number {
  if (field.bottom + height + 8 < innerHeight) return field.bottom + 4;
  if (field.top - height - 8 > 0) return field.top - height - 4;
  return y > innerHeight / 2 ? 8 : innerHeight - height - 8;
}

/** Show lines beside an element while it is pointed at or focused; of a part of a diagram, beside that. */
export function explain(element: Element, lines: () => string[]): void {
  const show = (x: number, y: number) => {
    if (!tip.isConnected) document.body.append(tip);
    tip.replaceChildren(...lines().map((line, i) => el(i ? "div" : "strong", {}, line)));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    const field = element.closest("svg.flow, svg.heat")?.getBoundingClientRect();
    const near = y + 18 + box.height > innerHeight ? Math.max(8, y - box.height - 12) : y + 18;
    tip.style.top = `${field ? besides(field, box.height, y) : near}px`;
  };
  element.addEventListener("pointermove", (event) => show((event as PointerEvent).clientX, (event as PointerEvent).clientY));
  element.addEventListener("focus", () => {
    const box = element.getBoundingClientRect();
    show(box.right, box.top);
  });
  for (const end of ["pointerleave", "blur"]) element.addEventListener(end, hideTip);
}

export function hideTip(): void {
  tip.hidden = true;
}
