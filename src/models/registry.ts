import { SparseGptError } from '../errors.js'
import { quoted } from '../quoted.js'
import { bloom } from './families/bloom.js'
import { falcon } from './families/falcon.js'
import type { Family } from './family.js'
import { gemma, gemma2 } from './families/gemma.js'
import { gptNeo } from './families/gpt-neo.js'
import { gptNeox } from './families/gpt-neox.js'
import { gpt2 } from './families/gpt2.js'
import { gptj } from './families/gptj.js'
import { llama } from './families/llama.js'
import { mistral } from './families/mistral.js'
import { mixtral } from './families/mixtral.js'
import { opt } from './families/opt.js'
import { phi } from './families/phi.js'
import { phi3 } from './families/phi3.js'
import { qwen2, qwen3 } from './families/qwen.js'
import { checkNotQuantized } from './quantization.js'

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

/** The family of a config.json; throws UNSUPPORTED_MODEL that lists the known ones, and for quantized weights. */
export function familyOf(config: Record<string, unknown>): Family {
  checkNotQuantized(config)
  const type = config.model_type
  const family = families.find((candidate) => candidate.modelType === type)
  if (family) return family
  const known = families.map((candidate) => candidate.modelType).join(', ')
  const given = type === undefined ? 'is missing' : `${quoted(type)} is not supported`
  throw new SparseGptError('UNSUPPORTED_MODEL', `config.json: model_type ${given}; supported are ${known}`)
}
