import { SparseGptError } from '../errors.js'
import { quoted } from '../quoted.js'

/** The ends of names that quantized weights have in the formats that there are, with those who write them. */
const quantized = [
  [/\.(qweight|qzeros|g_idx)$/, 'GPTQ or AWQ'],
  [/\.(weight_packed|weight_scale|weight_zero_point)$/, 'compressed-tensors or FP8'],
  [/\.weight_scale_inv$/, 'FP8'],
  [/\.(SCB|weight\.absmax|weight\.quant_map|weight\.quant_state\.[\w]+)$/, 'bitsandbytes'],
  [/_(blocks|scales)$/, 'MXFP4'],
] as const

/**
 * The error for a tensor that a checkpoint must have and does not: says what its names look like instead, as far as that is known
 * (quantized, an adapter's, below another prefix).
 */
export function missingTensor(folder: string, name: string, names: Iterable<string>): SparseGptError {
  const all = [...names]
  const beginning = `${folder}: the tensor ${name} is missing`
  for (const [pattern, writers] of quantized) {
    const found = all.find((other) => pattern.test(other))
    if (found === undefined) continue
    const message = `${beginning}, but there is ${found}: the weights are quantized (${writers}), which is not supported; give the model with float weights that it was made from`
    return new SparseGptError('UNSUPPORTED_MODEL', message)
  }
  const adapter = all.find((other) => /\.lora_[AB]\./.test(other))
  if (adapter !== undefined) {
    const message = `${beginning}, but there is ${adapter}: merge the LoRA adapter into its model first (peft: merge_and_unload(), then save_pretrained(folder))`
    return new SparseGptError('UNSUPPORTED_MODEL', message)
  }
  return new SparseGptError('INVALID_CHECKPOINT', `${beginning}${otherPlace(name, all)}`)
}

function otherPlace(name: string, all: readonly string[]): string {
  if (all.length === 0) return ': the checkpoint has no tensors'
  if (/^(lm_head|embed_out)\./.test(name) && !/\.bias$/.test(name)) {
    return ', though config.json says that it is not tied to the embedding (tie_word_embeddings false)'
  }
  const parts = name.split('.')
  for (let from = 0; from + 1 < parts.length; from++) {
    const end = parts.slice(from).join('.')
    const found = all.find((other) => other.endsWith(`.${end}`))
    if (found === undefined) continue
    const prefix = found.slice(0, -end.length)
    const expected = parts.slice(0, from).join('.')
    const due = expected === '' ? 'without a prefix' : `under ${quoted(`${expected}.`)}`
    return `; its weights are under the prefix ${quoted(prefix)}, but are expected ${due}: rename them, or save the model that is inside with save_pretrained(folder)`
  }
  const prefixes = [...new Set(all.map((other) => other.replace(/\.?\d+\..*$|\.?[^.]*$/, '')))]
  const shown = prefixes
    .slice(0, 5)
    .map((prefix) => quoted(prefix))
    .join(', ')
  return `; its tensors have names that begin with ${shown}${prefixes.length > 5 ? ', …' : ''}`
}
