import { existsSync } from 'node:fs'
import { InvalidArgumentError, Option, type Command } from 'commander'
import { SparseGptError } from '../errors.js'
import { taskNames, type TaskName } from '../evaluation/tasks.js'
import type { DeviceName } from '../native/device.js'
import { allocationNames } from '../pruning/allocation/names.js'
import { methodOptions } from '../pruning/methods/methods.js'
import {
  defaultMethod,
  methodNames,
  type MethodOptions,
  type PruningMethod,
} from '../pruning/methods/names.js'
import { qualities, type Quality } from '../pruning/options.js'
import { quoted } from '../quoted.js'
import { datasetNames, type DatasetName } from '../text/dataset.js'
import { documentFormat } from '../text/documents.js'

/**
 * The number that was typed; which ones are allowed is the SDK's business. Throws InvalidArgumentError for any other
 * text.
 */
export function number(text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('It must be a number.')
  return value
}

/** The numbers that were typed, with commas between them. Throws InvalidArgumentError for any other text. */
export const numbers = (text: string) => text.split(',').map(number)

/** Of an option whose kind the SDK knows. */
const numberOrText = (text: string) =>
  text.trim() === '' || Number.isNaN(Number(text)) ? text : Number(text)

/** The description of the argument `<model>`. */
export const modelArgument = 'folder in Hugging Face layout, or a hub id such as facebook/opt-125m'

/** The flags that deviceOptions() adds. */
export interface DeviceFlags {
  /** The device that computes. */
  device: DeviceName
  /** The element type of activations. */
  dtype: 'float32' | 'bfloat16'
  /** The number of CPU threads; 0 for one per core. */
  threads: number
}

/** The option `--dtype`, which means something else in every command. */
export const dtypeOption = (description: string) =>
  new Option('--dtype <dtype>', description).choices(['float32', 'bfloat16'])

/** Adds the options that say where and how the model runs, which are loadModel's; returns the command. */
export function deviceOptions(
  command: Command,
  dtype = dtypeOption('element type of activations').default('float32'),
): Command {
  return command
    .option('--device <device>', 'where to compute: auto, cpu, cuda, or cuda:1 for the second GPU', 'auto')
    .addOption(dtype)
    .option('--threads <n>', 'CPU threads; 0 for one per core', number, 0)
}

/** The flags that pruningOptions() adds; undefined ones are left to the SDK. */
export interface PruningFlags extends MethodOptions {
  /** The method that chooses what is pruned. */
  method?: PruningMethod
  /** The share of the weights to prune, in [0, 1). */
  sparsity?: number
  /** Growing shares, to prune to one after the other. */
  schedule?: number[]
  /** How much time is spent on the quality. */
  quality?: Quality
  /** The n:m pattern, such as '2:4'. */
  pattern?: string
  /** How the goal is spread over the layers: a name, or a recipe's file. */
  allocation?: string
  /** The number of calibration windows. */
  samples?: number
  /** The number of tokens of a window. */
  seqlen?: number
  /** The number of bits that the kept weights are rounded to. */
  bits?: number
  /** The neighbours in a row that have a grid of their own. */
  groupSize?: number
  /** Whether grids are symmetric. */
  symmetric?: true
  /** Whether the ranges of grids are searched. */
  clip?: true
  /** Whether the kept weights are fitted once more. */
  refit?: true
  /** Whether zeros of the model may become other weights. */
  regrow?: true
  /** What a layer's outputs are to come near. */
  target?: 'own' | 'dense'
  /** The share of the dense model's inputs in a dense target. */
  alpha?: number
  /** Whether pruned blocks are fitted to the dense model, or for how many epochs. */
  reconstruct?: true | number
  /** Whether the whole model is trained afterwards, or for how many epochs. */
  distill?: true | number
  /** The highest learning rate of the reconstruction. */
  learningRate?: number
  /** The calibration windows of a step of the reconstruction. */
  batch?: number
  /** The blocks behind which the reconstruction measures the error. */
  window?: number
  /** The unit that sees already pruned inputs. */
  sequential?: 'block' | 'layer'
  /** The groups of windows whose Gram matrices are added in pairs. */
  windowGroups?: number
  /** The regular expression that names of layers must match to be pruned. */
  include?: string
  /** The regular expression of the names of layers that stay dense. */
  exclude?: string
  /** The first block to prune, from 0. */
  minBlock?: number
  /** The block to stop before. */
  maxBlock?: number
}

