/** Where the time of a command goes, for `--debug`. */

/** A moment. */
export interface Moment {
  /** Milliseconds since Node began. */
  readonly wall: number;
  /** What all threads of the process have taken until then. */
  readonly cpu: NodeJS.CpuUsage;
}

/** Milliseconds of a phase: those that passed, and those of CPUs, of all threads together. */
interface Took {
  wall: number;
  cpu: number;
}

const phases = new Map<string, Took>();
let [current, since]: [string, Moment] = ['starting Node', { wall: 0, cpu: { user: 0, system: 0 } }];

function now(): Moment {
  // Not performance.now(): Node would load its module first, which takes longer than a phase.
  return { wall: process.uptime() * 1000, cpu: process.cpuUsage() };
}

/** Whether times are wanted: taking them costs 10 µs. */
let wanted = false;

/** From now on, times are taken. */
export function takePhases(): void {
  wanted = true;
}

/** Ends the phase before, and begins another one or goes on with it: at this moment, or at an earlier one. */
export function phase(name: string, at?: Moment): void {
  if (wanted) begin(name, at ?? now());
}

function begin(name: string, at: Moment): void {
  const took = phases.get(current) ?? { wall: 0, cpu: 0 };
  took.wall += at.wall - since.wall;
  took.cpu += (at.cpu.user + at.cpu.system - since.cpu.user - since.cpu.system) / 1000;
  phases.set(current, took);
  [current, since] = [name, at];
}

/** Does `work` in a phase of its own, until its promise settles if it is one; then the phase before goes on. */
export function during<T>(name: string, work: () => T): T {
  const before = current;
  phase(name);
  let result: T | undefined;
  try {
    result = work();
  } finally {
    if (!(result instanceof Promise)) phase(before);
  }
  return result instanceof Promise ? (result.finally(() => phase(before)) as T) : result;
}

/** A line for each phase; none if they are not wanted. */
export function phaseLines(): string[] {
  if (!wanted) return [];
  phase('');
  const all = { wall: 0, cpu: 0 };
  const line = (name: string, { wall, cpu }: Took) =>
    `${wall.toFixed(1).padStart(8)} ms, ${cpu.toFixed(1).padStart(8)} ms of CPUs: ${name}`;
  const lines = [...phases].map(([name, took]) => {
    all.wall += took.wall;
    all.cpu += took.cpu;
    return line(name, took);
  });
  return [...lines, line('all', all)];
}
