// Rows of named bars, and the axes around them.

import type { ScaleLinear } from "d3-scale";
import { fit, svg } from "./dom";

type Scale = ScaleLinear<number, number>;

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const MANY = 40; // rows, from which on they are narrow

export interface Rows {
  out: SVGSVGElement;
  left: number;
  top: number;
  bottom: number;
  height: number;
  /** The middle of a row. */
  y: (row: number) => number;
}

/** A picture with a name at the left of each row, and room for an axis above and below. */
export function rowsOfBars(names: string[], width: number, label: string): Rows {
  const [top, edge, height] = [44, 44, names.length > MANY ? 17 : 24];
  const left = Math.min(250, 24 + 7 * Math.max(...names.map((name) => fit(name, 32).length)));
  const bottom = top + names.length * height;
  const out = svg("svg", { viewBox: `0 0 ${width} ${bottom + edge}`, width, height: bottom + edge, class: "bars", "aria-label": label });
  const y = (row: number) => top + (row + 0.5) * height;
  names.forEach((name, i) => out.append(svg("text", { x: left - 10, y: y(i) + 4, "text-anchor": "end", class: "name" }, fit(name, 32), svg("title", {}, name))));
  return { out, left, top, bottom, height, y };
}

export interface Tick {
  at: number;
  text: string;
}

/** The axis of a picture's rows, above them with lines down to the bottom; or a second one below, without. */
export function axisAcross(x: Scale, ticks: Tick[], [top, bottom]: [number, number], label: string, second = false): SVGGElement {
  const [from, to] = x.range();
  const group = svg("g", { class: "across" });
  for (const { at, text } of ticks) {
    if (!second) group.append(svg("line", { x1: x(at), x2: x(at), y1: top, y2: bottom, class: "grid" }));
    group.append(svg("text", { x: x(at), y: second ? bottom + 16 : top - 8, "text-anchor": "middle" }, text));
  }
  group.append(svg("text", { x: (from + to) / 2, y: second ? bottom + 35 : top - 26, "text-anchor": "middle", class: "axis" }, label));
  return group;
}

/** As many ticks as have room. */
export function ticksOf(x: Scale, text: (value: number) => string, room = 80): Tick[] {
  const [from, to] = x.range();
  return x.ticks(Math.max(2, Math.floor(Math.abs(to - from) / room))).map((at) => ({ at, text: text(at) }));
}

/** A number of any size, in few characters. */
export function short(number: number): string {
  const size = Math.abs(number);
  if (size === 0 || (size >= 0.001 && size < 1e5)) return Number(number.toPrecision(3)).toLocaleString("en-US", { maximumFractionDigits: 6 }).replace("-", "−");
  const [digits, exponent] = number.toExponential(2).split("e");
  return tens(Number(digits), Number(exponent));
}

function tens(digits: number, exponent: number): string {
  return `${digits === 1 ? "" : `${digits}·`}10${raised(exponent)}`.replace("-", "−");
}

export function raised(exponent: number): string {
  return [...String(exponent)].map((c) => (c === "-" ? "⁻" : SUPERSCRIPTS[Number(c)])).join("");
}

/** 2^bits where a little more than 1 is not 1. */
export function factor(bits: number): string {
  return bits < 4 ? Number((2 ** bits).toPrecision(4)).toString() : powerOfTwo(bits);
}

/** 2^bits in few characters, however many bits there are. */
export function powerOfTwo(bits: number): string {
  if (Math.abs(bits) < 16) return short(2 ** bits);
  const exponent = Math.floor(bits * Math.log10(2));
  return tens(Number((10 ** (bits * Math.log10(2) - exponent)).toPrecision(2)), exponent);
}
