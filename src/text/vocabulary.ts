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

/**
 * Checks token ids that a caller has given: `ids` are the `given` numbers as 32-bit integers, so that a fraction or a
 * number out of range shows as a difference.
 *
 * Throws INVALID_OPTION when one is no integer in [0, vocabularySize).
 */
export function checkTokens(ids: Int32Array, given: ArrayLike<number>, vocabularySize: number): void {
  ids.forEach((id, i) => {
    if (id < 0 || id >= vocabularySize || id !== given[i]) {
      const message = `token id ${String(given[i])} at position ${i} is not an integer in [0, ${vocabularySize})`
      throw new SparseGptError('INVALID_OPTION', message)
    }
  })
}
