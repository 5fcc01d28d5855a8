import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import { parseOptions } from '../options.js'
import { inputHashes } from '../reporting/inputs.js'
import { readReport, type InputHashes } from '../reporting/report.js'
import type { LoadOptions } from './model.js'
import type { PruneOptions } from './prune.js'

const record = z.record(z.string(), z.unknown())

/** What of a report repeats its job; the options themselves are checked by `prune`. */
const report = z.looseObject({
  format: z.literal(1, { error: 'must be 1: this version of sparsegpt reads no other format' }),
  job: z.literal('prune', { error: 'must be "prune": only the report of a pruned model can be repeated' }),
  versions: z.looseObject({ sparsegpt: z.string() }),
  model: z.string().min(1),
  load: z.strictObject({ device: z.string(), dtype: z.enum(['float32', 'bfloat16']) }),
  options: z.looseObject({ given: record }),
  inputs: inputHashes,
  unrepeatable: z.string().optional(),
})

/** What repeats a job. */
export interface PruneRecipe {
  /** The model that was pruned: the path of its folder, or its hub id with the commit. */
  model: string
  /** Where and how it computed: options of `loadModel`. */
  load: Pick<LoadOptions, 'device' | 'dtype'>
  /** The options of `prune`, `out` apart; `inputs` are the hashes of what was read. */
  options: PruneOptions
  /** The version of this package that made the report. */
  version: string
  /** Why the options do not repeat the job, if something was given to it in memory. */
  unrepeatable?: string
}

/** The options that are of one run of a job, not of its result. */
const ofRun = ['out', 'force', 'resume', 'profile', 'inputs']

/** What stands for a regular expression in a report. */
const plainRegExp = z.strictObject({ source: z.string(), flags: z.string() })

/**
 * Reads the sparsegpt-report.json of a pruned model, to prune in the same way again. Throws FILE_NOT_FOUND, INVALID_OPTION for what is no
 * such report.
 */
export async function readRecipe(file: string): Promise<PruneRecipe> {
  const { model, load, options, inputs, versions, unrepeatable } = parseOptions(
    report,
    await readReport(file),
    file,
    'field',
  )
  const given = Object.entries(options.given).filter(([name]) => !ofRun.includes(name))
  const revived = given.map(([name, value]): [string, unknown] => {
    const expression = ['include', 'exclude'].includes(name) ? plainRegExp.safeParse(value).data : undefined
    return [name, expression ? regExp(expression, `${file}: field options.given.${name}`) : value]
  })
  const { calibration, ...rest } = Object.fromEntries(revived)
  return {
    model,
    load: load as PruneRecipe['load'],
    // Whether they fit each other is for `prune` to say.
    options: {
      ...rest,
      ...(calibration !== undefined && { calibration: withoutSaving(calibration) }),
      inputs,
    } as never,
    version: versions.sparsegpt,
    ...(unrepeatable !== undefined && { unrepeatable }),
  }
}

function regExp({ source, flags }: z.output<typeof plainRegExp>, place: string): RegExp {
  try {
    return new RegExp(source, flags)
  } catch (cause) {
    throw new SparseGptError('INVALID_OPTION', `${place} is not a regular expression`, { cause })
  }
}

/** The calibration text without the file that its tokens were saved to. */
function withoutSaving(calibration: unknown): NonNullable<PruneOptions['calibration']> {
  if (typeof calibration !== 'object' || calibration === null) return calibration as never
  const { saveTokens: _, ...rest } = calibration as NonNullable<PruneOptions['calibration']>
  return rest
}

/** Options of `prune` that are not checked yet. */
type Unchecked = Record<string, unknown>

const goals = ['sparsity', 'schedule', 'pattern', 'mask']
const texts = ['dataset', 'file', 'sources', 'text', 'messages', 'tokens', 'windows']

/**
 * The options of a recipe with others in their place. Of a goal and of a text that is given the recipe's parts go, and so do
 * the hashes of inputs that are named. `model`: whether the model is named, too.
 */
export function overRecipe(recipe: Unchecked, given: Unchecked, { model }: { model: boolean }): Unchecked {
  const newGoal = goals.some((goal) => given[goal] !== undefined)
  const kept = newGoal ? without(recipe, goals) : recipe
  const named: (keyof InputHashes)[] = [
    ...(model ? (['model', 'dense', 'tokenizer', 'calibration', 'training'] as const) : []),
    ...(given['calibration'] === undefined ? [] : (['calibration', 'training'] as const)),
    ...(given['dense'] === undefined ? [] : (['dense'] as const)),
    ...(kept['mask'] === undefined || given['mask'] !== undefined ? (['mask'] as const) : []),
  ]
  const inputs = Object.entries(recipe['inputs'] as InputHashes).filter(
    ([name]) => !(named as string[]).includes(name),
  )
  const [before, after] = [kept['calibration'], given['calibration']] as (Unchecked | undefined)[]
  const newText = texts.some((name) => after?.[name] !== undefined)
  const rest = newText ? without(before ?? {}, [...texts, 'textField', 'chat']) : before
  const calibration = { ...rest, ...after }
  return {
    ...kept,
    ...given,
    ...((before ?? after) && { calibration }),
    inputs: Object.fromEntries(inputs),
  }
}

const without = (options: Unchecked, names: readonly string[]): Unchecked =>
  Object.fromEntries(Object.entries(options).filter(([name]) => !names.includes(name)))
