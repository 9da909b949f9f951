// Save what a view shows: its picture as SVG with the styles written in, its figures as CSV.

import { svg } from "./dom";

const LOOKS = [
  "fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linejoin", "opacity",
  "font-family", "font-size", "font-weight", "font-style", "text-anchor", "paint-order", "dominant-baseline",
];

export function save(name: string, kind: string, text: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** A cell that begins like a formula is text, not something for a spreadsheet to run. */
export function csv(rows: (string | number | boolean | null | undefined)[][]): string {
  const cell = (value: string | number | boolean | null | undefined) => {
    const raw = value === null || value === undefined ? "" : String(value);
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(raw) ? `'${raw}` : raw;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

export function picture(drawn: SVGSVGElement): string {
  const copy = drawn.cloneNode(true) as SVGSVGElement;
  const [from, to] = [[drawn, ...drawn.querySelectorAll("*")], [copy, ...copy.querySelectorAll("*")]];
  from.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const look of LOOKS) {
      const value = style.getPropertyValue(look);
      if (value) to[i].setAttribute(look, value);
    }
    for (const gone of ["tabindex", "role", "class", "aria-label"]) to[i].removeAttribute(gone);
  });
  const box = drawn.viewBox.baseVal;
  copy.setAttribute("width", String(box.width));
  copy.setAttribute("height", String(box.height));
  const paper = getComputedStyle(document.body).backgroundColor;
  copy.prepend(svg("rect", { x: box.x, y: box.y, width: box.width, height: box.height, fill: paper }));
  return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(copy)}\n`;
}

/** A table as a picture, for views that are one. */
export function pictureOfTable(title: string, rows: string[][]): SVGSVGElement {
  const widths = rows[0].map((_, i) => Math.min(60, Math.max(...rows.map((r) => (r[i] ?? "").length))) * 7.2 + 20);
  const [width, height] = [widths.reduce((a, b) => a + b, 20), rows.length * 20 + 44];
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, "font-family": "system-ui, sans-serif", "font-size": 12 });
  const ink = getComputedStyle(document.body).color;
  drawn.append(svg("text", { x: 10, y: 20, "font-weight": 600, fill: ink }, title));
  rows.forEach((row, r) => {
    let x = 10;
    row.forEach((text, i) => {
      drawn.append(svg("text", { x, y: 44 + r * 20, fill: ink, "font-weight": r ? 400 : 600 }, text));
      x += widths[i];
    });
  });
  return drawn;
}
