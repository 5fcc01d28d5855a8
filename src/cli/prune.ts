import { Command, Option } from 'commander'
import { SparseGptError } from '../errors.js'
import { encodings, type EncodingName } from '../files/encodings/registry.js'
import type { Model } from '../sdk/model.js'
import { dryRun, prune, type DryRun, type PruneOptions } from '../sdk/prune.js'
import { sizeText } from '../sizes.js'
import type { PhaseSeconds } from '../pruning/phases.js'
import type { LayerReport, PruneProgress, PruneReport } from '../pruning/report.js'
import {
  calibrationOptions,
  calibrationSource,
  deviceOptions,
  given,
  modelArgument,
  number,
  pruningOptions,
  textArgument,
  type CalibrationFlags,
  type DeviceFlags,
  type PruningFlags,
  pruningSettings,
} from './arguments.js'
import { distillationPlace, distillationSummary } from './distill.js'
import { interruptible } from './interrupt.js'
import { showDownload, showEncoding, withModel } from './open-model.js'
import { perplexityLines, prepareEvaluation, withEvaluation, type Evaluated } from './evaluation.js'
import { ofRank, withRanks } from './ranks.js'
import { planText } from './plan.js'
import { duration, withProgress, type Progress } from './progress.js'
import { applyRecipe } from './recipe.js'
import { remark, verbosity } from './verbosity.js'

/** The command's flags as commander parses them; the options below say what each is. */
interface Flags extends DeviceFlags, PruningFlags, CalibrationFlags {
  out: string
  recipe?: string
  mask?: string
  dense?: string
  seed?: number
  saveTokens?: string
  encoding: EncodingName
  headBits?: 8
  offload?: string
  memory?: string
  eval?: string
  windows?: number
  sample?: string
  dryRun?: true
  profile?: true
  json?: true
  force?: true
  resume?: true
  ranks?: number
}

/** The command `sparsegpt prune`, which prunes a model. */
export function pruneCommand(): Command {
  const command = new Command('prune')
    .description('Prune a model and write it to a new folder.')
    .argument('[model]', modelArgument)
    .option(
      '--recipe <file>',
      'sparsegpt-report.json of a pruned model: prune as it says, but for what is given beside it',
    )
    .requiredOption('--out <dir>', 'folder for the pruned model')
    .option('--mask <file>', 'safetensors file with a mask for every layer to prune (1 = prune)')
    .option(
      '--dense <model>',
      'the dense model that --target dense, --reconstruct and --distill come near, if <model> was pruned before: its folder, or a hub id',
    )
    .option('--seed <n>', 'of the choice of windows (default: 0)', number)
    .option('--save-tokens <file>', 'save the encoded calibration text (.safetensors) to be given next time')
    .addOption(
      new Option('--encoding <name>', 'form of the pruned weights')
        .choices(Object.keys(encodings))
        .default('dense'),
    )
    .option(
      '--head-bits <n>',
      'bits of the head and the token embedding: 8 (with --encoding bitmask)',
      number,
    )
    .option('--offload <dir>', 'folder for activations while they wait, for models beyond memory')
    .option('--memory <size>', 'what the job may take, such as 16GB; --offload is then used only if needed')
    .option(`--eval ${textArgument}`, "measure the model's perplexity on this text, dense and pruned")
    .option('--windows <n>', 'evaluate only the first n windows', number)
    .option('--sample <prompt>', 'let the pruned model continue this text, by at most 64 tokens')
    .option('--dry-run', 'plan the job and check all that it reads, but prune and write nothing')
    .option('--profile', 'show where the time goes')
    .option('--json', 'print one JSON object on stdout')
    .option('--force', 'replace the output folder if it exists, and remove what a stopped job has left of it')
    .option(
      '--ranks <n>',
      'the number of ranks that mpirun or srun has started: another one is refused',
      number,
    )
    .option('--resume', 'go on with the job to this output folder that was stopped, if there is one')
  const withText = calibrationOptions(command, 'text whose activations the pruning preserves')
  return deviceOptions(pruningOptions(withText)).action(run)
}

