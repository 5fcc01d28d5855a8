import { Command } from 'commander'
import { distill, type DistillReport } from '../sdk/distill.js'
import type { DistillationProgress } from '../training/distillation.js'
import type { DistillationLosses } from '../training/saved-training.js'
import {
  calibrationOptions,
  calibrationSource,
  deviceOptions,
  given,
  modelArgument,
  number,
  textArgument,
  type CalibrationFlags,
  type DeviceFlags,
} from './arguments.js'
import { perplexityLine, withEvaluation, type MeasuredPerplexity } from './evaluation.js'
import { interruptible } from './interrupt.js'
import { showDownload, showEncoding, withModel } from './open-model.js'
import { duration, withProgress } from './progress.js'

/** The command's flags as commander parses them; the options below say what each is. */
interface Flags extends DeviceFlags, CalibrationFlags {
  dense: string
  out: string
  samples?: number
  seqlen?: number
  seed?: number
  epochs?: number
  learningRate?: number
  batch?: number
  holdout?: number
  hiddenWeight?: number
  eval?: string
  json?: true
  force?: true
  resume?: true
}

/** The command `sparsegpt distill`, which trains a pruned model to be like the dense one. */
export function distillCommand(): Command {
  const command = new Command('distill')
    .description("Train a pruned model to give the dense model's distributions; zeros stay zero.")
    .argument('<pruned>', modelArgument)
    .requiredOption('--dense <model>', 'the dense model: its folder, or a hub id')
    .requiredOption('--out <dir>', 'folder for the trained model')
    .option(
      '--samples <n>',
      'windows drawn from the text (default: all of it; 128 of generated text)',
      number,
    )
    .option('--seqlen <n>', "tokens per window (default: the model's context, at most 2048)", number)
    .option('--seed <n>', 'of the choice and order of windows (default: 0)', number)
    .option('--epochs <n>', 'how often the windows are gone through (default: 1)', number)
    .option(
      '--learning-rate <rate>',
      "the optimizer's at its highest, as a share of the weights' size (default: 0.004)",
      number,
    )
    .option('--batch <windows>', 'windows of a step (default: 4)', number)
    .option('--holdout <share>', 'share of the windows to judge by (default: 0.05)', number)
    .option(
      '--hidden-weight <w>',
      'weight of the relative error of the last hidden states (default: 0)',
      number,
    )
    .option(`--eval ${textArgument}`, "measure the trained model's perplexity on this text")
    .option('--json', 'print one JSON object on stdout')
    .option('--force', 'replace the output folder if it exists, and remove what a stopped job has left of it')
    .option('--resume', 'go on with the job to this output folder that was stopped, if there is one')
  const withText = calibrationOptions(command, 'text to train on (default: what the dense model generates)')
  return deviceOptions(withText).action(run)
}

async function run(model: string, flags: Flags): Promise<void> {
  const { device, dtype, threads, calibration, textField, chat, samples, seqlen, seed, json, ...rest } = flags
  const { eval: text, ...options } = rest
  const { report, failure } = await interruptible((signal) =>
    withModel(model, { device, dtype, threads }, signal, (opened) =>
      withEvaluation(opened, { text, seqlen, signal }, () =>
        withProgress('distilling', (progress) => {
          progress.update(0, 'reading the text')
          return distill(opened, {
            ...given(options),
            dense: options.dense,
            calibration: {
              ...calibrationSource(given({ calibration, textField, chat })),
              ...given({ samples, seed, sequenceLength: seqlen }),
              onDownload: showDownload(progress),
              onEncode: showEncoding(progress),
            },
            onDownload: showDownload(progress),
            signal,
            onGenerate: (share) => progress.update(0, `generating the text: ${Math.floor(100 * share)} %`),
            onProgress: (at) => progress.update(at.step / at.steps, distillationPlace(at)),
          })
        }),
      ),
    ),
  )
  process.stdout.write(json ? `${JSON.stringify({ ...report, model })}\n` : summary(report))
  // The trained model stands, and so does its report.
  if (failure) throw failure
}

function summary(report: DistillReport & MeasuredPerplexity): string {
  const { out, losses, seconds, peakRssBytes, sparsity } = report
  return [
    `${out ?? ''}: ${losses.training.length} steps in ${duration(seconds)}, peak memory ${(peakRssBytes / 1e9).toFixed(2)} GB, ` +
      `${(sparsity.achieved * 100).toFixed(2)} % zeros`,
    distillationSummary(losses),
    ...perplexityLine(report),
    '',
  ].join('\n')
}

/** Where a distillation stands, for people. */
export const distillationPlace = ({ step, steps, training, heldOut }: DistillationProgress): string =>
  `training step ${step}/${steps}: loss ${training.toFixed(4)}, held out ${heldOut.toFixed(4)}`

/** What a distillation came to, for people. */
export function distillationSummary({ heldOut, bestStep }: DistillationLosses): string {
  const before = heldOut[0]?.loss ?? 0
  const after = heldOut.find(({ step }) => step === bestStep)?.loss ?? before
  return `divergence from the dense model on held-out text: ${before.toFixed(4)} before, ${after.toFixed(4)} after (nats per token)`
}
