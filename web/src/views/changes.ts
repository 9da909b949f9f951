// What moved between two results, matched by name: a line from where each number was to where it is.

import type { ChangeTable, ReportDocument } from "../data";
import { count, el, svg, table } from "../dom";
import { section } from "../section";

const SIZE = 220;

export function changesView(data: ReportDocument): HTMLElement | null {
  const { changes, unmatched } = data;
  if (!changes) return null;
  const { root, body } = section(
    "changes",
    "What moved",
    "Numbers that both results have, matched by name, the largest change first. The ring is where a number was, the dot where it is.",
    "A change says that two numbers differ, not why: another batch or another seed changes them too.",
    {
      rows: () => [
        ["table", "name", "paths from", "traces", "before", "after"],
        ...changes.flatMap((c) => c.rows.map(([names, before, after]) => [c.title, ...[0, 1, 2].map((i) => names[i] ?? ""), before, after])),
      ],
    },
  );
  body.append(...changes.flatMap(partOf));
  if (unmatched?.length) {
    const rows = unmatched.map(([what, why, names]) => [what, why, names.join(", ")]);
    body.append(el("h3", {}, "Not matched"), wide("Not matched", table(["names of", "why", "which"], rows)));
  }
  return root;
}

function wide(name: string, inside: HTMLElement): HTMLElement {
  return el("div", { class: "scroll tall moves", tabindex: 0, role: "group", "aria-label": name }, inside);
}

function partOf(c: ChangeTable): HTMLElement[] {
  const head = [el("h3", {}, c.title), el("p", { class: "note" }, c.how)];
  if (!c.rows.length) return [...head, el("p", { class: "none" }, `None of ${count(c.still)} moved.`)];
  const ends = c.rows.flatMap(([, before, after]) => [before, after]).filter((v): v is number => v !== null);
  const shares = c.columns.length > 1;
  const [low, high] = shares ? [0, 1] : [Math.min(...ends), Math.max(...ends)];
  const rows = c.rows.map(([names, before, after, words]) => [...names, ...words, drawing(before, after, words, low, high)]);
  const first = c.columns.length;
  const note = [c.still ? `${count(c.still)} did not move.` : "", c.left_out ? `${count(c.left_out)} more moved by less.` : ""].filter(Boolean);
  return [
    ...head,
    wide(c.title, table([...c.columns, "before", "after", "change", "from ring to dot"], rows, [first, first + 1, first + 2])),
    ...(note.length ? [el("p", { class: "note" }, note.join(" "))] : []),
  ];
}

function drawing(before: number | null, after: number | null, words: string[], low: number, high: number): SVGSVGElement {
  const at = (value: number) => 8 + ((SIZE - 16) * (value - low)) / (high - low || 1);
  const [a, b] = [at(before ?? low), at(after ?? low)];
  const look = b > a ? "more" : "fewer";
  return svg(
    "svg",
    { width: SIZE, height: 16, role: "img", "aria-label": `${words[0]} to ${words[1]}` },
    svg("line", { class: "axis", x1: 8, x2: SIZE - 8, y1: 8, y2: 8 }),
    svg("line", { class: look, x1: a, x2: b, y1: 8, y2: 8 }),
    before === null ? null : svg("circle", { class: "was", cx: a, cy: 8, r: 4 }),
    after === null ? null : svg("circle", { class: look, cx: b, cy: 8, r: 4 }),
  );
}
