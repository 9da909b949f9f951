// The document in the page: what src/gradtrace/report/document.py writes.

export interface TreeColumns {
  name: string[];
  label: string[];
  kind: string[];
  parent: number[];
  layer: number[];
  item: number[];
  open: number[];
}

export interface Graph {
  calls: { number: number[]; operator: string[]; module: string[]; source: string[] };
  parameters: { name: string[]; shape: number[][]; also?: Record<string, string> }; // by a further name of a shared one its first
  modules: TreeColumns;
  groups: TreeColumns;
  links?: { source: number[]; target: number[] }; // between calls; absent in older results
}

export interface InfluenceRow {
  of: string;
  kind: string;
  component: string;
  share: number | null;
  weighted_share: number | null;
  dead_share: number | null;
  examples: number;
  inside: boolean;
  seen?: boolean; // absent in older results
}

export interface FlowColumns {
  of: string;
  kind: string;
  total: number;
  weight: number;
  unit_log2: number | null;
  source: number[];
  target: number[];
  paths: number[];
  weights: number[];
  own?: boolean; // of one example alone, in this page's hands
}

export interface PathTable {
  steps: {
    call: number[];
    index: number[][];
    derivative: (number | null)[];
    token: (string | null)[];
    next: number[];
  };
  starts: { leaf?: number[]; index?: number[][]; example?: number[]; first?: number[]; log2?: (number | null)[] };
}

export interface JoinRow {
  call: number;
  fork: string;
  source: string;
  paths: number;
  share: number | null; // of one example it is not told
  branches: Record<string, Shares>;
}

/** Of a branch: what comes by it, and how far its part of the gradient goes along the whole, if somebody asked. */
export type Shares = [paths: number, share: number | null, weighted: number | null, along?: number | null];

export interface JoinGrid {
  pattern: string;
  operator: string;
  modules: boolean;
  branches: string[];
  labels: string[];
  joins: JoinRow[];
}

export interface JoinTable {
  table: string; // "early" or "all"
  kind: string;
  of: string[];
  of_all: number;
  paths: number;
  left_out: number;
  grids: JoinGrid[];
}

/** What is said of one example, in the order in which all is: shares of influence, and by table, grid and join of branches. */
export interface Example {
  tokens: string[] | null;
  influence: [share: number | null, weighted: number | null, dead: number | null][];
  joins: Shares[][][][];
  flows?: { total: number; weight: number; paths?: number[]; weights?: number[] }[]; // without ribbons, where there was no room
}

export interface Snapshot {
  step: number | null;
  name?: string; // of one of two results
  loss: number | null;
  influence: InfluenceRow[];
  flows: FlowColumns[];
  paths: Record<string, PathTable>;
  findings?: { kind: string; text: string; cells: { row: string; value: number }[] }[];
  joins?: JoinTable[]; // absent in older results
  examples?: Example[];
}

export interface Evaluation {
  step: number;
  samples: number;
  loss: number;
  perplexity: number;
}

/** A mean over seeds and the ends of its 95 % interval, which one seed has not. */
export interface Interval {
  mean: number | null;
  low: number | null;
  high: number | null;
  n: number;
}

/** What became of a model, on average over seeds; `samples` only if all of them got there. */
export interface Outcome {
  parameters: number;
  samples: number | null;
  reached?: number;
  seeds?: number;
  best_perplexity: number;
  final_perplexity: number;
  score?: Interval;
  beyond?: Interval;
}

/** What leaving out some components cost. */
export interface Cost extends Outcome {
  influence: Interval;
  dip: Interval;
}

export interface AgreementRow {
  kind: string;
  measure: "share" | "weighted_share";
  influence: string;
  damage: string;
  spearman: number | null;
  spearman_low?: number | null;
  spearman_high?: number | null;
  seeds?: number;
  n: number;
  verdict: string;
}

export interface MeanRow {
  kind: string;
  component: string;
  share: number | null;
  weighted_share: number | null;
  dead_share: number | null;
  traces: number;
}

/** What a semiring says of a parameter, or of a layer; without a path to the loss it says nothing. */
export interface AnswerRow {
  parameter?: string;
  layer?: string;
  scalars: number;
  live: number;
  mean?: number | null;
  median?: number | null;
  max?: number | null;
  log2_max?: number | null;
  log2_strongest?: number | null;
  gap?: number | null;
  gap_median?: number | null;
  gap_max?: number | null;
  spectrum?: (number | null)[];
  along?: (number | null)[];
  strongest?: (number | null)[];
}

export interface Answer {
  batch: number;
  semiring: string;
  base?: string;
  by?: string[];
  rows: AnswerRow[];
  layers?: AnswerRow[];
}

/** What moved between two results: names, where it was and where it is, and both in words with the change. */
export interface ChangeTable {
  title: string;
  how: string;
  columns: string[];
  rows: [names: string[], before: number | null, after: number | null, words: [string, string, string]][];
  still: number;
  left_out: number;
}

export interface ReportDocument {
  schema: string;
  kind: "trace" | "compete" | "history" | "compare";
  title: string;
  headline: string[];
  graph: Graph;
  snapshots: Snapshot[];
  training?: { name: string; without: string | null; evaluations: Evaluation[] }[];
  influence?: MeanRow[];
  ablation?: {
    reference_loss?: number;
    reference_perplexity?: number;
    full: Outcome;
    rows: ({ component: string } & Outcome)[];
    sets?: ({ absent: string[] } & Cost)[];
    cumulative?: { least: ({ removed: number } & Cost)[]; most: ({ removed: number } & Cost)[]; sentence: string } | null;
  } | null;
  agreement?: { sentence: string; rows: AgreementRow[] } | null;
  semirings?: Answer[];
  changes?: ChangeTable[];
  unmatched?: [what: string, why: string, names: string[]][];
  provenance: [string, [string, string][]][];
}

export function load(): ReportDocument {
  const holder = document.getElementById("data");
  return JSON.parse(holder?.textContent ?? "null") as ReportDocument;
}
