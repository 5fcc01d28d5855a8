import Table from 'cli-table3'
import { Command, Option } from 'commander'
import { methodNames, type PruningMethod } from '../pruning/methods/names.js'
import { sensitivity, type SensitivityReport } from '../sdk/sensitivity.js'
import {
  calibrationOptions,
  calibrationSource,
  deviceOptions,
  given,
  modelArgument,
  number,
  type CalibrationFlags,
  type DeviceFlags,
} from './arguments.js'
import { interruptible } from './interrupt.js'
import { showDownload, showEncoding, withModel } from './open-model.js'
import { withProgress } from './progress.js'

interface Flags extends DeviceFlags, CalibrationFlags {
  each?: 'block' | 'layer'
  sparsity?: number
  pattern?: string
  method?: PruningMethod
  samples?: number
  seqlen?: number
  seed?: number
  out?: string
  force?: true
  json?: true
}

/** The command `sparsegpt sensitivity`, which measures what pruning each part of a model alone does. */
export function sensitivityCommand(): Command {
  const command = new Command('sensitivity')
    .description('Measure what it does to the predictions when each layer, or each block, alone is pruned.')
    .argument('<model>', modelArgument)
    .addOption(
      new Option('--each <part>', 'what is pruned alone (default: layer)').choices(['block', 'layer']),
    )
    .option('--sparsity <share>', 'share of the weights to prune (default: 0.5)', number)
    .option('--pattern <n:m>', 'prune n of every m neighbours, in the place of --sparsity')
    .addOption(
      new Option('--method <method>', 'what chooses the weights (default: sparsegpt)').choices(methodNames),
    )
    .option('--samples <n>', 'calibration windows (default: 128)', number)
    .option('--seqlen <n>', "tokens per window (default: the model's context, at most 2048)", number)
    .option('--seed <n>', 'of the choice of windows (default: 0)', number)
    .option('--out <dir>', 'folder for sparsegpt-report.json, and the curves in sparsegpt-report.html')
    .option('--force', 'replace the report in the folder')
    .option('--json', 'print one JSON object on stdout')
  return deviceOptions(calibrationOptions(command, 'text to calibrate and to compare on')).action(run)
}

async function run(path: string, flags: Flags): Promise<void> {
  const { device, dtype, threads, calibration, textField, chat, samples, seqlen, seed, json, ...options } =
    flags
  const report = await interruptible((signal) =>
    withModel(path, { device, dtype, threads }, signal, (model) =>
      withProgress('measuring', (progress) => {
        progress.update(0, 'reading the calibration text')
        return sensitivity(model, {
          ...given(options),
          calibration: {
            ...calibrationSource(given({ calibration, textField, chat })),
            ...given({ samples, seed, sequenceLength: seqlen }),
            onDownload: showDownload(progress),
            onEncode: showEncoding(progress),
          },
          signal,
          onProgress: (block, blocks) => progress.update(block / (blocks + 1), `block ${block}/${blocks}`),
        })
      }),
    ),
  )
  process.stdout.write(json ? `${JSON.stringify({ ...report, model: path })}\n` : table(report))
}

/** The parts, the most sensitive ones first. */
function table({ parts, each, method, sparsity }: SensitivityReport): string {
  const rows = new Table({
    head: [each, 'nats per token'],
    colAligns: ['left', 'right'],
    style: { head: [], border: [] },
    chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' },
  })
  for (const { name, damage } of [...parts].sort((a, b) => b.damage - a.damage))
    rows.push([name, damage.toExponential(3)])
  return `${rows.toString()}\ndivergence from the dense model with one ${each} alone pruned to ${(sparsity * 100).toFixed(1)} % zeros (${method})\n`
}
