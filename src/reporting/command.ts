import { basename, isAbsolute } from 'node:path'
import type { ModelJobReport } from './report.js'

/** Options whose flags are not their names in kebab case. */
const flagNames: Record<string, string> = { sequenceLength: 'seqlen' }

/** What is no option of the result. */
const left = ['out', 'force', 'resume', 'profile', 'calibration', 'reconstruct', 'distill', 'saveTokens']

const flagOf = (name: string) =>
  `--${(flagNames[name] ?? name).replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`

/** The command that does what a report says, with the names of files in the place of their paths. */
export function commandOf({ job, model, load, options: { given } }: ModelJobReport): string {
  const words = ['sparsegpt', job, short(model), '--out', 'DIR']
  for (const [name, value] of Object.entries(given)) {
    const isDefault = name === 'encoding' && value === 'dense'
    if (!left.includes(name) && !isDefault) words.push(...wordsOf(name, value))
  }
  if (job === 'prune') {
    for (const name of ['reconstruct', 'distill']) words.push(...trainingWords(name, given[name]))
  }
  words.push(...calibrationWords(given['calibration']))
  if (load.dtype !== 'float32') words.push('--dtype', load.dtype)
  return words.map(quoted).join(' ')
}

function wordsOf(name: string, value: unknown): string[] {
  if (value === true) return [flagOf(name)]
  if (value === false || value === undefined) return []
  if (Array.isArray(value)) return [flagOf(name), value.join(',')]
  if (typeof value === 'string') return [flagOf(name), short(value)]
  if (typeof value !== 'object' || value === null) return [flagOf(name), JSON.stringify(value)]
  // A regular expression, or the recipe of an allocation, which was in a file.
  return [flagOf(name), 'source' in value ? String(value.source) : 'FILE']
}

function trainingWords(name: string, value: unknown): string[] {
  if (typeof value !== 'object' || value === null) return wordsOf(name, value)
  const { epochs, ...rest } = value as { epochs?: number }
  return [flagOf(name), ...(epochs === undefined ? [] : [String(epochs)]), ...flagsOf(rest)]
}

const flagsOf = (options: object) => Object.entries(options).flatMap(([name, value]) => wordsOf(name, value))

/** A source of text as plainOptions() has it. */
interface PlainSource {
  dataset?: string
  file?: string
  weight?: number
}

interface PlainCalibration extends PlainSource {
  sources?: PlainSource[]
  saveTokens?: string
}

function calibrationWords(calibration: unknown): string[] {
  if (typeof calibration !== 'object' || calibration === null) return []
  const { dataset, file, sources = [], ...rest } = calibration as PlainCalibration
  const one = (source: PlainSource) => {
    const weight = source.weight === undefined ? '' : `=${source.weight}`
    return ['--calibration', short(source.dataset ?? source.file ?? 'TEXT') + weight]
  }
  const own =
    (dataset ?? file) === undefined ? [] : one({ ...(dataset && { dataset }), ...(file && { file }) })
  const { saveTokens: _, ...flags } = rest
  return [...own, ...sources.flatMap(one), ...flagsOf(flags)]
}

/** A path without the folders that say something of the machine only. */
export const short = (value: string) => (isAbsolute(value) ? basename(value) : value)

const quoted = (word: string) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)
