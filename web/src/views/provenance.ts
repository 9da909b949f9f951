// Where the numbers come from.

import type { ReportDocument } from "../data";
import { el } from "../dom";
import { pictureOfTable } from "../export";
import { section } from "../section";

export function provenanceView(data: ReportDocument): HTMLElement {
  const rows = data.provenance.flatMap(([name, entries]) => entries.map(([key, value]) => [name, key, value]));
  const { root, body } = section(
    "provenance",
    "Provenance",
    "What these numbers were computed with, and whether the tape was proved against autograd.",
    "A certificate says that every derivative was recorded right, not that the model or the data are.",
    { svg: () => pictureOfTable(data.title, [["", "", ""], ...rows]), rows: () => [["section", "what", "value"], ...rows] },
  );
  for (const [name, entries] of data.provenance) {
    const list = el("dl", {});
    for (const [key, value] of entries) list.append(el("dt", {}, key), el("dd", {}, value));
    body.append(el("div", { class: "card" }, el("h3", {}, name), list));
  }
  return root;
}
