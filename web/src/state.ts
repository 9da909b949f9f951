// What the views share: which moment, kind of trace, parameter group, open modules, and chosen path.

export interface State {
  snapshot: number;
  against: number | null; // the moment that is subtracted
  example: number | null; // null: all of them
  kind: string;
  group: string;
  measure: Measure;
  open: Set<number>;
  openGroups: Set<number>;
  unfolded: Set<number>; // runs, by the number of their first part
  path: { leaf: number; index: string } | null;
  search: string; // among the names of parameters
  at: string; // and their indices
}

export type Measure = "share" | "weighted_share" | "along";

type Key = keyof State;
type Listener = (changed: Set<Key>) => void;

export class Store {
  private listeners: Listener[] = [];
  private waiting: (() => void)[] | null = [];

  /** What the page opens with, whatever its address says. */
  readonly first: Readonly<State>;

  /** What else has to change, for the parts to fit each other. */
  settle: (now: State) => Partial<State> = () => ({});

  constructor(readonly now: State) {
    this.first = { ...now };
  }

  set(change: Partial<State>): void {
    Object.assign(this.now, change);
    const more = this.settle(this.now);
    Object.assign(this.now, more);
    const changed = new Set(Object.keys({ ...change, ...more }) as Key[]);
    for (const listener of this.listeners) listener(changed);
  }

  /** Run once the page stands, or now if it does, and again whenever one of the named parts changes. */
  watch(keys: Key[], run: () => void): void {
    if (this.waiting) this.waiting.push(run);
    else run();
    this.listeners.push((changed) => {
      if (keys.some((key) => changed.has(key))) run();
    });
  }

  /** The page stands: run what has waited for that. */
  begin(): void {
    const waiting = this.waiting ?? [];
    this.waiting = null;
    for (const run of waiting) run();
  }
}
