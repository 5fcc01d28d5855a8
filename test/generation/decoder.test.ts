import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, jest, test } from '@jest/globals'
import { Decoder } from '../../src/generation/decoder.js'
import { ResidentModel } from '../../src/generation/resident-model.js'
import { generateWindows } from '../../src/generation/windows.js'
import { loadModel, prune, type Model } from '../../src/index.js'
import { engineOf } from '../../src/sdk/model.js'
import { writeSafetensors } from '../files/files.js'
import { unlikeModels } from '../models/golden-models.js'
import { readTensors } from '../safetensors-file.js'
import { describeWithShared } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'
import { longGolden, promptOf } from './golden.js'

/** The largest difference of the logits behind `ids` with a decoder from those without, as a share of their range. */
async function difference(model: Model, decoder: Decoder, sequences: number[][]): Promise<number> {
  const cached = await decoder.logits(sequences)
  const { data, shape } = await model.logits(sequences)
  const [, length, vocabulary] = shape
  let [apart, lowest, highest] = [0, Infinity, -Infinity]
  sequences.forEach((_, s) => {
    for (let j = 0; j < vocabulary; j++) {
      const logit = data[((s + 1) * length - 1) * vocabulary + j]!
      apart = Math.max(apart, Math.abs(logit - cached[s * vocabulary + j]!))
      lowest = Math.min(lowest, logit)
      highest = Math.max(highest, logit)
    }
  })
  return apart / (highest - lowest)
}

/** Runs `body` with a model and its weights on the device. */
async function withResident(
  folder: string,
  dtype: 'float32' | 'bfloat16',
  body: (model: Model, resident: ResidentModel) => Promise<void>,
): Promise<void> {
  const model = await loadModel(folder, { device: 'cpu', dtype })
  const resident = await ResidentModel.load(engineOf(model), 1)
  await body(model, resident)
  resident.dispose()
  await model.dispose()
}

/** A copy of a model of F32 tensors, in bfloat16 with what that cuts off. */
async function inBfloat16(source: string): Promise<string> {
  const folder = await temporaryFolder()
  for (const name of ['config.json', 'tokenizer.json']) await copyFile(join(source, name), join(folder, name))
  const tensors = [...(await readTensors(join(source, 'model.safetensors')))].map(
    ([name, { shape, values }]) => {
      const halves = Uint16Array.from(new Uint32Array(values.buffer), (bits) => bits >>> 16)
      return { name, dtype: 'BF16', shape, data: new Uint8Array(halves.buffer) } as const
    },
  )
  await writeSafetensors(join(folder, 'model.safetensors'), tensors)
  return folder
}

