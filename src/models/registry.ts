import { SparseGptError } from '../errors.js'
import { bloom } from './bloom.js'
import { falcon } from './falcon.js'
import type { Family } from './family.js'
import { gemma, gemma2 } from './gemma.js'
import { gptNeo } from './gpt-neo.js'
import { gptNeox } from './gpt-neox.js'
import { gpt2 } from './gpt2.js'
import { gptj } from './gptj.js'
import { llama } from './llama.js'
import { mistral } from './mistral.js'
import { mixtral } from './mixtral.js'
import { opt } from './opt.js'
import { phi } from './phi.js'
import { phi3 } from './phi3.js'
import { qwen2, qwen3 } from './qwen.js'

const families: readonly Family[] = [
  bloom,
  falcon,
  gemma,
  gemma2,
  gpt2,
  gptj,
  gptNeo,
  gptNeox,
  llama,
  mistral,
  mixtral,
  opt,
  phi,
  phi3,
  qwen2,
  qwen3,
]

/** The family of a config.json; throws UNSUPPORTED_MODEL that lists the known ones. */
export function familyOf(config: Record<string, unknown>): Family {
  const type = config.model_type
  const family = families.find((candidate) => candidate.modelType === type)
  if (family) return family
  const known = families.map((candidate) => candidate.modelType).join(', ')
  const given = type === undefined ? 'is missing' : `${JSON.stringify(type)} is not supported`
  throw new SparseGptError('UNSUPPORTED_MODEL', `config.json: model_type ${given}; supported are ${known}`)
}
