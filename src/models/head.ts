import type { Device, Tensor } from '../native/device.js'
import type { Architecture } from './architecture.js'
import { BlockWeights } from './block-weights.js'
import { EagerBlock } from './eager-block.js'
import type { Weights } from './weights.js'

/** The end of a model: from the last block's output to logits or losses. It owns native memory until disposed of. */
export class Head {
  /** The checkpoint name of the matrix. */
  readonly name: string
  private readonly stored: Tensor
  private readonly weight: Tensor
  private readonly final: BlockWeights

  constructor(
    private readonly device: Device,
    private readonly architecture: Architecture,
    private readonly weights: Weights,
  ) {
    const held = new Map<string, Tensor>()
    this.stored = weights.holding(held, () => architecture.head(weights))
    this.name = [...held.keys()][0] ?? ''
    this.final = new BlockWeights(device, weights, architecture.final)
    this.weight = device.within([], () => device.resident(this.stored))
  }

  /**
   * The logits at every position, float32 [tokens, vocabulary]; `hidden` [tokens, hidden]. `multiply` takes the place of the product with
   * the matrix.
   */
  logits(
    hidden: Tensor,
    multiply = (x: Tensor, bias: Tensor | undefined) => this.device.linear(x, this.weight, bias, 'float32'),
  ): Tensor {
    const { device, architecture, weights } = this
    const logits = multiply(this.finish(hidden), architecture.headBias?.(weights))
    if (architecture.logitSoftcap !== undefined) device.softcap(logits, architecture.logitSoftcap)
    return logits
  }

  /**
   * The loss of predicting targets[t] (int32 [tokens]) from hidden[t], float32 [tokens]. `likeliest`, int32 [tokens], takes the
   * likeliest token.
   */
  losses(hidden: Tensor, targets: Tensor, likeliest?: Tensor): Tensor {
    const { device, architecture, weights } = this
    const x = this.finish(hidden)
    return device.crossEntropy(x, this.weight, targets, {
      bias: architecture.headBias?.(weights),
      softcap: architecture.logitSoftcap,
      likeliest,
    })
  }

  /** KL(dense ‖ this) of the next-token distributions at every position, float32 [tokens], for the hidden states of either model. */
  divergence(hidden: Tensor, dense: Head, denseHidden: Tensor): Tensor {
    const { device, architecture } = this
    return device.klDivergence(
      { x: this.finish(hidden), ...this.matrix },
      { x: dense.finish(denseHidden), ...dense.matrix },
      { softcap: architecture.logitSoftcap },
    )
  }

  /** The matrix of the logits, [vocabulary, columns of finish()], and their bias, [vocabulary]. */
  get matrix(): { head: Tensor; bias: Tensor | undefined } {
    return { head: this.weight, bias: this.architecture.headBias?.(this.weights) }
  }

  /** What the logits are made of: hidden states [tokens, hidden] behind the final norm. */
  finish(hidden: Tensor): Tensor {
    const { device, architecture, final } = this
    return architecture.finish(new EagerBlock(device, final, architecture.blockCount), hidden)
  }

  dispose(): void {
    this.final.dispose()
    this.weight.dispose()
    this.weights.giveBack([this.stored])
  }
}
