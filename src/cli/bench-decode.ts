import Table from 'cli-table3'
import { Command } from 'commander'
import { decodeModels } from '../sdk/benchmark/case.js'
import {
  benchmarkDecode,
  decodeGoals,
  decodeValues,
  type DecodeBenchReport,
  type DecodeGoal,
  type DecodeValues,
} from '../sdk/benchmark/decode.js'
import { deviceOptions, dtypeOption, given, modelArgument, number, type DeviceFlags } from './arguments.js'
import { interruptible } from './interrupt.js'
import { withProgress } from './progress.js'

/** The command's flags as commander parses them; the options below say what each is. */
interface Flags extends DeviceFlags {
  sizes?: string[]
  goals?: DecodeGoal[]
  values?: DecodeValues[]
  maxTokens?: number
  repeats?: number
  json?: true
}

/** The command `sparsegpt bench decode`, which measures generation. */
export function benchDecodeCommand(): Command {
  const list = (names: string) => names.split(',')
  const command = new Command('decode')
    .description(
      'Measure how fast one token after another is generated, beside the rate at which this machine reads memory.',
    )
    .argument('[model]', `${modelArgument}, measured as it is (default: random weights, at every goal)`)
    .option(
      '--sizes <list>',
      `of random weights: ${Object.keys(decodeModels).join(', ')} (default: llama-1.1b)`,
      list,
    )
    .option('--goals <list>', `what is pruned of them: ${decodeGoals.join(', ')} (default: all)`, list)
    .option('--values <list>', `what is kept of each weight: ${decodeValues.join(', ')} (default: all)`, list)
    .option('--max-tokens <n>', 'tokens of a run (default: 16)', number)
    .option('--repeats <n>', 'runs of which the median is shown (default: 5)', number)
    .option('--json', 'print one JSON object on stdout')
  return deviceOptions(command, dtypeOption('element type of activations').default('bfloat16')).action(run)
}

async function run(model: string | undefined, { json, ...flags }: Flags): Promise<void> {
  const report = await interruptible((signal) =>
    withProgress('measuring', (progress) =>
      benchmarkDecode({
        ...given({ ...flags, model }),
        signal,
        onProgress: (fraction, name) => progress.update(fraction, name),
      }),
    ),
  )
  process.stdout.write(json ? `${JSON.stringify(report)}\n` : text(report))
}

function text({ device, readRate, repeats, lines }: DecodeBenchReport): string {
  const rate = readRate === undefined ? '' : `; reads ${(readRate / 1e9).toFixed(1)} GB/s`
  const rows = new Table({
    head: ['model', 'pruned', 'values', 'MB/token', 'tokens/s', 'of reading', 'ms/block'],
    colAligns: ['left', 'left', 'left', 'right', 'right', 'right', 'right'],
    style: { head: [], border: [] },
    chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' },
  })
  for (const line of lines) {
    const share = line.ofReadRate === undefined ? '' : `${(line.ofReadRate * 100).toFixed(0)} %`
    rows.push([
      line.model,
      line.goal ?? 'as it is',
      line.values ?? '',
      (line.bytesPerToken / 1e6).toFixed(1),
      line.tokensPerSecond.toFixed(2),
      share,
      (line.blockSeconds * 1e3).toPrecision(3),
    ])
  }
  return [`${device.device}: ${device.name}${rate}`, rows.toString(), `Medians of ${repeats} runs.`, ''].join(
    '\n',
  )
}