/**
 * Adds the options that say what is pruned and how, as far as no file is needed: those that `plan` has too; returns the
 * command.
 */
export function pruningOptions(command: Command): Command {
  for (const [name, { description = '' }] of Object.entries(methodOptions.shape)) {
    const flag = name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
    command.option(`--${flag} <value>`, description, numberOrText)
  }
  return command
    .addOption(
      new Option('--method <method>', `what chooses the weights (default: ${defaultMethod})`).choices(
        methodNames,
      ),
    )
    .option('--sparsity <share>', 'share of the weights to prune (default: 0.5)', number)
    .option(
      '--schedule <shares>',
      'prune to growing shares one after the other, such as 0.5,0.65,0.8 (with --reconstruct or --distill after each)',
      numbers,
    )
    .addOption(
      new Option(
        '--quality <tier>',
        'time spent on quality: fast (the default); good: --sequential layer --target dense --reconstruct 1; best: 4 epochs, and --distill',
      ).choices(qualities),
    )
    .option('--pattern <n:m>', 'prune n of every m neighbours, such as 2:4 or 4:8')
    .option(
      `--allocation <${allocationNames.join('|')}|FILE>`,
      'how a sparsity is spread over the layers, FILE being a recipe in JSON (default: uniform)',
    )
    .option('--samples <n>', 'calibration windows (default: 128)', number)
    .option('--seqlen <n>', "tokens per window (default: the model's context, at most 2048)", number)
    .option('--bits <n>', 'also round the kept weights to this many bits', number)
    .option(
      '--group-size <n>',
      'neighbours in a row with a grid of their own: 32, 64 or 128 (default: the row)',
      number,
    )
    .option('--symmetric', 'grids reach as far below zero as above it')
    .option('--clip', "search each grid's range for the least squared error")
    .option('--refit', 'fit the kept weights to the outputs once more (admm always does)')
    .option('--regrow', 'let zeros of a sparse model become other weights (default: they stay zeros)')
    .addOption(
      new Option(
        '--target <target>',
        "what a layer's outputs are to come near: its own, or the dense model's too (default: own)",
      ).choices(['own', 'dense']),
    )
    .option('--alpha <share>', "share of the dense model's inputs in a dense target (default: 0.5)", number)
    .option(
      '--reconstruct [epochs]',
      "fit every pruned block to the dense model's outputs (4 epochs by default)",
      number,
    )
    .option(
      '--distill [epochs]',
      'then train the whole model on all of the calibration text to be like the dense one (1 epoch by default)',
      number,
    )
    .option(
      '--learning-rate <rate>',
      "of the reconstruction's optimizer at its highest, as a share of the weights' size (default: 0.015)",
      number,
    )
    .option('--batch <windows>', 'calibration windows of a step of the reconstruction (default: 1)', number)
    .option(
      '--window <blocks>',
      'measure the reconstruction behind the next block too (2; default: 1)',
      number,
    )
    .option(
      '--window-groups <n>',
      'groups of windows whose Gram matrices are added in pairs, so that the result is the same on 1, 2, 4 … n ranks (default: the ranks)',
      number,
    )
    .addOption(
      new Option(
        '--sequential <unit>',
        'what sees already pruned inputs: the next block, or the next layer too (default: block)',
      ).choices(['block', 'layer']),
    )
    .option('--include <regexp>', 'prune only layers whose name matches')
    .option('--exclude <regexp>', 'leave layers dense whose name matches')
    .option('--min-block <i>', 'first block to prune, from 0', number)
    .option('--max-block <j>', 'block to stop before', number)
}

