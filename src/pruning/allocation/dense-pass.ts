import type { BlockWeights } from '../../models/block-weights.js'
import type { Batch, Engine, Offload } from '../../models/engine.js'
import type { Statistics } from '../statistics.js'

/** Passes batches through a block, collecting statistics of its layers' inputs. `step` is called after each batch. */
export async function passCollecting(
  engine: Engine,
  index: number,
  weights: BlockWeights,
  batches: readonly Batch[],
  statistics: Statistics,
  { step, offload }: { step: () => void; offload?: Offload | undefined },
): Promise<void> {
  const pass = async (batch: Batch) => {
    const run = engine.runBlock(index, weights, batch)
    try {
      for (let group = await run.advance(); group; group = await run.advance()) statistics.add(group)
      const output = await run.finish()
      batch.hidden.dispose()
      batch.hidden = output
      offload?.(output)
    } finally {
      run.dispose()
    }
  }
  await engine.paced(batches, pass, step)
}