describeWithShared('Decoder', () => {
  // Prompts in between, memory that grows and windows that fill end a recording.
  test.each([
    ['llama', 3],
    ['mistral', 3],
    ['bloom', 2],
    ['mixtral', 0], // experts are chosen
  ])('%s: the pass of a token is recorded and repeated', async (name, recordings) => {
    const { folder, vocabulary } = await longGolden(name)
    await withResident(folder, 'float32', async (model, resident) => {
      const { device } = resident.engine
      const record = jest.spyOn(device, 'record')
      const replay = jest.spyOn(device, 'replay')
      const perform = jest.spyOn(device, 'perform')
      const decoder = new Decoder(resident, 2, 200)
      const sequences = [promptOf(7, vocabulary), promptOf(8, vocabulary).slice(1)]
      for (const added of [0, 1, 1, 1, 5, 1, 1, 60, 1, 1, 1]) {
        for (const ids of sequences) ids.push(...promptOf(added, vocabulary))
        expect(await difference(model, decoder, sequences)).toBeLessThan(1e-5)
      }
      if (recordings === 0) {
        expect(record).toHaveBeenCalledTimes(1)
        expect(replay).not.toHaveBeenCalled()
      } else {
        expect(record).toHaveBeenCalledTimes(recordings)
        expect(replay).toHaveBeenCalledTimes(8 - recordings)
        // Beside the blocks' operations, which are not handed over once more, the token is embedded.
        for (const ids of sequences) ids.push(1)
        perform.mockClear()
        await decoder.logits(sequences)
        expect(perform.mock.calls.length).toBeLessThanOrEqual(4)
      }
      decoder.dispose()
    })
  })

  // Three kinds: no window, a window in every block, a window in every second one.
  test.each(['llama', 'mistral', 'gemma2'])('%s: a prompt that runs in parts', async (name) => {
    const { folder, vocabulary, kvWidth } = await longGolden(name, { max_position_embeddings: 1400 })
    await withResident(folder, 'float32', async (model, resident) => {
      const decoder = new Decoder(resident, 1, 1400)
      const ids = promptOf(1100, vocabulary)
      // The part of the pass that runs first is the longest.
      for (let i = 0; i < 12; i++) {
        expect(await difference(model, decoder, [ids])).toBeLessThan(1e-5)
        ids.push(...promptOf(i % 3 === 0 ? 5 : 1, vocabulary))
      }
      const bytes = (rows: number) => 2 * 4 * rows * kvWidth // keys and values, float32
      const windows = resident.windows.filter((window) => window !== undefined).length
      expect(resident.windows[0]).toBe(name === 'llama' ? undefined : 8)
      const full = bytes(1400) * (resident.windows.length - windows)
      expect(decoder.bytes).toBeLessThanOrEqual(full + windows * bytes(7 + 512))
      expect(decoder.bytes).toBeGreaterThan(full / 2)
      decoder.dispose()
      expect(decoder.bytes).toBe(0)
    })
  })

  test.each(unlikeModels)('%s, pruned: the matrices are strips, and give the same logits', async (name) => {
    const { folder, vocabulary } = await longGolden(name)
    const half = await inBfloat16(folder)
    const pruned = join(await temporaryFolder(), 'pruned')
    const source = await loadModel(half, { device: 'cpu' })
    await prune(source, { method: 'magnitude', sparsity: 0.6, out: pruned })
    await source.dispose()
    for (const dtype of ['float32', 'bfloat16'] as const) {
      await withResident(pruned, dtype, async (model, resident) => {
        const dense = await ResidentModel.load(engineOf(model), 9)
        expect(resident.bytes).not.toBe(dense.bytes)
        const decoder = new Decoder(resident, 1, 64)
        const whole = new Decoder(dense, 1, 64)
        const ids = promptOf(20, vocabulary)
        for (let i = 0; i < 5; i++) {
          const [logits, expected] = [await decoder.logits([ids]), await whole.logits([ids])]
          const range = Math.max(...expected) - Math.min(...expected)
          const apart = logits.reduce((most, logit, j) => Math.max(most, Math.abs(logit - expected[j]!)), 0)
          expect(apart / range).toBeLessThan(dtype === 'float32' ? 1e-5 : 2e-2)
          ids.push(...promptOf(i === 2 ? 12 : 1, vocabulary))
        }
        for (const owner of [decoder, whole, dense]) owner.dispose()
      })
    }
  })

  test('several sequences at once', async () => {
    for (const name of ['gpt2', 'mistral', 'mixtral']) {
      const { folder, vocabulary } = await longGolden(name)
      await withResident(folder, 'float32', async (model, resident) => {
        const decoder = new Decoder(resident, 3, 64)
        const sequences = [3, 5, 8].map((length) => promptOf(length, vocabulary).slice(0, 3))
        for (let i = 0; i < 50; i++) {
          if (i % 10 === 0) expect(await difference(model, decoder, sequences)).toBeLessThan(1e-5)
          else await decoder.logits(sequences)
          sequences.forEach((ids, s) => ids.push((i * i + s * 7) % vocabulary))
        }
        decoder.dispose()
      })
    }
  })

  test('bfloat16', async () => {
    const { folder, vocabulary } = await longGolden('llama')
    await withResident(folder, 'bfloat16', async (model, resident) => {
      const decoder = new Decoder(resident, 1, 64)
      const ids = promptOf(9, vocabulary)
      for (let i = 0; i < 20; i++) {
        expect(await difference(model, decoder, [ids])).toBeLessThan(0.02)
        ids.push((5 * i) % vocabulary)
      }
      decoder.dispose()
    })
  })
})