async function run(typedModel: string | undefined, flags: Flags, command: Command): Promise<void> {
  const { device, dtype, threads, calibration, seqlen, samples, seed, textField, chat, saveTokens, ...rest } =
    flags
  const { eval: text, windows, sample: prompt, dryRun: isDry, json, ranks, recipe, ...options } = rest
  const [ofText] = Object.keys(given({ textField, chat, saveTokens }))
  if (calibration === undefined && ofText !== undefined) {
    const message = `option ${ofText}: is of the calibration text: give --calibration too`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  // Defaults of the command line do not go before what a recipe says.
  const isTyped = (name: string) => command.getOptionValueSource(name) !== 'default'
  const ofCalibration = {
    ...(calibration !== undefined && calibrationSource({ calibration, ...given({ textField, chat }) })),
    ...given({ samples, seed, saveTokens, sequenceLength: seqlen }),
  }
  const withText =
    calibration !== undefined || (recipe !== undefined && Object.keys(ofCalibration).length > 0)
  const typed = Object.entries(pruningSettings(options)).filter(
    ([name]) => recipe === undefined || isTyped(name),
  )
  const job = await applyRecipe(recipe, typedModel, {
    ...Object.fromEntries(typed),
    ...(withText && { calibration: ofCalibration }),
  })
  const { model } = job
  const load = {
    device: isTyped('device') ? device : (job.load.device ?? device),
    dtype: isTyped('dtype') ? dtype : (job.load.dtype ?? dtype),
    threads,
  }
  const { result, reports } = await withRanks(ranks, async (communicator) => {
    const optionsOf = (progress: Progress, signal: AbortSignal) => {
      const all: object = {
        ...job.options,
        ...given({ communicator }),
        ...(job.options['calibration'] !== undefined && {
          calibration: {
            ...(job.options['calibration'] as object),
            onDownload: showDownload(progress),
            onEncode: showEncoding(progress),
          },
        }),
        signal,
        onProgress: (at: PruneProgress) => {
          progress.update(at.fraction, place(at))
          if (at.layer && verbosity().verbose && leads) remark(layerLine(at.layer))
        },
      }
      // Whether flags fit each other is for the SDK to say.
      return all as PruneOptions
    }
    const leads = (communicator?.rank ?? 0) === 0
    const result = await interruptible((signal) =>
      withModel(model, ofRank(load, communicator), signal, async (opened) => {
        const evaluation = { text, seqlen, windows, signal, communicator }
        // A prompt that cannot be read is to fail before hours of work.
        if (prompt !== undefined && leads) await (await opened.tokenizer()).encode(prompt, { signal })
        if (isDry) {
          await prepareEvaluation(opened, evaluation)
          const checked = await withProgress('checking', (progress) =>
            dryRun(opened, optionsOf(progress, signal)),
          )
          return { checked, device: opened.device }
        }
        const done = await withEvaluation(opened, evaluation, () =>
          withProgress('pruning', (progress) => {
            progress.update(0, 'reading the calibration text')
            return prune(opened, optionsOf(progress, signal))
          }),
        )
        const { report } = done
        if (prompt === undefined || done.failure || !leads) return { report, failure: done.failure }
        const { sample, failure } = await continued(opened, prompt, signal)
        return { report: { ...report, ...given({ sample }) }, failure }
      }),
    )
    return { result, reports: leads }
  })
  if (!reports) return
  if ('checked' in result) {
    const { checked, device } = result
    process.stdout.write(
      json ? `${JSON.stringify(checked)}\n` : `${planText(checked.plan, device!)}${dryLine(checked)}`,
    )
    return
  }
  const { report, failure } = result
  process.stdout.write(json ? `${JSON.stringify({ ...report, model })}\n` : summary(report))
  // The pruned model stands, and so does its report.
  if (failure) throw failure
  if (!json && process.stderr.isTTY) remark(nextSteps(report.out ?? '', options.encoding))
}

/** What a model makes of a prompt. */
interface Sample {
  prompt: string
  text: string
}

/** What the model makes of a prompt, or why it makes nothing of it. */
async function continued(
  model: Model,
  prompt: string,
  signal: AbortSignal,
): Promise<{ sample?: Sample; failure?: Error }> {
  try {
    const { text } = await model.generate(prompt, { maxTokens: 64, signal }).result
    return { sample: { prompt, text } }
  } catch (error) {
    return { failure: error as Error }
  }
}

const dryLine = ({ windows }: DryRun) =>
  `Nothing is missing${windows > 0 ? `: ${windows} calibration windows can be drawn` : ''}. Nothing was written.\n`

const layerLine = ({ name, rows, columns, sparsity, error, seconds }: LayerReport) =>
  `${name} [${rows}, ${columns}]: ${percent(sparsity)} zeros${error === undefined ? '' : `, relative output error ${error.toPrecision(3)}`}, ${seconds.toFixed(2)} s`

/** What people do next with a pruned model. */
function nextSteps(out: string, encoding: EncodingName): string {
  const folder = /^[\w./-]+$/.test(out) ? out : `'${out.replaceAll("'", "'\\''")}'`
  return [
    'Next:',
    `  sparsegpt eval ${folder} --eval wikitext2`,
    `  sparsegpt generate ${folder} --prompt "Once upon a time"`,
    ...(encoding === 'dense'
      ? [`  sparsegpt pack ${folder} --out ${folder}-packed    # without its zeros`]
      : []),
  ].join('\n')
}

function place({
  scheduleStep,
  scheduleSteps,
  block,
  blocks,
  phase,
  layer,
  distillation,
}: PruneProgress): string {
  const step = scheduleSteps > 1 ? `step ${scheduleStep + 1}/${scheduleSteps}, ` : ''
  return distillation
    ? `${step}${distillationPlace(distillation)}`
    : `${step}block ${block + 1}/${blocks}: ${layer?.name ?? phase}`
}

function summary(result: PruneReport & Evaluated & { sample?: Sample }): string {
  const starved = result.layers.filter(({ fewTokens }) => fewTokens !== undefined)
  const raised = result.layers.filter(({ dampening }) => dampening !== undefined)
  return [
    `${result.out ?? ''}: ${result.layers.length} layers pruned to ${percent(result.sparsity.achieved)} zeros ` +
      `(${result.method}) in ${duration(result.seconds)}, peak memory ${sizeText(result.peakRssBytes)}`,
    ...(result.targets
      ? [
          `  by block: ${result.targets.map((share) => (share === null ? 'dense' : percent(share))).join(', ')}`,
        ]
      : []),
    ...raised.map((layer) => `  ${layer.name}: dampening raised to ${layer.dampening ?? 0}`),
    ...starved.map(
      (layer) => `  ${layer.name}: only ${layer.fewTokens ?? 0} tokens came: pruned for all experts' inputs`,
    ),
    ...(result.phases ? [`  ${phases(result.phases, result.seconds)}`] : []),
    ...reconstruction(result),
    ...(result.distillation ?? []).map((losses) => `  ${distillationSummary(losses)}`),
    ...perplexityLines(result, ['before', 'pruned']),
    ...(result.sample ? [`sample: ${result.sample.prompt}${result.sample.text}`] : []),
    '',
  ].join('\n')
}

/** What fitting the blocks has gained; all layers of a block have its record. */
function reconstruction({ layers }: PruneReport): string[] {
  const blocks = new Set(layers.flatMap(({ reconstruction }) => reconstruction ?? []))
  const mean = (when: 'before' | 'after') =>
    percent([...blocks].reduce((sum, { heldOut }) => sum + heldOut[when], 0) / blocks.size)
  if (blocks.size === 0) return []
  return [
    `  relative error of the blocks' outputs on held-out text: ${mean('before')} before the reconstruction, ${mean('after')} after`,
  ]
}

const phases = (seconds: PhaseSeconds, total: number) =>
  Object.entries(seconds)
    .map(
      ([phase, spent]: [string, number]) =>
        `${phase} ${spent.toFixed(1)} s (${((spent / total) * 100).toFixed(0)} %)`,
    )
    .join(', ')

const percent = (share: number) => `${(share * 100).toFixed(2)} %`
