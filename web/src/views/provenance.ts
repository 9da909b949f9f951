// Where the numbers come from.

import type { ReportDocument } from "../data";
import { el } from "../dom";
import { pictureOfTable } from "../export";
import { section } from "../section";

export function provenanceView(data: ReportDocument): HTMLElement {
  const sections = data.provenance.map(([name, entries]): [string, [string, string][]] => [name, entries.filter(([, value]) => value !== "")]);
  const rows = sections.flatMap(([name, entries]) => entries.map(([key, value]) => [name, key, value]));
  const { root, body } = section(
    "provenance",
    "Provenance",
    "What these numbers were computed with, and whether the derivatives were compared with autograd's.",
    "Where they agree, every derivative was recorded right; that does not say that the model or the data are.",
    { svg: () => pictureOfTable(data.title, [["", "", ""], ...rows]), rows: () => [["section", "what", "value"], ...rows] },
  );
  for (const [name, entries] of sections) {
    const list = el("dl", {});
    for (const [key, value] of entries) list.append(el("dt", {}, key), el("dd", {}, value));
    body.append(el("div", { class: "card" }, el("h3", {}, name), list));
  }
  return root;
}
