// The path-length spectrum: how much is carried by paths that cross so many components.

import { scaleLinear } from "d3-scale";
import { answersWith, batchMenu, liveOf, nameOf } from "../answers";
import { raised, short } from "../axes";
import type { Answer, AnswerRow, ReportDocument } from "../data";
import { el, explain, fit, menu, power, svg, table } from "../dom";
import { drawnBy, section } from "../section";
import type { Store } from "../state";

/** What is drawn of one answer's row: bars, and behind them the sizes that they would have if nothing cancelled. */
interface Spectrum {
  title: string;
  what: string;
  unit: string;
  bars: number[];
  behind: number[] | null;
  /** What a bar is of the whole, or what it is, with so many digits after the point. */
  text: (bar: number, whole: number, digits?: number) => string;
}

const PANEL = { width: 340, height: 300, left: 76, right: 12, top: 66, bottom: 50 };

export function lengthsView(data: ReportDocument, store: Store): HTMLElement | null {
  const answers = answersWith(data, "spectrum");
  if (!answers.length) return null;
  let drawn: SVGSVGElement | null = null;
  const now = { batch: answers[0].batch, name: widest(answers[0]) };
  const shown = () => answers.filter((a) => a.batch === now.batch);
  const { root, controls, body } = section(
    "lengths",
    "Path lengths",
    "A bar at n: what is carried by the paths from the chosen parameters that cross exactly n of the components. Signed bars are how far " +
      "that points along the gradient, below 0 against it, and add up to Σ |gradient|; the pale ones behind are its size, Σ |part|.",
    "It does not say which components they are, and a high bar at n is not what a network of n components would do.",
    { svg: () => drawn, rows: () => cellsOf(shown()) },
  );
  const holder = el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Path-length spectrum" });
  const note = el("p", { class: "note", role: "status" });
  const details = el("details", {});
  const draw = () => {
    const chosen = shown().map((a) => [a, rowOf(a, now.name)] as const);
    drawn = panels(chosen, Math.max(300, holder.clientWidth || 1100));
    holder.replaceChildren(drawn);
    note.textContent = saidOf(chosen[0][0], chosen[0][1]);
    details.replaceChildren(el("summary", {}, "All layers as a table"), ...shown().map(tableOf));
  };
  const choose = (change: Partial<typeof now>) => {
    Object.assign(now, change);
    draw();
  };
  const names = [...(answers[0].layers ?? []), ...answers[0].rows].filter((r) => r.spectrum).map(nameOf);
  const batches = batchMenu("lengths", answers, (batch) => choose({ batch }));
  controls.append(
    menu("Paths start from", [...new Set(names)].map((n) => [n, n]), now.name, (name) => choose({ name }), "lengths-of"),
    ...(batches ? [batches] : []),
  );
  body.append(note, holder, details);
  drawnBy(root, store, [], draw);
  return root;
}

/** The layer whose paths are of the most different lengths, the first of them. */
function widest(answer: Answer): string {
  const lengths = (row: AnswerRow) => (row.spectrum ?? []).filter((part) => part).length;
  const most = Math.max(...answer.layers!.map(lengths));
  return nameOf(answer.layers!.find((row) => lengths(row) === most)!);
}

function rowOf(answer: Answer, name: string): AnswerRow {
  return [...(answer.layers ?? []), ...answer.rows].find((row) => nameOf(row) === name)!;
}

/** Which components are counted; and that there is nothing to see where all paths cross equally many. */
function saidOf(answer: Answer, row: AnswerRow): string {
  const by = answer.by ?? [];
  const beyond = row.spectrum?.includes(null) ? " Parts too large for a float are not drawn." : "";
  const counted = `Counted: ${by.join(", ")}. ${nameOf(row)}: ${liveOf(row)}.${beyond}`;
  const lengths = (row.spectrum ?? []).flatMap((part, n) => (part ? [n] : []));
  if (lengths.length !== 1 || by.length < 2 || lengths[0] === row.spectrum!.length - 1) return counted;
  return `${counted} All its paths cross exactly ${lengths[0]} of these: none of them has a way around it, as a block with its skip connection inside has none. Branches have one: name those as components.`;
}

