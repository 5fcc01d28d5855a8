import { Command } from 'commander'
import { SparseGptError } from '../errors.js'
import { perplexity, type Perplexity, type PerplexityOptions } from '../sdk/perplexity.js'
import type { Model } from '../sdk/model.js'
import { evaluateTasks, type TaskReport } from '../sdk/tasks.js'
import {
  deviceOptions,
  evaluationText,
  evaluationTextOptions,
  given,
  modelArgument,
  number,
  taskOptions,
  taskSettings,
  type DeviceFlags,
  type EvaluationTextFlags,
  type TaskFlags,
} from './arguments.js'
import { interruptible } from './interrupt.js'
import { showDownload, showEncoding, withModel } from './open-model.js'
import { withProgress } from './progress.js'
import { ofRank, withRanks } from './ranks.js'

/** The command's flags as commander parses them; the options below say what each is. */
interface Flags extends DeviceFlags, EvaluationTextFlags, TaskFlags {
  against?: string
  ranks?: number
  json?: true
}

/** The command `sparsegpt eval`, which measures a model's perplexity, and its accuracy on tasks. */
export function evalCommand(): Command {
  const described = new Command('eval')
    .description("Measure a model's perplexity on a text, or its accuracy on tasks.")
    .argument('<model>', modelArgument)
  const command = evaluationTextOptions(described)
    .option(
      '--against <model>',
      'also measure how far the predictions are from those of this model, such as the dense one: its folder, or a hub id',
    )
    .option(
      '--ranks <n>',
      'the number of ranks that mpirun or srun has started: another one is refused',
      number,
    )
  return deviceOptions(taskOptions(command).option('--json', 'print one JSON object on stdout')).action(run)
}

async function run(path: string, flags: Flags): Promise<void> {
  const { tasks, against, ranks, json } = flags
  const source = evaluationText(flags, given({ against }))
  if (source === undefined && tasks === undefined) {
    throw new SparseGptError('INVALID_OPTION', 'option eval: give --eval, --tasks or both')
  }
  const chosen = taskSettings(flags)
  const { text, report, reports } = await withRanks(ranks, async (communicator) => {
    if (chosen && communicator) {
      const message = 'option tasks: one process answers them: evaluate tasks without mpirun or srun'
      throw new SparseGptError('INVALID_OPTION', message)
    }
    const result = await interruptible((signal) =>
      withModel(path, ofRank(flags, communicator), signal, async (model) => ({
        text: source && (await measure(model, { ...source, ...given({ against, communicator }) }, signal)),
        report: chosen && (await answer(model, chosen, signal)),
      })),
    )
    return { ...result, reports: (communicator?.rank ?? 0) === 0 }
  })
  if (!reports) return
  if (json) {
    const { sequenceLength, ...rest } = text ?? {}
    const ofWindows = text && { ...rest, seqlen: sequenceLength }
    process.stdout.write(`${JSON.stringify({ ...ofWindows, ...(report && { tasks: report }) })}\n`)
  } else {
    if (text) process.stdout.write(perplexityText(text))
    if (report) process.stdout.write(tasksText(report))
  }
}

/** Measures the perplexity with progress shown. */
function measure(model: Model, options: PerplexityOptions, signal: AbortSignal): Promise<Perplexity> {
  return withProgress('evaluating', (progress) =>
    perplexity(model, {
      ...options,
      onDownload: showDownload(progress),
      onEncode: showEncoding(progress),
      signal,
      onProgress: (fraction) => progress.update(fraction),
    }),
  )
}

/** Evaluates tasks with progress shown. */
function answer(
  model: Model,
  chosen: NonNullable<ReturnType<typeof taskSettings>>,
  signal: AbortSignal,
): Promise<TaskReport> {
  return withProgress('answering', (progress) =>
    evaluateTasks(model, {
      ...chosen,
      onDownload: showDownload(progress),
      signal,
      onProgress: (fraction, task) => progress.update(fraction, task),
    }),
  )
}

function perplexityText({ perplexity, windows, sequenceLength, against }: Perplexity): string {
  const apart = against
    ? `; ${against.divergence.toFixed(4)} nats per token from the other model, the same likeliest token at ` +
      `${(against.top1Agreement * 100).toFixed(2)} %, ${against.perplexityRatio.toFixed(3)} times its perplexity`
    : ''
  return `perplexity ${perplexity.toFixed(3)} over ${windows} windows of ${sequenceLength} tokens${apart}\n`
}

function tasksText({ harness, shots, results }: TaskReport): string {
  const percent = (share: number) => `${(share * 100).toFixed(2)} %`
  const lines = results.map(({ task, samples, acc, acc_norm, perplexity }) => {
    const values = Object.entries({ acc, acc_norm }).flatMap(([name, metric]) =>
      metric
        ? [`${name} ${percent(metric.value)}${metric.stderr === null ? '' : ` ± ${percent(metric.stderr)}`}`]
        : [],
    )
    const rest = perplexity === undefined ? [] : [`perplexity ${perplexity.toFixed(3)}`]
    return `${task}: ${[...values, ...rest].join(', ')} (${samples} questions)`
  })
  return `${lines.join('\n')}\n${shots} examples before each question; prompts and scoring of ${harness}\n`
}
