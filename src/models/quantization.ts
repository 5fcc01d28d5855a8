import { SparseGptError } from '../errors.js'
import { blockScaling } from '../files/block-scaled.js'
import { packQuantized, quantizationEntry } from '../files/pack-quantized.js'
import { quoted } from '../quoted.js'

/** The entries of config.json that say that weights are quantized; the second is an older name that llm-compressor used. */
const entries = [quantizationEntry, 'compression_config']

/** Throws UNSUPPORTED_MODEL, naming the method, when config.json says that the weights are quantized in a form that is not read. */
export function checkNotQuantized(config: Record<string, unknown>): void {
  for (const entry of entries) {
    const value = config[entry]
    if (value === undefined || value === null || value === false) continue
    if (entry === quantizationEntry && (packQuantized(config) ?? blockScaling(config)) !== undefined) continue
    const settings = (typeof value === 'object' ? value : {}) as Record<string, unknown>
    const method = settings['quant_method'] ?? bitsAndBytes(settings)
    if (typeof value === 'object' && method === undefined && isUnused(settings)) continue
    const named = method === undefined ? 'without a quant_method' : `quant_method ${quoted(method)}`
    throw new SparseGptError(
      'UNSUPPORTED_MODEL',
      `config.json: ${entry} (${named}) says that the weights are quantized, which is not supported but for ` +
        "compressed-tensors' pack-quantized weights of 4 or 8 bits without quantized activations, float8 weights with a scale " +
        'for each block (fp8 with weight_block_size) and mxfp4: give the model with float weights that it was made from; if ' +
        'the weights are float, remove the entry',
    )
  }
}

/** The first releases of bitsandbytes had flags in the place of a method. */
function bitsAndBytes(settings: Record<string, unknown>): string | undefined {
  return settings['load_in_4bit'] === true || settings['load_in_8bit'] === true ? 'bitsandbytes' : undefined
}

/** Whether settings are empty, or those of bitsandbytes with both flags off. */
function isUnused(settings: Record<string, unknown>): boolean {
  return Object.keys(settings).length === 0 || 'load_in_4bit' in settings || 'load_in_8bit' in settings
}
