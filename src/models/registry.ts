import { SparseGptError } from '../errors.js'
import { quoted } from '../quoted.js'
import { bloom } from './families/bloom.js'
import { falcon } from './families/falcon.js'
import { checkSupported, type Family } from './family.js'
import { languageConfig } from './language-config.js'
import { gemma, gemma2, gemma3Text } from './families/gemma.js'
import { gptOss } from './families/gpt-oss.js'
import { gptNeo } from './families/gpt-neo.js'
import { gptNeox } from './families/gpt-neox.js'
import { gpt2, gptBigcode } from './families/gpt2.js'
import { gptj } from './families/gptj.js'
import { llama } from './families/llama.js'
import { ministral, mistral } from './families/mistral.js'
import { mixtral } from './families/mixtral.js'
import { opt } from './families/opt.js'
import { phi } from './families/phi.js'
import { phi3 } from './families/phi3.js'
import { qwen2, qwen2Moe, qwen3, qwen3Moe } from './families/qwen.js'
import { arcee } from './families/arcee.js'
import { cohere, cohere2 } from './families/cohere.js'
import { deepseekV2, deepseekV3 } from './families/deepseek.js'
import { exaone4 } from './families/exaone4.js'
import { glm, glm4 } from './families/glm.js'
import { granite, granitemoe } from './families/granite.js'
import { helium } from './families/helium.js'
import { hunyuanV1Dense } from './families/hunyuan.js'
import { mpt } from './families/mpt.js'
import { nemotron } from './families/nemotron.js'
import { olmo2, olmo3 } from './families/olmo.js'
import { phimoe } from './families/phimoe.js'
import { seedOss } from './families/seed-oss.js'
import { smollm3 } from './families/smollm3.js'
import { stablelm } from './families/stablelm.js'
import { starcoder2 } from './families/starcoder2.js'
import { checkNotQuantized } from './quantization.js'

const families: readonly Family[] = [
  arcee,
  bloom,
  cohere,
  cohere2,
  deepseekV2,
  deepseekV3,
  exaone4,
  falcon,
  gemma,
  gemma2,
  gemma3Text,
  glm,
  glm4,
  gpt2,
  gptBigcode,
  gptj,
  gptNeo,
  gptNeox,
  gptOss,
  granite,
  granitemoe,
  helium,
  hunyuanV1Dense,
  llama,
  ministral,
  mistral,
  mixtral,
  mpt,
  nemotron,
  olmo2,
  olmo3,
  opt,
  phi,
  phi3,
  phimoe,
  qwen2,
  qwen2Moe,
  qwen3,
  qwen3Moe,
  seedOss,
  smollm3,
  stablelm,
  starcoder2,
]

/**
 * The family of a config.json, of a multimodal one that of its language model; throws UNSUPPORTED_MODEL that lists the known ones, and
 * for quantized weights.
 */
export function familyOf(config: Record<string, unknown>): Family {
  checkNotQuantized(config)
  const language = languageConfig(config)
  const type = language.model_type
  if (language !== config) checkNotQuantized(language)
  const causal = config.model_type !== 'paligemma'
  checkSupported(causal, 'model_type', config.model_type, 'its prompts see each other in both directions')
  const family = families.find((candidate) => candidate.modelType === type)
  if (family && language === config) return family
  if (family) return { ...family, build: (_, weights) => family.build(language, weights) }
  const known = families.map((candidate) => candidate.modelType).join(', ')
  const given = type === undefined ? 'is missing' : `${quoted(type)} is not supported`
  const entry = language === config ? 'model_type' : 'text_config.model_type'
  throw new SparseGptError('UNSUPPORTED_MODEL', `config.json: ${entry} ${given}; supported are ${known}`)
}
