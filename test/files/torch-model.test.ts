import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { openCheckpoint } from '../../src/files/checkpoint.js'
import { loadModel, prune } from '../../src/index.js'
import { readTensors } from '../safetensors-file.js'
import { temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'
import { writeTorch, type TorchOptions } from './torch-archive.js'

/** The tiny model as a .bin checkpoint, beside the safetensors one. */
async function bothFormats(options: TorchOptions) {
  const safetensors = await writeTinyModel(await temporaryFolder())
  const torch = await temporaryFolder()
  for (const name of ['config.json', 'tokenizer.json'])
    await copyFile(join(safetensors, name), join(torch, name))
  const tensors = await readTensors(join(safetensors, 'model.safetensors'))
  await writeTorch(join(torch, 'pytorch_model.bin'), Object.fromEntries(tensors), options)
  return { safetensors, torch }
}

async function logitsOf(folder: string): Promise<Float32Array> {
  const model = await loadModel(folder, { threads: 1 })
  try {
    return (await model.logits([randomTokens(16)])).data
  } finally {
    await model.dispose()
  }
}

describe('a model with .bin weights', () => {
  test.each([0, 1, 2, 3, 64])(
    'has the logits of its safetensors form (%i bytes of padding)',
    async (padding) => {
      const { safetensors, torch } = await bothFormats({ padding })
      expect(await logitsOf(torch)).toEqual(await logitsOf(safetensors))
    },
  )

  test('may hold transposed matrices', async () => {
    const transposed = ['model.embed_tokens.weight', 'model.layers.0.mlp.up_proj.weight']
    const { safetensors, torch } = await bothFormats({ transposed })
    const { tensors } = await openCheckpoint(torch)
    for (const name of transposed) expect(tensors.get(name)).toHaveProperty('strides')
    expect(await logitsOf(torch)).toEqual(await logitsOf(safetensors))
  })

  test('is pruned to the safetensors files that its safetensors form is pruned to', async () => {
    const { safetensors, torch } = await bothFormats({
      transposed: ['model.embed_tokens.weight'],
      padding: 1,
    })
    const results = []
    for (const folder of [safetensors, torch]) {
      const out = join(await temporaryFolder(), 'out')
      const model = await loadModel(folder, { threads: 1 })
      try {
        await prune(model, {
          pattern: '2:4',
          calibration: { tokens: randomTokens(300), samples: 4, sequenceLength: 32 },
          out,
        })
        results.push({
          tensors: await readTensors(join(out, 'model.safetensors')),
          logits: await logitsOf(out),
        })
        // The open model reads the pruned files from now on.
        expect((await model.logits([randomTokens(16)])).data).toEqual(results.at(-1)?.logits)
      } finally {
        await model.dispose()
      }
    }
    expect(results[1]).toEqual(results[0])
  })
})
