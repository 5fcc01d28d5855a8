import { copyFile, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, expect, test } from '@jest/globals'
import { openCheckpoint } from '../../src/files/checkpoint.js'
import { loadModel, perplexity, prune } from '../../src/index.js'
import { readTensors } from '../safetensors-file.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { temporaryFolder } from '../temporary.js'
import { writeSafetensors } from './files.js'
import { writeTorch } from './torch-archive.js'

// That the safetensors form has the reference's results is shown in test/cli/tinystories.test.ts.
describeWithShared('TinyStories-656K in the forms that checkpoints come in', () => {
  const source = sharedPath('models', 'TinyStories-656K') ?? ''
  let text: string
  let tensors: Awaited<ReturnType<typeof readTensors>>

  const bytes = ({ buffer, byteOffset, byteLength }: Float32Array) =>
    Buffer.from(buffer, byteOffset, byteLength)

  /** The model in `count` weight files of one format, with an index if there are several. */
  async function inForm(format: 'safetensors' | 'bin', count: number): Promise<string> {
    const folder = await temporaryFolder()
    for (const name of ['config.json', 'tokenizer.json'])
      await copyFile(join(source, name), join(folder, name))
    const stem = format === 'bin' ? 'pytorch_model' : 'model'
    const map: Record<string, string> = {}
    for (let shard = 0; shard < count; shard++) {
      // Dealt out like cards, so that every block is spread over the files.
      const part = [...tensors].filter((_, i) => i % count === shard)
      const number = (n: number) => String(n).padStart(5, '0')
      const file =
        count === 1 ? `${stem}.${format}` : `${stem}-${number(shard + 1)}-of-${number(count)}.${format}`
      for (const [name] of part) map[name] = file
      if (format === 'bin') {
        await writeTorch(join(folder, file), Object.fromEntries(part))
      } else {
        await writeSafetensors(
          join(folder, file),
          part.map(([name, { shape, values }]) => ({ name, dtype: 'F32', shape, data: bytes(values) })),
        )
      }
    }
    if (count > 1) {
      await writeFile(
        join(folder, `${stem}.${format}.index.json`),
        JSON.stringify({ metadata: {}, weight_map: map }),
      )
    }
    return folder
  }

  async function results(folder: string) {
    const out = join(await temporaryFolder(), 'out')
    const calibration = { file: text, samples: 4, sequenceLength: 256 }
    const model = await loadModel(folder)
    try {
      const evaluation = { file: text, sequenceLength: 256, windows: 4 }
      const dense = (await perplexity(model, evaluation)).perplexity
      await prune(model, { pattern: '2:4', calibration, out })
      const pruned = (await perplexity(model, evaluation)).perplexity
      const { shards } = await openCheckpoint(out)
      const weights = await Promise.all(shards.map(({ file }) => readTensors(join(out, file))))
      return { dense, pruned, shards: shards.length, weights: new Map(weights.flatMap((part) => [...part])) }
    } finally {
      await model.dispose()
    }
  }

  let expected: Awaited<ReturnType<typeof results>>
  beforeAll(async () => {
    tensors = await readTensors(join(source, 'model.safetensors'))
    text = join(await temporaryFolder(), 'text.txt')
    const whole = await readFile(sharedPath('data', 'tinystories.calibration.txt')!, 'utf8')
    await writeFile(text, whole.slice(0, 20_000))
    expected = await results(source)
    expect(expected.pruned).toBeGreaterThan(1.5 * expected.dense)
    expect(JSON.parse(await readFile(join(source, 'config.json'), 'utf8'))).toHaveProperty(
      'model_type',
      'llama',
    )
  }, 60_000)

  test.each([
    ['safetensors', 2],
    ['safetensors', 3],
    ['safetensors', 7],
    ['bin', 1],
    ['bin', 3],
  ] as const)('%s, %i files: the same perplexities and the same pruned weights', async (format, count) => {
    const got = await results(await inForm(format, count))
    expect(got.shards).toBe(count)
    expect([got.dense, got.pruned]).toEqual([expected.dense, expected.pruned])
    // toEqual takes seconds for that many numbers.
    for (const [name, tensor] of expected.weights) {
      expect([name, bytes(got.weights.get(name)!.values).equals(bytes(tensor.values))]).toEqual([name, true])
    }
    expect(got.weights.size).toBe(expected.weights.size)
  })
})
