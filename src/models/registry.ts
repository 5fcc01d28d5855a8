import { SparseGptError } from '../errors.js'
import type { Family } from './family.js'
import { gpt2 } from './gpt2.js'
import { llama } from './llama.js'
import { opt } from './opt.js'

const families: readonly Family[] = [gpt2, llama, opt]

/** The family of a config.json; throws UNSUPPORTED_MODEL that lists the known ones. */
export function familyOf(config: Record<string, unknown>): Family {
  const type = config.model_type
  const family = families.find((candidate) => candidate.modelType === type)
  if (family) return family
  const known = families.map((candidate) => candidate.modelType).join(', ')
  const given = type === undefined ? 'is missing' : `${JSON.stringify(type)} is not supported`
  throw new SparseGptError('UNSUPPORTED_MODEL', `config.json: model_type ${given}; supported are ${known}`)
}
