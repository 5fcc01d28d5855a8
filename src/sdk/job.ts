/**
 * Work that goes on: a promise of its result, and meanwhile a loop over its progress (`for await (const … of job)`), which ends with it
 * and throws what it rejects with. Leaving the loop does not stop the work; the option `signal` does.
 */
export interface Job<Result, Progress> extends Promise<Result>, AsyncIterable<Progress> {}

/**
 * Those who are told of a job's progress.
 *
 * @internal
 */
export class Listeners<Progress> {
  private readonly all = new Set<(progress: Progress) => void>()

  /** Whether there is anybody to tell. */
  get some(): boolean {
    return this.all.size > 0
  }

  add(listener: ((progress: Progress) => void) | undefined): void {
    if (listener) this.all.add(listener)
  }

  delete(listener: (progress: Progress) => void): void {
    this.all.delete(listener)
  }

  readonly tell = (progress: Progress): void => {
    for (const listener of this.all) listener(progress)
  }
}

/**
 * Starts a job; `run` adds the callback among its options to the listeners. A loop that begins in the turn of the call misses nothing.
 *
 * @internal
 */
export function startJob<Result, Progress>(
  run: (listeners: Listeners<Progress>) => Promise<Result>,
): Job<Result, Progress> {
  const listeners = new Listeners<Progress>()
  const result = run(listeners)
  const loop = () => {
    const queue: Queue<Progress> = new Queue<Progress>(result, () => listeners.delete(queue.push))
    listeners.add(queue.push)
    return queue
  }
  return Object.assign(result, { [Symbol.asyncIterator]: loop })
}

/**
 * What has been handed over and its reader has not yet taken. It ends when `work` does, of which it throws the rejection; `leave` is
 * called, and awaited, when the reader goes before that.
 *
 * @internal
 */
export class Queue<T> implements AsyncIterableIterator<T, undefined> {
  private readonly values: T[] = []
  private wake: () => void = () => undefined

  constructor(
    private readonly work: Promise<unknown>,
    private readonly leave: () => unknown,
  ) {}

  readonly push = (value: T): void => {
    this.values.push(value)
    this.wake()
  };

  [Symbol.asyncIterator](): this {
    return this
  }

  async next(): Promise<IteratorResult<T, undefined>> {
    if (this.values.length === 0) {
      const handed = new Promise<void>((resolve) => (this.wake = resolve))
      await Promise.race([handed, this.work])
    }
    if (this.values.length === 0) return { done: true, value: undefined }
    return { done: false, value: this.values.shift()! }
  }

  async return(): Promise<IteratorResult<T, undefined>> {
    this.values.length = 0
    await this.leave()
    return { done: true, value: undefined }
  }
}
