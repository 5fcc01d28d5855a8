import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { inspect } from '../../src/sdk/inspect.js'
import { loadModel, prune } from '../../src/index.js'
import { goldenModels } from '../models/golden-models.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { temporaryFolder } from '../temporary.js'

describeWithShared('models of every family, pruned 2:4 and reloaded', () => {
  const tokens = Int32Array.from({ length: 2000 }, (_, i) => (i * 7919 + ((i * i) % 31)) % 96)
  const calibration = { tokens, samples: 32, sequenceLength: 32 }
  const cases = goldenModels.flatMap((name) => [[name, 'block'] as const, [name, 'layer'] as const])

  test.each(cases)('%s, by %s', async (name, sequential) => {
    const out = join(await temporaryFolder(), 'out')
    const model = await loadModel(sharedPath('golden', 'models', name) ?? '')
    const report = await prune(model, { pattern: '2:4', sequential, calibration, out })
    const pruned = (await model.logits([[1, 2, 3, 4]])).data
    await model.dispose()

    // Every matrix of every block, and nothing else.
    const matrices = new Map((await inspect(out)).tensors.map((tensor) => [tensor.name, tensor]))
    for (const layer of report.layers) {
      const tensor = matrices.get(`${layer.name}.weight`)
      expect([layer.name, tensor?.patterns.includes('2:4'), layer.sparsity]).toEqual([layer.name, true, 0.5])
      expect(tensor?.sparsity).toBe(0.5)
      matrices.delete(`${layer.name}.weight`)
    }
    const left = [...matrices.values()].filter(({ shape }) => shape.length === 2).map((tensor) => tensor.name)
    expect(
      left.filter((tensor) => !/embed|wte|wpe|lm_head|project_(in|out)|gate\.weight$/.test(tensor)),
    ).toEqual([])

    const again = await loadModel(out)
    expect((await again.logits([[1, 2, 3, 4]])).data).toEqual(pruned)
    await again.dispose()
  })
})
