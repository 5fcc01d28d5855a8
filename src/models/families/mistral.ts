import { llamaArchitecture, llamaConfig } from './llama.js'
import { layerTypes, parseConfig, slidingBlocks, tokenCount, type Family } from '../family.js'

const schema = llamaConfig.extend({
  /** The window; null for none. The first Mistral model had one, and configs without the entry mean its size. */
  sliding_window: tokenCount.nullable().default(4096),
})

/** Mistral: LLaMA with a sliding attention window. */
export const mistral: Family = {
  modelType: 'mistral',

  build(config, weights) {
    const c = parseConfig(schema, config)
    return llamaArchitecture(c, weights, { window: () => c.sliding_window ?? undefined })
  },
}

const schemaByBlock = schema.extend({ layer_types: layerTypes })

/** Ministral: Mistral with the window in some blocks. */
export const ministral: Family = {
  modelType: 'ministral',

  build(config, weights) {
    const c = parseConfig(schemaByBlock, config)
    const slides = slidingBlocks(c, () => true)
    const window = (block: number) => (slides(block) ? (c.sliding_window ?? undefined) : undefined)
    return llamaArchitecture(c, weights, { window })
  },
}
