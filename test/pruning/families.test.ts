import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { inspect } from '../../src/sdk/inspect.js'
import { loadModel, prune } from '../../src/index.js'
import { goldenModels } from '../models/golden-models.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { temporaryFolder } from '../temporary.js'

describeWithShared('models of every family, pruned and reloaded', () => {
  const tokens = Int32Array.from({ length: 2000 }, (_, i) => (i * 7919 + ((i * i) % 31)) % 96)
  const calibration = { tokens, samples: 32, sequenceLength: 32 }
  const cases = goldenModels.flatMap((name) => [
    [name, { pattern: '2:4' }, 'layer'] as const,
    [name, { sparsity: 0.5 }, 'block'] as const,
  ])

  test.each(cases)('%s, %j, by %s', async (name, options, sequential) => {
    const out = join(await temporaryFolder(), 'out')
    const model = await loadModel(sharedPath('golden', 'models', name) ?? '')
    const report = await prune(model, { ...options, sequential, calibration, out })
    const pruned = (await model.logits([[1, 2, 3, 4]])).data
    await model.dispose()

    // Every matrix of every block, and nothing else.
    const matrices = new Map((await inspect(out)).tensors.map((tensor) => [tensor.name, tensor]))
    for (const layer of report.layers) {
      const tensor = matrices.get(`${layer.name}.weight`)
      expect([layer.name, layer.sparsity, tensor?.sparsity]).toEqual([layer.name, 0.5, 0.5])
      if ('pattern' in options) expect(tensor?.patterns).toContain(options.pattern)
      matrices.delete(`${layer.name}.weight`)
    }
    const left = [...matrices.values()].filter(({ shape }) => shape.length === 2).map((tensor) => tensor.name)
    expect(
      left.filter(
        (tensor) => !/embed|wte|wpe|lm_head|project_(in|out)|gate\.weight$|\.router\./.test(tensor),
      ),
    ).toEqual([])

    const again = await loadModel(out)
    expect((await again.logits([[1, 2, 3, 4]])).data).toEqual(pruned)
    await again.dispose()
  })
})
