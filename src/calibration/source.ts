import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import type { Model } from '../models/model.js'
import { readText } from './text.js'

/** Where text comes from: a file, or token ids. Exactly one is given. */
export interface TextSource {
  /** .jsonl: the field `textField` of every line; any other file: its whole text. */
  file?: string
  /** Default 'text'. */
  textField?: string
  /** Token ids, instead of a file. */
  tokens?: ArrayLike<number>
}

export const textSource = z.object({
  file: z.string().min(1).optional(),
  textField: z.string().min(1).default('text'),
  tokens: z
    .custom<ArrayLike<number>>(
      (value) => Array.isArray(value) || (ArrayBuffer.isView(value) && 'length' in value),
      'must be an array of token ids',
    )
    .optional(),
})

/**
 * The token ids of a text, encoded as one string with the model's tokenizer, post-processor included.
 *
 * Throws INVALID_OPTION, FILE_NOT_FOUND, INVALID_TEXT, INVALID_CHECKPOINT (tokenizer).
 */
export async function readTokens(model: Model, source: z.output<typeof textSource>): Promise<Int32Array> {
  if ((source.file === undefined) === (source.tokens === undefined)) {
    throw new SparseGptError('INVALID_OPTION', 'option file: give either file or tokens')
  }
  if (source.tokens !== undefined) {
    const ids = Int32Array.from(source.tokens)
    model.checkTokens(ids, source.tokens)
    return ids
  }
  const file = source.file ?? ''
  const tokens = await (await model.tokenizer()).encode(await readText(file, { textField: source.textField }))
  const largest = tokens.reduce((a, b) => Math.max(a, b), 0)
  if (largest >= model.architecture.vocabularySize) {
    const message = `${model.folder}: the tokenizer gives id ${largest}, but the model's vocabulary has ${model.architecture.vocabularySize} entries`
    throw new SparseGptError('INVALID_CHECKPOINT', message)
  }
  return tokens
}
