import type { Device, Recording, Tensor } from '../native/device.js'
import type { KeyValueCache } from './key-value-cache.js'

/** What a pass of a token of every sequence starts from; its elements are replaced for every token. */
export interface TokenInput {
  /** The embedded tokens, [sequences, hidden]. */
  hidden: Tensor
  /** Their positions, int32 [sequences]. */
  positions: Tensor
}

/** What a recorded pass depends on. */
export interface PassLimits {
  /** What it puts the token's keys and values into. */
  caches: readonly KeyValueCache[]
  /** The position that it is recorded at. */
  position: number
  /** How long sequences may become. */
  longest: number
}

/** A pass of a token of every sequence that has been recorded, and is repeated for those that follow. It owns native memory until disposed of. */
export class RecordedPass {
  private readonly memories: readonly (Tensor | undefined)[]

  private constructor(
    private readonly device: Device,
    private readonly input: TokenInput,
    private readonly logits: Tensor,
    private readonly recording: Recording,
    private readonly limits: PassLimits,
  ) {
    this.memories = limits.caches.map(({ memory }) => memory)
  }

  /**
   * Runs `body`, which makes the logits of the first token. Resolves to the logits, which are the caller's, and the pass; without one for a `body` that cannot be repeated. The input is the pass's.
   */
  static async record(
    device: Device,
    input: TokenInput,
    limits: PassLimits,
    body: () => Promise<Tensor>,
  ): Promise<{ logits: Tensor; pass?: RecordedPass }> {
    try {
      const { recording, result: logits } = await device.record([], body)
      if (recording) {
        const pass = new RecordedPass(device, input, logits, recording, limits)
        return { logits: logits.share(), pass }
      }
      disposeOf(input)
      return { logits }
    } catch (error) {
      disposeOf(input)
      throw error
    }
  }

  /** Whether it can be repeated for the last token of sequences of `total` tokens. */
  reaches(total: number): boolean {
    const { caches, longest } = this.limits
    return total <= longest && caches.every((cache, i) => cache.hasRoomIn(this.memories[i]))
  }

  /** The logits of the next token, at `position`; `hidden` is disposed of. The caller disposes of the logits. */
  repeat(hidden: Tensor, position: number): Tensor {
    const { device, input, logits, limits } = this
    device.within([], () => device.cast(hidden, input.hidden.dtype, input.hidden))
    hidden.dispose()
    device.write(input.positions, new Int32Array(input.positions.width).fill(position))
    device.replay(this.recording, position - limits.position)
    for (const cache of limits.caches) cache.advance()
    return logits.share()
  }

  dispose(): void {
    disposeOf(this.input)
    this.logits.dispose()
  }
}

function disposeOf({ hidden, positions }: TokenInput): void {
  for (const tensor of [hidden, positions]) tensor.dispose()
}
