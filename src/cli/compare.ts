import Table from 'cli-table3'
import { Command } from 'commander'
import { compare, type CompareReport } from '../sdk/compare.js'
import {
  given,
  deviceOptions,
  evaluationText,
  evaluationTextOptions,
  modelArgument,
  taskOptions,
  taskSettings,
  type DeviceFlags,
  type EvaluationTextFlags,
  type TaskFlags,
} from './arguments.js'
import { interruptible } from './interrupt.js'
import { showDownload } from './open-model.js'
import { withProgress } from './progress.js'

/** The command's flags as commander parses them; the options below say what each is. */
interface Flags extends DeviceFlags, EvaluationTextFlags, TaskFlags {
  out?: string
  force?: true
  json?: true
}

/** The command `sparsegpt compare`, which measures models side by side. */
export function compareCommand(): Command {
  const described = new Command('compare')
    .description('Measure models side by side: perplexity, accuracy, sparsity, size and speed.')
    .argument('<models...>', modelArgument)
  const command = evaluationTextOptions(described)
  return deviceOptions(
    taskOptions(command)
      .option('--out <dir>', 'folder for sparsegpt-report.json, and charts in sparsegpt-report.html')
      .option('--force', 'replace the report in the folder')
      .option('--json', 'print one JSON object on stdout'),
  ).action(run)
}

async function run(models: string[], flags: Flags): Promise<void> {
  const { device, dtype, threads, json, out, force } = flags
  const text = evaluationText(flags)
  const tasks = taskSettings(flags)
  const report = await interruptible((signal) =>
    withProgress('comparing', (progress) =>
      compare(models, {
        ...(text && { text }),
        ...(tasks && { tasks }),
        ...{ device, dtype, threads, signal },
        ...given({ out, force }),
        onDownload: showDownload(progress),
        onProgress: (fraction, model) => progress.update(fraction, model),
      }),
    ),
  )
  process.stdout.write(json ? `${JSON.stringify(report)}\n` : table(report))
}

function table({ models, harness }: CompareReport): string {
  const percent = (share: number) => `${(share * 100).toFixed(2)} %`
  const rows = new Table({
    head: ['', ...models.map(({ model }) => model)],
    colAligns: ['left', ...models.map(() => 'right' as const)],
    style: { head: [], border: [] },
    chars: { mid: '', 'left-mid': '', 'mid-mid': '', 'right-mid': '' },
  })
  const [first] = models
  if (first?.perplexity !== undefined)
    rows.push(['perplexity', ...models.map(({ perplexity }) => perplexity?.toFixed(3) ?? '')])
  for (const [i, { task }] of first?.tasks?.entries() ?? []) {
    for (const name of ['acc', 'acc_norm'] as const) {
      const metrics = models.map(({ tasks }) => tasks?.[i]?.[name])
      if (!metrics[0]) continue
      const shown = metrics.map((metric) =>
        metric ? [percent(metric.value), ...(metric.stderr === null ? [] : [percent(metric.stderr)])] : [],
      )
      rows.push([`${task} ${name}`, ...shown.map((parts) => parts.join(' ± '))])
    }
  }
  rows.push(
    ['sparsity', ...models.map(({ sparsity }) => percent(sparsity))],
    ['MB', ...models.map(({ bytes }) => (bytes / 1e6).toFixed(1))],
    ['tokens/s', ...models.map(({ tokensPerSecond }) => tokensPerSecond.toFixed(2))],
  )
  const whose = harness === undefined ? '' : `\nPrompts and scoring of ${harness}.`
  return `${rows.toString()}${whose}\n`
}
