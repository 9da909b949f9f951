// What semirings said: which answers a view has to show, and as which rows.

import type { Answer, AnswerRow, ReportDocument } from "./data";
import { count, el, menu } from "./dom";

export type Grain = "layers" | "rows";

/** The answers that have a figure, by semiring; an older version's are not told apart by layer. */
export function answersWith(data: ReportDocument, figure: keyof AnswerRow): Answer[] {
  return (data.semirings ?? []).filter((a) => a.layers?.some((row) => row[figure] !== undefined));
}

export function nameOf(row: AnswerRow): string {
  return row.layer ?? row.parameter ?? "";
}

export function rowsOf(answer: Answer, grain: Grain): AnswerRow[] {
  return (grain === "layers" ? answer.layers : undefined) ?? answer.rows;
}

export function liveOf(row: AnswerRow): string {
  return `${count(row.live)} of ${count(row.scalars)} scalars have a path`;
}

export function grainMenu(id: string, run: (grain: Grain) => void): HTMLElement {
  return menu("Rows", [["layers", "layers"], ["rows", "parameters"]], "layers", (value) => run(value as Grain), `${id}-rows`);
}

/** Nothing to choose where one batch was traced. */
export function batchMenu(id: string, answers: Answer[], run: (batch: number) => void): HTMLElement | null {
  const batches = [...new Set(answers.map((a) => a.batch))];
  return batches.length < 2 ? null : menu("Batch", batches.map((b) => [String(b), String(b)]), String(batches[0]), (b) => run(Number(b)), `${id}-batch`);
}

export function tall(label: string): HTMLElement {
  return el("div", { class: "scroll tall", tabindex: 0, role: "group", "aria-label": label });
}