function spectrumOf(answer: Answer, row: AnswerRow): Spectrum {
  const sizes = (row.spectrum ?? []).map((part) => part ?? 0);
  if (row.strongest) {
    const bars = row.strongest.map((part) => part ?? 0);
    const text = (bar: number) => `2${raised(Math.round(Math.log2(bar)))}`;
    return { title: "Max", what: "the strongest path alone", unit: "|weight| of the path", bars, behind: null, text };
  }
  if (row.along) {
    const bars = row.along.map((part) => part ?? 0);
    return { title: "Signed", what: "parts of the gradient", unit: "part of Σ |∂loss/∂parameter|", bars, behind: sizes, text: share };
  }
  const named: Record<string, [string, string, string]> = {
    abssum: ["Absolute", "nothing cancels", "Σ |weight of a path|"],
    count: ["Count", "how many paths there are", "paths"],
  };
  const [title, what, unit] = named[answer.base ?? ""] ?? [fit(answer.base ?? "?", 24), "its value for these paths", "Σ |part|"];
  return { title, what, unit, bars: sizes, behind: null, text: share };
}

/** A little is not nothing, whichever its sign. */
function share(bar: number, whole: number, digits = 1): string {
  const [hundredths, least] = [whole ? (100 * bar) / whole : 0, 10 ** -digits];
  if (bar && Math.abs(hundredths) < least / 2) return `${hundredths > 0 ? "<" : ">−"}${least}%`;
  return `${hundredths.toFixed(digits).replace("-", "−")}%`;
}

/** The number of components at a bar; the last bar is all that is above. */
function lengthOf(n: number, spectrum: unknown[]): string {
  return n === spectrum.length - 1 ? `>${n - 1}` : String(n);
}

function panels(chosen: (readonly [Answer, AnswerRow])[], width: number): SVGSVGElement {
  const columns = Math.max(1, Math.min(chosen.length, Math.floor(width / PANEL.width)));
  const each = Math.min(560, Math.floor(width / columns));
  const height = Math.ceil(chosen.length / columns) * PANEL.height;
  const out = svg("svg", { viewBox: `0 0 ${each * columns} ${height}`, width: each * columns, height, class: "bars", "aria-label": "Path-length spectrum" });
  chosen.forEach(([answer, row], i) => {
    const at = `translate(${(i % columns) * each},${Math.floor(i / columns) * PANEL.height})`;
    out.append(svg("g", { transform: at, class: "panel", "data-semiring": answer.semiring }, ...panel(answer, row, each)));
  });
  return out;
}

