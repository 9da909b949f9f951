// Blue for strength and shares, further from the paper where there is more: a colour means the same on light paper and on
// a dark screen, and to colour-blind eyes. Okabe and Ito's colours for components.

const LIGHT = [[239, 243, 249], [158, 198, 226], [58, 124, 184], [8, 48, 107]];
const DARK = [[34, 43, 54], [32, 82, 132], [84, 150, 210], [198, 228, 255]];
const COMPONENTS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c7a00", "#6f6f6f"];

export function isDark(): boolean {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function mixed(t: number): number[] {
  const stops = isDark() ? DARK : LIGHT;
  const at = Math.max(0, Math.min(1, t)) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (at - i)));
}

/** The colour of a share. */
export function shadeOf(share: number): string {
  return `rgb(${mixed(share).join(",")})`;
}

const EVEN = 0.179; // of luminance, where white and black read equally well, at a contrast of 4.58

/** White or black, whichever reads better on a share's colour. */
export function inkOn(share: number): string {
  const [r, g, b] = mixed(share).map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b < EVEN ? "#ffffff" : "#000000";
}

/** Strength: the strongest stands out most. */
export function strength(t: number): string {
  return shadeOf(0.22 + 0.78 * t);
}

export function ofComponent(names: string[], name: string): string {
  return COMPONENTS[Math.max(0, names.indexOf(name)) % COMPONENTS.length];
}

/** A difference of shares: how strongly it is coloured, so that small ones are seen. */
export function moved(difference: number): { look: "more" | "fewer" | "same"; strength: number } {
  const look = Math.abs(difference) < 0.0005 ? "same" : difference > 0 ? "more" : "fewer";
  return { look, strength: look === "same" ? 0 : 0.1 + 0.35 * Math.sqrt(Math.min(1, Math.abs(difference))) };
}
