import { SparseGptError } from '../errors.js'
import type { Tokenizer } from './tokenizer.js'

/** A model as text sees it: what its token ids are, and what makes them of a text. */
export interface Vocabulary {
  /** The absolute path of the model's folder, which messages name. */
  readonly folder: string
  /** The number of token ids that the model knows: ids are integers in [0, vocabularySize). */
  readonly vocabularySize: number
  /** The tokenizer of the model's folder. Throws FILE_NOT_FOUND, INVALID_CHECKPOINT. */
  tokenizer(): Promise<Tokenizer>
}

/** The token ids that a caller has given. Throws INVALID_OPTION when one is no integer in [0, vocabularySize). */
export function tokenIds(given: ArrayLike<number>, vocabularySize: number): Int32Array {
  // All are checked before memory is taken for them: a sparse array can be of any length.
  for (let i = 0; i < given.length; i++) {
    const id: unknown = given[i]
    if (Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocabularySize) continue
    const shown = typeof id === 'number' || typeof id === 'bigint' ? String(id) : `of type ${typeof id}`
    const message = `token id ${shown} at position ${i} is not an integer in [0, ${vocabularySize})`
    throw new SparseGptError('INVALID_OPTION', message)
  }
  const ids = new Int32Array(given.length)
  for (let i = 0; i < ids.length; i++) ids[i] = given[i] as number
  return ids
}