/** The flags of pruningOptions() as the SDK's options. Throws INVALID_OPTION for flags of a reconstruction where there is none. */
export function pruningSettings<Flags extends Partial<PruningFlags>>({
  reconstruct,
  learningRate,
  batch,
  window,
  ...flags
}: Flags) {
  const details = given({
    learningRate,
    batch,
    window,
    ...(typeof reconstruct === 'number' && { epochs: reconstruct }),
  })
  const [detail] = Object.keys(details)
  const { quality = 'fast' } = flags
  if (reconstruct === undefined && detail !== undefined && quality === 'fast') {
    const message = `option ${detail}: is of the reconstruction: give --reconstruct or --quality good too`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  return given({ ...flags, reconstruct: detail === undefined ? reconstruct : details })
}

/** The flags that taskOptions() adds. */
export interface TaskFlags {
  /** The names of the tasks. */
  tasks?: TaskName[]
  /** The number of examples before each question. */
  shots?: number
  /** The number of questions of each task. */
  limit?: number
  /** The folder that has the tasks' data. */
  taskData?: string
}

/** The flags of evaluationTextOptions(). */
export interface EvaluationTextFlags {
  eval?: string
  dataset?: string
  textField?: string
  seqlen?: number
  windows?: number
}

/** Adds the options of a text to measure perplexity on; returns the command. */
export function evaluationTextOptions(command: Command): Command {
  return command
    .option(`--eval ${textArgument}`, 'text to predict')
    .option(`--dataset ${textArgument}`, 'the same as --eval')
    .option(
      '--text-field <name>',
      'field of a .jsonl, .json or .parquet file that holds the text (default: text)',
    )
    .option('--seqlen <n>', "tokens per window (default: the model's context, at most 2048)", number)
    .option('--windows <n>', 'evaluate only the first n windows', number)
}

/**
 * The flags of evaluationTextOptions() as the SDK's options; undefined without a text. Throws INVALID_OPTION for other flags without it.
 * `more`: the command's own that are of the text.
 */
export function evaluationText(
  { eval: text, dataset = text, textField, seqlen, windows }: EvaluationTextFlags,
  more: object = {},
) {
  if (text !== undefined && dataset !== text) {
    throw new SparseGptError('INVALID_OPTION', 'option dataset: is the same as --eval: give one of them')
  }
  const [other] = Object.keys(given({ textField, seqlen, windows, ...more }))
  if (dataset !== undefined) {
    return { ...textSource(dataset), ...given({ textField, windows, sequenceLength: seqlen }) }
  }
  if (other === undefined) return undefined
  throw new SparseGptError('INVALID_OPTION', `option ${other}: is of the text: give --eval too`)
}

/** Adds the options that say which tasks a model is evaluated on; returns the command. */
export function taskOptions(command: Command): Command {
  return command
    .option('--tasks <names>', `tasks to evaluate, with commas between them: ${taskNames.join(', ')}`, names)
    .option('--shots <n>', 'examples before each question (default: 0)', number)
    .option('--limit <n>', 'evaluate only the first n questions of each task', number)
    .option(
      '--task-data <dir>',
      'folder with a folder for each task, which has its splits, such as piqa/validation.jsonl (default: the hub)',
    )
}

/** The tasks that were typed. Throws InvalidArgumentError for a name that is none. */
function names(text: string): TaskName[] {
  return text.split(',').map((name) => {
    const known = taskNames.find((task) => task === name.trim())
    if (known === undefined)
      throw new InvalidArgumentError(`${name} is no task; there are ${taskNames.join(', ')}.`)
    return known
  })
}

/** The flags of taskOptions() as the SDK's options; undefined without tasks. Throws INVALID_OPTION for other flags without them. */
export function taskSettings({ tasks, shots, limit, taskData }: TaskFlags) {
  const others = given({ shots, limit, data: taskData })
  const [other] = Object.keys(others)
  if (tasks) return { tasks, ...others }
  if (other === undefined) return undefined
  const message = `option ${other === 'data' ? 'taskData' : other}: is of the tasks: give --tasks too`
  throw new SparseGptError('INVALID_OPTION', message)
}

/** The placeholder for a text in the help: a data set, or a file ('./c4' is a file of that name). */
export const textArgument = `<${datasetNames.join('|')}|FILE>`

/** The source of text that was typed: a data set where it is the name of one, else a file. */
export function textSource(text: string): { dataset: DatasetName } | { file: string } {
  const dataset = datasetNames.find((name) => name === text)
  return dataset === undefined ? { file: text } : { dataset }
}

/** Adds the options that say which text, of an option that may be given more than once; returns the command. */
export function calibrationOptions(command: Command, description: string): Command {
  return command
    .option(
      `--calibration ${textArgument}`,
      `${description}; several share the windows, by their weights if they are given as NAME=3`,
      (value: string, before: string[] | undefined) => [...(before ?? []), value],
    )
    .option(
      '--text-field <name>',
      'field of a .jsonl, .json or .parquet file that holds the text (default: text)',
    )
    .option(
      '--chat',
      "rows of .jsonl and .json files have messages: write them as the model's chat template does",
    )
}

/** The flags that calibrationOptions() adds. */
export interface CalibrationFlags {
  /** Data sets and files, each perhaps with its weight. */
  calibration?: string[]
  /** The field that holds the text. */
  textField?: string
  /** Whether rows are conversations. */
  chat?: true
}

/** The source of text, or the sources, that were typed. Throws INVALID_OPTION for a weight that is no number. */
export function calibrationSource({ calibration = [], textField, chat }: CalibrationFlags) {
  const rows = given({ textField, chat })
  const [only] = calibration
  if (calibration.length === 1 && weightOf(only!) === undefined) return { ...textSource(only!), ...rows }
  const sources = calibration.map((typed) => {
    const weight = weightOf(typed)
    const source = textSource(weight === undefined ? typed : typed.slice(0, typed.lastIndexOf('=')))
    return { ...source, ...(weight !== undefined && { weight }) }
  })
  if (sources.length === 0) return rows
  // What is said of rows is of the sources that have such.
  const having = (formats: readonly unknown[]) => (source: (typeof sources)[number]) =>
    'file' in source && formats.includes(documentFormat(source.file))
  const [haveFields, haveMessages] = [having(['lines', 'json', 'parquet']), having(['lines', 'json'])]
  if ((textField !== undefined && !sources.some(haveFields)) || (chat && !sources.some(haveMessages)))
    return { sources: sources.map((source) => ({ ...source, ...rows })) }
  return {
    sources: sources.map((source) => ({
      ...source,
      ...(haveFields(source) && given({ textField })),
      ...(haveMessages(source) && given({ chat })),
    })),
  }
}

/**
 * The weight behind the last '=' of a source; undefined where there is none. Throws INVALID_OPTION for what stands behind a source that
 * there is, and is no weight.
 */
function weightOf(typed: string): number | undefined {
  const [, source = '', weight] = /^(.+)=([^=]*)$/.exec(typed) ?? []
  if (weight === undefined) return undefined
  if (/^\d+(\.\d+)?$/.test(weight) && Number(weight) > 0) return Number(weight)
  const isSource = 'dataset' in textSource(source) || existsSync(source)
  if (!isSource || existsSync(typed)) return undefined
  const message = `option calibration: ${typed}: ${quoted(weight)} is no weight: give a number greater than 0, as in ${source}=3`
  throw new SparseGptError('INVALID_OPTION', message)
}

/** The options without those that were not given, so that the SDK's defaults hold. */
export function given<T extends object>(options: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as never
}