test('windows that a model makes up: the same for any batch, of its own distribution', async () => {
  const folder = await writeTinyModel(await temporaryFolder(), 'llama', undefined, { bos_token_id: 3 })
  const model = await loadModel(folder, { device: 'cpu' })
  const engine = engineOf(model)
  const shares: number[] = []
  const options = { count: 200, length: 12, temperature: 1, seed: 5 }
  const windows = await generateWindows(engine, {
    ...options,
    batch: 64,
    onProgress: (share) => shares.push(share),
  })
  expect(windows).toHaveLength(200)
  expect(windows.every((window) => window.length === 12 && window[0] === 3)).toBe(true)
  expect(shares).toHaveLength(4 * 11)
  expect(shares.at(-1)).toBeCloseTo(1, 12)
  expect(await generateWindows(engine, { ...options, count: 7, batch: 3 })).toEqual(windows.slice(0, 7))
  expect(await generateWindows(engine, { ...options, count: 7, batch: 3, seed: 6 })).not.toEqual(
    windows.slice(0, 7),
  )
  // The second tokens are drawn with the probabilities that follow the first.
  const { data } = await model.logits([[3]])
  const top = Math.max(...data)
  const weights = [...data].map((logit) => Math.exp(logit - top))
  const total = weights.reduce((a, b) => a + b)
  const likeliest = data.indexOf(top)
  const share = windows.filter((window) => window[1] === likeliest).length / 200
  expect(Math.abs(share - weights[likeliest]! / total)).toBeLessThan(0.12)
  const job = generateWindows(engine, { ...options, length: 65, batch: 8 })
  await expectError(job, 'INVALID_OPTION', /longer than the model's context of 64/)
  await model.dispose()
})

test('without a token to begin with there are no windows', async () => {
  const folder = await writeTinyModel(await temporaryFolder(), 'llama')
  const model = await loadModel(folder, { device: 'cpu' })
  const options = { count: 1, length: 8, temperature: 1, seed: 0, batch: 1 }
  await expectError(generateWindows(engineOf(model), options), 'INVALID_CHECKPOINT', /bos_token_id/)
  await model.dispose()
})

test('codes are multiplied as they are stored', async () => {
  const folder = await writeTinyModel(await temporaryFolder(), 'llama', undefined, { bos_token_id: 3 })
  const source = await loadModel(folder, { device: 'cpu' })
  const tokens = randomTokens(200)
  for (const [bits, symmetric] of [
    [4, false],
    [8, true],
    [3, true],
  ] as const) {
    const out = join(await temporaryFolder(), 'pruned')
    const calibration = { tokens, samples: 4, sequenceLength: 32 }
    const options = { sparsity: 0.5, bits, symmetric, encoding: 'bitmask', headBits: 8 } as const
    await prune(source, { ...options, calibration, out })
    await withResident(out, 'float32', async (model, resident) => {
      const dense = await ResidentModel.load(engineOf(model), 9)
      // Float32 elements, against codes and their masks.
      expect(resident.bytes).toBeLessThan(0.6 * dense.bytes)
      const decoder = new Decoder(resident, 1, 32)
      expect(await difference(model, decoder, [[5, 6, 7, 8, 9]])).toBeLessThan(0.02)
      for (const owner of [decoder, dense]) owner.dispose()
    })
  }
  await source.dispose()
})

test('a model keeps its weights for the next text, until they change', async () => {
  const folder = await writeTinyModel(await temporaryFolder(), 'llama', undefined, { bos_token_id: 3 })
  const model = await loadModel(folder, { device: 'cpu', dtype: 'bfloat16' })
  const engine = engineOf(model)
  const text = async () => (await model.generate([3, 4], { maxTokens: 12 }).result).tokenIds
  const first = await text()
  const { kept } = engine
  expect(kept).toBeInstanceOf(ResidentModel)
  expect(await text()).toEqual(first)
  expect(engine.kept).toBe(kept)
  await model.logits([[3]])
  expect(engine.kept).toBeUndefined()
  await text()
  await prune(model, { method: 'magnitude', sparsity: 0.7 })
  const pruned = await text()
  expect(pruned).not.toEqual(first)
  const out = join(await temporaryFolder(), 'pruned')
  await prune(await loadModel(folder, { device: 'cpu' }), { method: 'magnitude', sparsity: 0.7, out })
  const again = await loadModel(out, { device: 'cpu', dtype: 'bfloat16' })
  expect((await again.generate([3, 4], { maxTokens: 12 }).result).tokenIds).toEqual(pruned)
  await again.dispose()
  await model.dispose()
})
