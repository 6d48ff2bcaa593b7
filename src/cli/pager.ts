/** Shows output page by page, as git does. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { ClosedPipe } from '../errors.js';
import { Output } from '../io/output.js';
import type { Io } from './io.js';

/** The pager to use: PAGER, or less if there is one; undefined for none. */
function pagerOf({ env }: Io): string | undefined {
  const { PAGER, PATH = '' } = env;
  if (PAGER !== undefined) return PAGER === '' || PAGER === 'cat' ? undefined : PAGER;
  return PATH.split(path.delimiter).some((folder) => isProgram(path.join(folder, 'less'))) ? 'less' : undefined;
}

function isProgram(file: string): boolean {
  try {
    fs.accessSync(file, fs.constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** Starts the user's pager if standard output is a terminal; undefined if there is nothing to start. */
export function openPager(io: Io): Output | undefined {
  // A terminal without a size has nobody in front of it.
  const pager = io.terminal && io.columns ? pagerOf(io) : undefined;
  if (pager === undefined) return undefined;
  // Ends by itself if all fits on the screen, lets colours through, and leaves the text there.
  const env = { LESS: 'FRX', LV: '-c', ...io.env };
  return new PagerOutput(spawn('sh', ['-c', pager], { stdio: ['pipe', 'inherit', 'inherit'], env }));
}

const ignored = () => {};

class PagerOutput extends Output {
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown>;
  /** The reader has gone. */
  #closed = false;
  #full = false;
  /** Handlers of the signals that are the pager's as long as it has the terminal. */
  readonly #handlers = process.listeners('SIGINT');

  constructor(child: ChildProcess) {
    super('standard output');
    this.#child = child;
    process.removeAllListeners('SIGINT');
    process.on('SIGINT', ignored);
    this.#ended = new Promise((resolve) => {
      child.on('close', resolve);
      child.on('error', resolve);
    });
    child.stdin?.on('error', () => {
      this.#closed = true;
    });
  }

  protected override drain(bytes: Buffer, length: number): Buffer {
    if (!this.#closed) this.#full = this.#child.stdin?.write(Buffer.from(bytes.subarray(0, length))) === false;
    return bytes;
  }

  override async turn(): Promise<void> {
    await super.turn();
    const { stdin } = this.#child;
    if (this.#full && stdin !== null) await Promise.race([once(stdin, 'drain').catch(ignored), this.#ended]);
    this.#full = false;
    if (this.#closed) throw new ClosedPipe();
  }

  override async commit(): Promise<void> {
    this.flush();
    await this.#end();
    if (this.#closed) throw new ClosedPipe();
  }

  override async abort(): Promise<void> {
    this.flush();
    await this.#end();
  }

  /** Waits until the user leaves the pager. */
  async #end(): Promise<void> {
    this.#child.stdin?.end();
    await this.#ended;
    process.removeListener('SIGINT', ignored);
    for (const one of this.#handlers) process.on('SIGINT', one);
  }
}
