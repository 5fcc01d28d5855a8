import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import { inputNames, type InputHashes } from './report.js'

const hash = z.string().regex(/^[0-9a-f]{32}$/, 'must be a hash of 32 hexadecimal digits')

/** Validates InputHashes. */
export const inputHashes = z.partialRecord(z.enum(inputNames), hash)

/** What each hash is of, for messages. */
const inWords: Record<keyof InputHashes, string> = {
  model: 'the model',
  dense: 'the dense model',
  tokenizer: 'the tokenizer',
  calibration: 'the calibration text, or how its windows are drawn,',
  training: 'the text that the whole model is trained on',
  mask: 'the mask',
}

/** Throws INVALID_OPTION where something is read that is not what a recipe asks for. */
export function requireInputs(wanted: InputHashes | undefined, found: InputHashes): void {
  for (const name of inputNames) {
    const [hash, other] = [wanted?.[name], found[name]]
    if (hash === undefined || other === undefined || hash === other) continue
    const message = `prune: ${inWords[name]} is not what the recipe's job has read: its hash is ${other}, not ${hash}: bring it back, or name it beside the recipe (in the SDK leave inputs.${name} out), which takes it as it is`
    throw new SparseGptError('INVALID_OPTION', message)
  }
}
