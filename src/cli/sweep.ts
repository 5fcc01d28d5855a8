import Table from 'cli-table3'
import { Command } from 'commander'
import { methodNames, type PruningMethod } from '../pruning/methods/names.js'
import { sweep, type SweepReport } from '../sdk/sweep.js'
import {
  calibrationOptions,
  calibrationSource,
  deviceOptions,
  given,
  modelArgument,
  number,
  numbers,
  textArgument,
  textSource,
  type CalibrationFlags,
  type DeviceFlags,
} from './arguments.js'
import { interruptible } from './interrupt.js'
import { showDownload } from './open-model.js'
import { withProgress } from './progress.js'

interface Flags extends DeviceFlags, CalibrationFlags {
  sparsity?: number[]
  pattern?: string[]
  methods?: PruningMethod[]
  samples?: number
  seqlen?: number
  seed?: number
  eval: string
  windows?: number
  out?: string
  force?: true
  json?: true
}

const list = (text: string) => text.split(',').map((part) => part.trim())

/** The command `sparsegpt sweep`, which measures perplexity over sparsity. */
export function sweepCommand(): Command {
  const command = new Command('sweep')
    .description(
      'Prune a model to several sparsities with several methods, and measure the perplexity of each.',
    )
    .argument('<model>', modelArgument)
    .option(
      '--sparsity <shares>',
      'shares of the weights to prune, with commas between them: 0.3,0.5,0.7',
      numbers,
    )
    .option('--pattern <patterns>', 'patterns to prune to, with commas between them: 2:4,4:8', list)
    .option(
      '--methods <names>',
      `methods, with commas between them: ${methodNames.join(', ')} (default: sparsegpt,wanda,magnitude)`,
      list,
    )
    .requiredOption(`--eval ${textArgument}`, 'text to measure the perplexity on')
    .option('--windows <n>', 'evaluate only the first n windows', number)
    .option('--samples <n>', 'calibration windows (default: 128)', number)
    .option(
      '--seqlen <n>',
      "tokens per window of both texts (default: the model's context, at most 2048)",
      number,
    )
    .option('--seed <n>', 'of the choice of windows (default: 0)', number)
    .option('--out <dir>', 'folder for sparsegpt-report.json, and the curves in sparsegpt-report.html')
    .option('--force', 'replace the report in the folder')
    .option('--json', 'print one JSON object on stdout')
  return deviceOptions(calibrationOptions(command, 'text whose activations the pruning preserves')).action(
    run,
  )
}

async function run(model: string, flags: Flags): Promise<void> {
  const { calibration, textField, chat, samples, seqlen, seed, pattern, windows, json, ...rest } = flags
  const { eval: text, ...options } = rest
  const report = await interruptible((signal) =>
    withProgress('sweeping', (progress) => {
      progress.update(0, 'reading the texts')
      return sweep(model, {
        ...given({ ...options, patterns: pattern }),
        text: { ...textSource(text), ...given({ windows, sequenceLength: seqlen }) },
        ...(calibration !== undefined && {
          calibration: {
            ...calibrationSource({ calibration, ...given({ textField, chat }) }),
            ...given({ samples, seed, sequenceLength: seqlen }),
          },
        }),
        signal,
        onDownload: showDownload(progress),
        onProgress: (fraction, name) => progress.update(fraction, name),
      })
    }),
  )
  process.stdout.write(json ? `${JSON.stringify(report)}\n` : table(report))
}

function table({ points, dense, windows, sequenceLength }: SweepReport): string {
  const goalOf = ({ pattern, sparsity }: SweepReport['points'][number]) =>
    pattern ?? `${(sparsity * 100).toFixed(1)} %`
  const methods = [...new Set(points.map(({ method }) => method))]
  const rows = new Table({
    head: ['', ...methods],
    colAligns: ['left', ...methods.map(() => 'right' as const)],
    style: { head: [], border: [] },
    chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' },
  })
  rows.push(['dense', ...methods.map(() => dense.toFixed(3))])
  for (const goal of new Set(points.map(goalOf))) {
    const own = points.filter((point) => goalOf(point) === goal)
    rows.push([
      goal,
      ...methods.map((method) => own.find((point) => point.method === method)?.perplexity.toFixed(3) ?? ''),
    ])
  }
  return `${rows.toString()}\nperplexity over ${windows} windows of ${sequenceLength} tokens\n`
}
