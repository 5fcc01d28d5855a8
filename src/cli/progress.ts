import { SingleBar } from 'cli-progress'
import { verbosity } from './verbosity.js'

const secondsBetweenLines = 5

let shown = true

/** Says whether this process shows its progress; of several ranks one does. */
export function showProgress(show: boolean): void {
  shown = show
}

/** The bar that is on the terminal. */
let bar: SingleBar | undefined

/** Takes the bar from the terminal for good: the command is about to end. */
export function clearProgress(): void {
  shown = false
  bar?.stop()
  bar = undefined
}

/** The display of progress on stderr: a bar with the time left on a terminal, a line every few seconds elsewhere. */
export class Progress {
  private lastLine = performance.now()
  private last = 0
  /** The first report: what came before it, such as reading the text, says nothing about the rate. */
  private first: { time: number; fraction: number } | undefined

  constructor(private readonly title: string) {}

  /** Shows that the share `fraction` of the work is done, in [0, 1], and what `note` says of the work under way. */
  update(fraction: number, note = ''): void {
    if (!shown || verbosity().quiet) return
    const now = performance.now()
    if (fraction < this.last) this.first = undefined // another part of the work begins, such as after a download
    this.last = fraction
    if (fraction > 0) this.first ??= { time: now, fraction }
    const rate = this.first ? (fraction - this.first.fraction) / (now - this.first.time) : 0
    const left = rate > 0 ? `${duration((1 - fraction) / rate / 1000)} left` : ''
    // Shown from the first report on: a step that has nothing to do shows nothing.
    if (process.stderr.isTTY && !verbosity().verbose) bar ??= startBar(this.title)
    if (bar) {
      bar.update(Math.floor(fraction * 1000), { left, note })
    } else if (now - this.lastLine >= secondsBetweenLines * 1000) {
      this.lastLine = now
      const parts = [`${this.title} ${(fraction * 100).toFixed(0)} %`, left, note].filter(Boolean)
      process.stderr.write(`${parts.join(', ')}\n`)
    }
  }

  /** Takes the bar away. */
  stop(): void {
    bar?.stop()
    bar = undefined
  }
}

function startBar(title: string): SingleBar {
  const bar = new SingleBar({
    stream: process.stderr,
    format: `${title} {bar} {percentage} %  {left}  {note}`,
    barCompleteChar: '█',
    barIncompleteChar: '░',
    barsize: 30,
    hideCursor: true,
    clearOnComplete: true,
    linewrap: false,
  })
  bar.start(1000, 0, { left: '', note: '' })
  return bar
}

/** Shows progress while `body` runs. */
export async function withProgress<T>(title: string, body: (progress: Progress) => Promise<T>): Promise<T> {
  const progress = new Progress(title)
  try {
    return await body(progress)
  } finally {
    progress.stop()
  }
}

/** A time for people, such as '3 min 5 s'. */
export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(0)} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`
}
