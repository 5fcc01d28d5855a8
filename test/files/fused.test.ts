import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { loadModel, prune } from '../../src/index.js'
import { openCheckpoint } from '../../src/files/checkpoint.js'
import { splitFused } from '../../src/files/fused.js'
import { readTensors } from '../safetensors-file.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { temporaryFolder } from '../temporary.js'

describeWithShared('experts whose matrices are in one tensor', () => {
  const source = join(sharedPath('golden', 'models', 'granitemoe') ?? '', 'model.safetensors')
  const fused = 'model.layers.1.block_sparse_moe.input_linear'
  const tokens = Int32Array.from({ length: 2000 }, (_, i) => (i * 7919 + ((i * i) % 31)) % 96)

  async function pruned(options: object): Promise<string> {
    const out = join(await temporaryFolder(), 'out')
    const model = await loadModel(join(source, '..'))
    await prune(model, { calibration: { tokens, samples: 8, sequenceLength: 32 }, out, ...options })
    await model.dispose()
    return out
  }

  test('are written back as they were, each of them pruned', async () => {
    const out = await pruned({ sparsity: 0.5, include: /input_linear\.2$/ })
    const [before, after] = [await readTensors(source), await readTensors(join(out, 'model.safetensors'))]
    expect([...after].map(([name, { shape }]) => [name, shape])).toEqual(
      [...before].map(([name, { shape }]) => [name, shape]),
    )
    const [was, is] = [before.get(`${fused}.weight`)!.values, after.get(`${fused}.weight`)!.values]
    const zeros = [0, 1, 2, 3].map((e) => is.subarray(e * 4096, (e + 1) * 4096).filter((x) => x === 0).length)
    expect(zeros).toEqual([0, 0, 2048, 0])
    expect(is.subarray(0, 8192)).toEqual(was.subarray(0, 8192))
    expect(is.subarray(12288)).toEqual(was.subarray(12288))
  })

  test('are matrices of their own where some are encoded', async () => {
    const out = await pruned({ sparsity: 0.5, encoding: 'bitmask', include: /input_linear\.2$/ })
    const { tensors } = await openCheckpoint(out)
    expect([0, 1, 2, 3].map((e) => tensors.get(`${fused}.${e}.weight`)?.packed !== undefined)).toEqual([
      false,
      false,
      true,
      false,
    ])
    await (await loadModel(out)).dispose()
  })

  test('a file that has one of them besides is refused', () => {
    const both = ['a.experts.down_proj', 'a.experts.down_proj.1.weight'].map((name, i) => ({
      name,
      dtype: 'F32' as const,
      shape: i === 0 ? [2, 3, 4] : [3, 4],
      file: 'model.safetensors',
      offset: 0,
      bytes: i === 0 ? 96 : 48,
    }))
    expect(() => splitFused(both)).toThrow(/of which one is a part of the other/)
  })
})
