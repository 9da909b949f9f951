// Words of the field, explained where they stand.

import { el, explain, type Child } from "./dom";

const PATH = "One way from one scalar of a parameter to the loss, one local derivative a step. The gradient is the sum over all ways; this page follows one of them for each scalar and each example.";
const BASIS = "Which directions the units of an activation stand for. Turn them, and turn the next weights back: the function and the gradient's size stay, the paths do not.";

const WORDS: Record<string, string> = {
  scalar: "One number of a tensor: one weight of a parameter, one entry of an activation.",
  scalars: "The numbers of a tensor: the weights of a parameter, the entries of an activation.",
  path: PATH,
  paths: PATH,
  best: "Of all ways from a scalar to the loss the one whose absolute product of local derivatives is largest.",
  "local derivative": "How much one operator's output scalar moves with one of its inputs. A path multiplies them.",
  join: "A call at which branches come together again: an addition, a product of a gate, a concatenation, attention's heads.",
  branch: "One of the ways from where a value is read several times to where they meet again.",
  branches: "The ways from where a value is read several times to where they meet again.",
  share: "Of the paths that this page follows, the part that takes a branch or crosses a component: each counts as one, or as much as its weight, as “Count” says.",
  weight: "The absolute product of the local derivatives along a path.",
  dead: "Without any path of non-zero weight to the loss: nothing trains it on these examples.",
  greedy: "From each step on to where |local derivative × gradient| is largest: along most of the gradient. It need not be the strongest single way.",
  basis: BASIS,
};
const PATTERN = new RegExp(`\\b(${Object.keys(WORDS).sort((a, b) => b.length - a.length).join("|")})\\b`, "i");

/** A text, in which each word of the glossary is explained once, where it stands first. */
export function glossed(text: string, met: Set<string> = new Set()): Child[] {
  const out: Child[] = [];
  let rest = text;
  for (let found = PATTERN.exec(rest); found; found = PATTERN.exec(rest)) {
    const [word, key] = [found[0], found[0].toLowerCase()];
    out.push(rest.slice(0, found.index), met.has(key) ? word : term(word, key));
    met.add(key);
    rest = rest.slice(found.index + word.length);
  }
  return [...out, rest];
}

function term(word: string, key: string): HTMLElement {
  const out = el("dfn", { tabindex: 0, title: null }, word);
  explain(out, () => [word, WORDS[key]]);
  return out;
}
