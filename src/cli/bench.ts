import Table from 'cli-table3'
import { Argument, Command } from 'commander'
import { benchmark, type BenchReport } from '../sdk/benchmark/benchmark.js'
import { tables, type BenchDType, type BenchTable } from '../sdk/benchmark/case.js'
import type { DeviceName } from '../native/device.js'
import { benchDecodeCommand } from './bench-decode.js'
import { deviceOptions, dtypeOption, given, number } from './arguments.js'
import { interruptible } from './interrupt.js'
import { withProgress } from './progress.js'

/** The command's flags as commander parses them; the options below say what each is. */
interface Flags {
  device: DeviceName
  threads: number
  dtype?: BenchDType
  sizes?: string[]
  seqlen?: number
  repeats?: number
  json?: true
}

/** The command `sparsegpt bench`, which measures this machine. */
export function benchCommand(): Command {
  const command = new Command('bench')
    .description("Measure this machine: times, and their share of the processor's and the GPU's own peak.")
    .addArgument(new Argument('<table>', 'what to measure').choices(tables))
    .option(
      '--sizes <list>',
      'gemm: products such as 2048x4096x4096 and Gram matrices such as 2048x4096; ' +
        'solver: rows x columns; forward: opt-125m, llama-1b, llama-7b (default: a selection)',
      (list) => list.split(','),
    )
    .option('--seqlen <n>', 'tokens of the window that goes through a block (default: 2048)', number)
    .option('--repeats <n>', 'runs of which the median is shown (default: 5)', number)
    .option('--json', 'print one JSON object on stdout')
  return deviceOptions(command, dtypeOption('only this element type (default: both)'))
    .action(run)
    .enablePositionalOptions()
    .addCommand(benchDecodeCommand())
}

async function run(table: BenchTable, flags: Flags): Promise<void> {
  const { device, threads, seqlen, json, ...rest } = flags
  const report = await interruptible((signal) =>
    withProgress('measuring', (progress) =>
      benchmark({
        table,
        device,
        threads,
        ...given({ ...rest, tokens: seqlen }),
        signal,
        onProgress: (fraction, name) => progress.update(fraction, name),
      }),
    ),
  )
  process.stdout.write(json ? `${JSON.stringify(report)}\n` : text(report))
}

function text({ devices, lines, repeats }: BenchReport): string {
  const heads = devices.map(({ device, name, peaks }) => {
    const list = Object.entries(peaks).map(([dtype, peak]) => `${dtype} ${gigaflops(peak)}`)
    return `${device}: ${name}; peak ${list.join(', ')} GFLOP/s`
  })
  const rows = new Table({
    head: ['case', 'type', ...devices.flatMap(({ device }) => [`${device} ms`, 'GFLOP/s', 'of peak'])],
    colAligns: ['left', 'left', ...devices.flatMap(() => ['right', 'right', 'right'] as const)],
    style: { head: [], border: [] },
    chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' },
  })
  for (const { name, case: c, flop, results } of lines) {
    const cells = results.flatMap(({ seconds, ofPeak }) => [
      (seconds * 1e3).toPrecision(4),
      gigaflops(flop / seconds),
      `${(ofPeak * 100).toFixed(1)} %`,
    ])
    rows.push([name, c.dtype, ...cells])
  }
  return [...heads, rows.toString(), `Medians of ${repeats} runs.`, ''].join('\n')
}

const gigaflops = (flops: number) => (flops / 1e9).toFixed(1)
