// What the tables share: options, the reference's process, the comparison in turn, the Markdown table.

import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { MeasuredDevice, median } from '../dist/sdk/benchmark/benchmark.js'
import { caseName } from '../dist/sdk/benchmark/case.js'

export { median }

const common = {
  reference: { type: 'string' },
  python: { type: 'string', default: 'python3' },
  device: { type: 'string', default: 'cpu' },
  threads: { type: 'string', default: '0' },
  repeats: { type: 'string', default: '5' },
}

/** The options of a table's command: those that all have, and `own` (as node:util's parseArgs wants them). */
export function parseOptions(own = {}) {
  try {
    const { values } = parseArgs({ options: { ...common, ...own } })
    const [threads, repeats] = [Number(values.threads), Number(values.repeats)]
    if (!(Number.isInteger(threads) && threads >= 0))
      throw new Error(`--threads ${values.threads} is no count`)
    if (!(Number.isInteger(repeats) && repeats >= 1))
      throw new Error(`--repeats ${values.repeats} is no count`)
    return { ...values, threads, repeats }
  } catch (error) {
    console.error(`${error.message}\nThe comment at the head of the file lists the options.`)
    process.exit(2)
  }
}

/** A folder that goes with the process. */
export function temporaryFolder() {
  const folder = mkdtempSync(join(tmpdir(), 'sparsegpt-bench-'))
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Writes a random model, and the token ids in tokens.safetensors, into `folder`. */
export function writeRandomModel(folder, config) {
  const file = join(folder, 'config.json')
  writeFileSync(file, JSON.stringify(config))
  execFileSync(process.execPath, [fileURLToPath(new URL('random-model.mjs', import.meta.url)), folder, file])
}

/** The reference in a process of its own, which runs a case whenever it is asked to. */
export class Reference {
  #child
  #answers

  constructor({ reference, python, threads, device }) {
    const script = fileURLToPath(new URL('reference.py', import.meta.url))
    const args = [script, '--reference', reference, '--threads', String(threads), '--device', device]
    this.#child = spawn(python, args, { stdio: ['pipe', 'pipe', 'pipe'] })
    let said = ''
    this.#child.stderr.setEncoding('utf8').on('data', (text) => (said = (said + text).slice(-4000)))
    this.#child.on('error', (error) => (said += error.message))
    this.#child.stdin.on('error', () => undefined) // it has ended: ask() tells why
    this.#answers = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]()
    this.said = () => said
  }

  /** Whether a checkout was given; prints a line when there is none. */
  static available({ reference }) {
    if (reference) return true
    console.log(
      'Reference: skipped. It needs --reference DIR, a checkout of IST-DASLab/sparsegpt, and --python BIN, a Python with PyTorch and transformers.\n',
    )
    return false
  }

  /** Runs the case once; resolves to { seconds, … }. */
  async ask(c) {
    this.#child.stdin.write(`${JSON.stringify(c)}\n`)
    const { value, done } = await this.#answers.next()
    if (done) throw new Error(`the reference's process ended:\n${this.said()}`)
    return JSON.parse(value)
  }

  close() {
    this.#child.stdin.end()
  }
}

/** Measures each case, ours and the reference's in turn, and prints a table. */
export async function compare(title, cases, options) {
  const reference = Reference.available(options) ? new Reference(options) : undefined
  const device = await MeasuredDevice.open(options.device, options.threads)
  const rows = []
  try {
    for (const c of cases) {
      process.stderr.write(`${caseName(c)}, ${c.dtype}\n`)
      const theirs = []
      // Its threads spin for some milliseconds before they sleep, which must not fall into our turn.
      const beside =
        reference &&
        (async () => {
          theirs.push((await reference.ask(c)).seconds)
          await setTimeout(100)
        })
      const { flop, result } = await device.measure(c, options.repeats, beside)
      const there = median(theirs.slice(1)) // the first one warms up
      rows.push([
        caseName(c),
        c.dtype,
        milliseconds(result.seconds),
        (flop / result.seconds / 1e9).toFixed(1),
        percent(result.ofPeak),
        reference ? milliseconds(there) : '',
        reference ? `${(there / result.seconds).toFixed(1)} ×` : '',
      ])
    }
    printDevice(device.report())
    printTable([title, 'type', 'ms', 'GFLOP/s', 'of peak', 'reference ms', 'ratio'], rows)
  } finally {
    reference?.close()
    await device.device.close()
  }
}

/** The device's name and its peaks. */
export function printDevice({ name, peaks }) {
  const list = Object.entries(peaks).map(([dtype, peak]) => `${dtype} ${(peak / 1e9).toFixed(0)} GFLOP/s`)
  console.log(`${name}. Peak: ${list.join(', ')}.\n`)
}

/** In Markdown; numbers to the right. */
export function printTable(head, rows) {
  const all = [head, ...rows].map((row) => row.map(String))
  const widths = head.map((_, j) => Math.max(3, ...all.map((row) => row[j].length)))
  const numeric = head.map((_, j) => rows.every((row) => /^[\d.]*( .{1,4})?$/.test(row[j])))
  const line = (cells) => `| ${cells.join(' | ')} |`
  const padded = all.map((row) =>
    row.map((text, j) => (numeric[j] ? text.padStart(widths[j]) : text.padEnd(widths[j]))),
  )
  const rule = widths.map((width, j) => (numeric[j] ? `${'-'.repeat(width - 1)}:` : '-'.repeat(width)))
  console.log([padded[0], rule, ...padded.slice(1)].map(line).join('\n') + '\n')
}

export const milliseconds = (seconds) => (seconds * 1e3).toFixed(seconds < 0.1 ? 2 : 0)
export const percent = (share) => `${(share * 100).toFixed(1)} %`
