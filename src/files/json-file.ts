import { SparseGptError } from '../errors.js'
import { foreignContents } from './foreign-contents.js'
import { parseJson } from './python-json.js'
import { reason } from './read-error.js'

/** The value of a model's JSON file, of which `text` is the contents. Throws INVALID_CHECKPOINT. */
export function parseJsonFile(file: string, text: string): unknown {
  try {
    return parseJson(text)
  } catch (error) {
    const foreign = foreignContents(text)
    const problem = foreign ?? `is not valid JSON: ${reason(error)}`
    throw new SparseGptError('INVALID_CHECKPOINT', `${file} ${problem}`, { cause: error })
  }
}
