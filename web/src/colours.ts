// Cividis for strength and shares (Nuñez, Anderton and Renslow, 2018: even in lightness, the same to colour-blind eyes),
// Okabe and Ito's colours for components.

const CIVIDIS = [
  [0, 34, 78], [24, 54, 106], [56, 74, 108], [81, 93, 110], [104, 113, 115], [128, 133, 120], [153, 155, 119],
  [179, 178, 110], [207, 202, 94], [234, 226, 70], [254, 232, 56],
];
const COMPONENTS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c7a00", "#6f6f6f"];

export function isDark(): boolean {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

export function cividis(t: number): string {
  const at = Math.max(0, Math.min(1, t)) * (CIVIDIS.length - 1);
  const i = Math.min(Math.floor(at), CIVIDIS.length - 2);
  const [a, b] = [CIVIDIS[i], CIVIDIS[i + 1]];
  return `rgb(${a.map((c, k) => Math.round(c + (b[k] - c) * (at - i))).join(",")})`;
}

const EVEN = 0.4315; // of cividis, where white and black read equally well

/** Whether white or black reads better on it: there both have a contrast of 4.58, and elsewhere one of them more. */
export function inkOn(t: number): string {
  return t < EVEN ? "#ffffff" : "#000000";
}

/** The colour of a share in a cell, as a place in the scale. */
export function placeOf(share: number): number {
  return isDark() ? share : 0.96 - 0.96 * share;
}

/** Strength: strong is what stands out, dark on light paper and light on a dark screen. */
export function strength(t: number): string {
  return cividis(isDark() ? 0.18 + 0.82 * t : 0.92 - 0.92 * t);
}

export function ofComponent(names: string[], name: string): string {
  return COMPONENTS[Math.max(0, names.indexOf(name)) % COMPONENTS.length];
}

/** A difference of shares: how strongly it is coloured, so that small ones are seen. */
export function moved(difference: number): { look: "more" | "fewer" | "same"; strength: number } {
  const look = Math.abs(difference) < 0.0005 ? "same" : difference > 0 ? "more" : "fewer";
  return { look, strength: look === "same" ? 0 : 0.1 + 0.35 * Math.sqrt(Math.min(1, Math.abs(difference))) };
}