function panel(answer: Answer, row: AnswerRow, width: number): SVGElement[] {
  const { title, what, unit, bars, behind, text } = spectrumOf(answer, row);
  const shown = bars.map((_, n) => n).filter((n) => n < bars.length - 1 || (row.spectrum ?? [])[n]);
  const [left, right, bottom] = [PANEL.left, width - PANEL.right, PANEL.height - PANEL.bottom];
  const sizes = behind?.map((size, n) => (bars[n] < 0 ? -size : size)); // to the same side
  const all = [...bars, ...(sizes ?? [])];
  const y = scaleLinear([Math.min(0, ...all), Math.max(...all) || 1], [bottom, PANEL.top + 14]).nice(4);
  const step = (right - left) / shown.length;
  const out: SVGElement[] = [
    svg("text", { x: left, y: 18, class: "title" }, `${title}: ${what}`),
    svg("text", { x: left, y: 35 }, `${answer.semiring}, from ${fit(nameOf(row), 36)}`),
  ];
  for (const tick of y.ticks(4)) {
    out.push(svg("line", { x1: left, x2: right, y1: y(tick), y2: y(tick), class: tick ? "grid" : "zero" }), svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  out.push(svg("text", { x: (left + right) / 2, y: PANEL.height - 12, "text-anchor": "middle", class: "axis" }, `components crossed, of ${answer.by?.length ?? "?"}`));
  out.push(svg("text", { transform: `translate(13,${(PANEL.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "axis" }, unit));
  const whole = bars.reduce((sum, bar) => sum + bar, 0);
  const fits = (text: string) => text.length * (text.startsWith(">") ? 10 : 7.8) <= step;
  const digits = shown.every((n) => !bars[n] || fits(text(bars[n], whole))) ? 1 : 0;
  shown.forEach((n, i) => {
    const [x, value] = [left + i * step, bars[n]];
    const size = sizes?.[n] ?? null;
    const high = y(Math.max(value, size ?? 0, 0));
    const said = value || size ? text(value, whole) : "";
    const over = text(value, whole, digits);
    const label = `${lengthOf(n, bars)} crossed: ${short(value)}${said ? ` (${said})` : ""}`;
    const bar = svg(
      "g",
      { tabindex: 0, role: "img", class: "measure", "data-length": n, "data-value": value, "data-size": behind?.[n] ?? null, "aria-label": `${title}, ${label}` },
      svg("rect", { x, y: PANEL.top, width: step, height: bottom - PANEL.top, class: "hit" }),
      size === null ? null : svg("rect", { x: x + step * 0.12, y: Math.min(y(size), y(0)), width: step * 0.76, height: Math.abs(y(0) - y(size)), class: "behind" }),
      svg("rect", { x: x + step * 0.2, y: Math.min(y(value), y(0)), width: step * 0.6, height: Math.abs(y(0) - y(value)), class: value < 0 ? "solid against" : "solid" }),
      svg("text", { x: x + step / 2, y: high - 6, "text-anchor": "middle", class: "value" }, said && fits(over) ? over : ""),
      svg("text", { x: x + step / 2, y: bottom + 17, "text-anchor": "middle" }, step < 16 && n % 4 ? "" : lengthOf(n, bars)),
    );
    explain(bar, () => [
      `paths that cross ${lengthOf(n, bars)} components, ${answer.semiring}`,
      ...(size === null ? [`${unit}: ${short(value)}`] : [`along the gradient: ${short(value)}`, `size, Σ |part|: ${short(Math.abs(size))}`]),
      ...(row.strongest ? [`that is ${power(Math.log2(value))}`] : [`${said || "nothing"} of the whole`]),
    ]);
    out.push(bar);
  });
  return out;
}

function tableOf(answer: Answer): HTMLElement {
  const rows = answer.layers!.filter((row) => row.spectrum);
  const lengths = rows[0].spectrum!.map((_, n) => lengthOf(n, rows[0].spectrum!));
  const cells = rows.map((row) => {
    const { bars, text } = spectrumOf(answer, row);
    const whole = bars.reduce((sum, bar) => sum + bar, 0);
    return [nameOf(row), ...bars.map((bar, n) => (row.spectrum![n] ? text(bar, whole) : "–"))];
  });
  const made = table(["layer", ...lengths], cells, lengths.map((_, n) => n + 1));
  made.prepend(el("caption", {}, `${spectrumOf(answer, rows[0]).title} (${answer.semiring})`));
  return el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": `Table of ${answer.semiring}` }, made);
}

function cellsOf(answers: Answer[]): (string | number | null | undefined)[][] {
  const head = ["semiring", "name", "components crossed", "size of the part", "along the gradient", "strongest path"];
  const rows = answers.flatMap((a) => [...new Map([...(a.layers ?? []), ...a.rows].map((r) => [nameOf(r), r])).values()].map((r) => [a, r] as const));
  return [
    head,
    ...rows.flatMap(([a, r]) => (r.spectrum ?? []).map((part, n) => [a.semiring, nameOf(r), lengthOf(n, r.spectrum!), part, r.along?.[n], r.strongest?.[n]])),
  ];
}
