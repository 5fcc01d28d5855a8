import { join } from 'node:path'
import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import { parseJsonFile } from '../files/json-file.js'
import { readIfThere } from '../files/regular-file.js'
import type { Engine } from '../models/engine.js'

const maxConfigBytes = 2 ** 24

const id = z
  .int()
  .min(-(2 ** 31))
  .max(2 ** 31 - 1)
const schema = z.object({
  bos_token_id: z.union([id, z.array(id).max(1024)]).nullish(),
  eos_token_id: z.union([id, z.array(id).max(1024)]).nullish(),
})

/** The tokens at which texts begin and end. */
export interface EndTokens {
  bos: readonly number[]
  eos: readonly number[]
}

/**
 * The ids of the beginning and the end of a text: generation_config.json's, and where it does not say, config.json's. Throws
 * INVALID_CHECKPOINT when they are no token ids, or generation_config.json is damaged.
 */
export async function endTokens(engine: Engine): Promise<EndTokens> {
  const file = join(engine.folder, 'generation_config.json')
  const own = parse(file, await readGenerationConfig(file))
  const [usual, language] = [engine.checkpoint.config, engine.weights.config].map((config) =>
    parse(join(engine.folder, 'config.json'), config),
  )
  const list = (name: keyof typeof own) => [own[name] ?? usual![name] ?? language![name] ?? []].flat()
  return { bos: list('bos_token_id'), eos: list('eos_token_id') }
}

function parse(file: string, value: unknown): z.output<typeof schema> {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const entries = result.error.issues.map(({ path }) => path.join('.')).join(', ')
  const message = `${file}: ${entries || 'it'} must be a token id, or a list of at most 1024`
  throw new SparseGptError('INVALID_CHECKPOINT', message)
}

/** The contents of generation_config.json; an empty object where there is none. */
async function readGenerationConfig(file: string): Promise<unknown> {
  return parseJsonFile(file, (await readIfThere(file, maxConfigBytes)) ?? '{}')
}

/** Ends a text before the first of some strings. What may be the beginning of one is held back. */
export class StopStrings {
  private held = ''

  constructor(private readonly strings: readonly string[]) {}

  /** What is certain of the text after another piece of it, and whether it ends there. */
  push(piece: string): { text: string; ended: boolean } {
    const text = this.held + piece
    const found = this.strings.map((stop) => text.indexOf(stop)).filter((at) => at >= 0)
    if (found.length > 0) {
      this.held = ''
      return { text: text.slice(0, Math.min(...found)), ended: true }
    }
    const kept = Math.max(0, ...this.strings.map((stop) => overlap(text, stop)))
    this.held = text.slice(text.length - kept)
    return { text: text.slice(0, text.length - kept), ended: false }
  }

  /** What was held back, when the text goes no further. */
  end(): string {
    const { held } = this
    this.held = ''
    return held
  }
}

/** The length of the longest end of `text` that `stop` begins with. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--)
    if (text.endsWith(stop.slice(0, length))) return length
  return 0
}
