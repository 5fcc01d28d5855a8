import type { AttentionHeads } from '../models/block.js'
import type { BlockWeights } from '../models/block-weights.js'
import { EagerBlock, type Placement } from '../models/eager-block.js'
import type { Device, Tensor } from '../native/device.js'
import { operations } from '../native/operations.js'
import type { KeyValueCache } from './key-value-cache.js'
import type { Strips } from './strips.js'

/**
 * A block of a pass of the next tokens only: their queries attend to the keys and values of those before them too, which a cache
 * has.
 */
export class CachedBlock extends EagerBlock {
  constructor(
    device: Device,
    weights: BlockWeights,
    index: number,
    placement: Placement,
    private readonly cache: KeyValueCache,
    /** The matrices of linear layers that products of a few rows take in the place of the block's own. */
    private readonly strips: ReadonlyMap<string, Strips>,
  ) {
    super(device, weights, index, placement)
  }

  override apply(name: string, input: Tensor): Tensor {
    const strips = this.strips.get(name)
    return strips ? strips.multiply(input, this.weights.bias(name)) : super.apply(name, input)
  }

  override attention(q: Tensor, k: Tensor, v: Tensor, heads: AttentionHeads): Tensor {
    const { keys, values, start } = this.cache.append(k, v)
    const shape = { ...this.attentionShape(heads), start }
    const call = { ...operations.attention.call(q, keys, values, shape), advance: { start: 1 } }
    const out = this.device.perform('attention', call) as Tensor
    for (const tensor of [q, k, v]) tensor.dispose()
    return out
  }
}
