import { SingleBar } from 'cli-progress'

const secondsBetweenLines = 5

/** Progress on stderr: a bar with the time left on a terminal, a line every few seconds elsewhere. */
export class Progress {
  private readonly start = performance.now()
  private readonly bar: SingleBar | undefined
  private lastLine = this.start

  constructor(private readonly title: string) {
    if (!process.stderr.isTTY) return
    this.bar = new SingleBar({
      stream: process.stderr,
      format: `${title} {bar} {percentage} %  {left}  {note}`,
      barCompleteChar: '█',
      barIncompleteChar: '░',
      barsize: 30,
      hideCursor: true,
      clearOnComplete: true,
      linewrap: false,
    })
    this.bar.start(1000, 0, { left: '', note: '' })
  }

  /** fraction: share of the work done, in [0, 1]. */
  update(fraction: number, note = ''): void {
    const seconds = (performance.now() - this.start) / 1000
    const left = fraction > 0.01 ? `${duration((seconds / fraction) * (1 - fraction))} left` : ''
    if (this.bar) {
      this.bar.update(Math.floor(fraction * 1000), { left, note })
    } else if (performance.now() - this.lastLine >= secondsBetweenLines * 1000) {
      this.lastLine = performance.now()
      const parts = [`${this.title} ${(fraction * 100).toFixed(0)} %`, left, note].filter(Boolean)
      process.stderr.write(`${parts.join(', ')}\n`)
    }
  }

  /** Takes the bar away. */
  stop(): void {
    this.bar?.stop()
  }
}

export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(0)} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`
}
