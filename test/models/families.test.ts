import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { loadModel, perplexity } from '../../src/index.js'
import { alibiSlopes } from '../../src/models/alibi.js'
import { route } from '../../src/models/routing.js'
import { rotaryConfig, rotaryPositions } from '../../src/models/rotary.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { variants, writeVariant } from './variants.js'

describe('ALiBi slopes', () => {
  test('a power of two of heads: a geometric series that ends at 2^-8', () => {
    expect([...alibiSlopes(8)]).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((i) => 2 ** -i))
    expect([...alibiSlopes(1)]).toEqual([2 ** -8])
  })

  test('6 heads: those of 4, then every other of 8', () => {
    expect([...alibiSlopes(6)]).toEqual([2, 4, 6, 8, 1, 3].map((i) => 2 ** -i))
  })

  test('112 heads, as BLOOM-176B has', () => {
    const slopes = alibiSlopes(112)
    expect(slopes[63]).toBeCloseTo(2 ** -8, 12)
    expect(slopes[64]).toBeCloseTo(2 ** (-8 / 128), 7)
    expect(slopes[111]).toBeCloseTo(2 ** ((-8 * 95) / 128), 7)
    expect(new Set(slopes).size).toBe(112)
  })
})

describe('routing of tokens to experts', () => {
  test('each token goes to its best experts, in shares that add up to 1', () => {
    const scores = Float32Array.from([0, Math.log(3), -5, -9, 1, 1, 7, 7])
    const loads = route(scores, { experts: 4, active: 2 })
    expect(loads.map(({ tokens }) => [...tokens])).toEqual([[0], [0], [1], [1]])
    expect(loads[0]?.shares[0]).toBeCloseTo(0.25, 6)
    expect(loads[1]?.shares[0]).toBeCloseTo(0.75, 6)
    expect([loads[2], loads[3]].map((load) => load?.shares[0])).toEqual([0.5, 0.5])
  })

  test('of equal scores the first wins; huge scores do not overflow', () => {
    const loads = route(Float32Array.from([300, 300, 300]), { experts: 3, active: 1 })
    expect(loads.map(({ tokens }) => tokens.length)).toEqual([1, 0, 0])
    expect(loads[0]?.shares[0]).toBe(1)
  })
})

describe('rotary positions', () => {
  const config = (entries: object) => rotaryConfig.parse({ max_position_embeddings: 128, ...entries })

  test('the spellings of transformers 4 and 5 mean the same', () => {
    const scaling = {
      factor: 4,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 64,
    }
    const four = config({ rope_theta: 500, rope_scaling: { type: 'llama3', ...scaling } })
    const five = config({ rope_parameters: { rope_type: 'llama3', rope_theta: 500, ...scaling } })
    expect(rotaryPositions(four, 16).frequencies(8)).toEqual(rotaryPositions(five, 16).frequencies(8))
    const plain = rotaryPositions(config({ rope_theta: 500 }), 16).frequencies(8)
    expect(rotaryPositions(four, 16).frequencies(8)).not.toEqual(plain)
  })

  test('LongRoPE stretches by the length of the sequences', () => {
    const lists = { short_factor: [1, 2], long_factor: [3, 4] }
    const rope_scaling = { type: 'su', ...lists, original_max_position_embeddings: 32 }
    const positions = rotaryPositions(config({ rope_theta: 100, rope_scaling }), 4)
    const [short, long] = [32, 33].map((sequence) => [...positions.frequencies(sequence)])
    expect(short).toEqual([1, 0.05].map(Math.fround))
    expect(long).toEqual([1 / 3, 0.025].map(Math.fround))
    expect(positions.scale).toBeCloseTo(Math.sqrt(1 + Math.log(4) / Math.log(32)), 12)
  })
})

describe('models that are refused', () => {
  const llama = variants['llama, biases and linear scaling']!
  const gemma = variants['gemma, first release']!
  const neo = variants['gpt_neo, local before global']!
  const gptj = variants['gptj, all dimensions rotated, tied']!
  const mixtral = variants['mixtral, experts without tokens']!
  const rope = /rope scaling .* is not supported; default, linear, llama3, yarn, dynamic and longrope are/

  test.each([
    [
      'an unknown family',
      llama,
      { model_type: 'mamba' },
      'UNSUPPORTED_MODEL',
      /"mamba" .* bloom, .*falcon, gemma/,
    ],
    ['an unknown scaling', llama, { rope_scaling: { type: 'mrope' } }, 'UNSUPPORTED_MODEL', rope],
    [
      'YaRN by a factor of 0',
      llama,
      { rope_scaling: { type: 'yarn', factor: 0 } },
      'UNSUPPORTED_MODEL',
      rope,
    ],
    ['both directions', gemma, { use_bidirectional_attention: true }, 'UNSUPPORTED_MODEL', /bidirectional/],
    [
      'blocks without a kind',
      neo,
      { num_layers: 3 },
      'INVALID_CHECKPOINT',
      /for 2 blocks, but num_layers is 3/,
    ],
    [
      'rotary wider than a head',
      gptj,
      { rotary_dim: 10 },
      'INVALID_CHECKPOINT',
      /rotary_dim 10 exceeds the 8/,
    ],
    [
      'odd rotary',
      gptj,
      { rotary_dim: 7 },
      'INVALID_CHECKPOINT',
      /7 rotary dimensions per head; an even number/,
    ],
    [
      'too few experts',
      mixtral,
      { num_experts_per_tok: 8 },
      'INVALID_CHECKPOINT',
      /8 exceeds num_local_experts 7/,
    ],
    [
      'other shapes',
      mixtral,
      { intermediate_size: 21 },
      'INVALID_CHECKPOINT',
      /experts\.0\.w1\.weight .*\[21, 24\]/,
    ],
  ] as const)('%s', async (_, variant, change, code, message) => {
    const folder = await temporaryFolder()
    await writeVariant(folder, variant)
    await writeFile(join(folder, 'config.json'), JSON.stringify({ ...variant.config, ...change }))
    await expectError(loadModel(folder), code, message)
  })
})

// The perplexity takes another way to the logits than logits() does.
test.each(['phi, norms of q and k', 'gemma2, low caps'])(
  'perplexity has head bias and soft cap: %s',
  async (title) => {
    const folder = await temporaryFolder()
    await writeVariant(folder, variants[title]!)
    const { ids } = variants[title]!
    const model = await loadModel(folder)
    const { data } = await model.logits(ids)
    const result = await perplexity(model, { tokens: Int32Array.from(ids.flat()), sequenceLength: 8 })
    await model.dispose()
    const losses = ids.flatMap((row, i) =>
      row.slice(1).map((next, t) => {
        const logits = data.subarray((i * 8 + t) * 16, (i * 8 + t + 1) * 16)
        return Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0)) - logits[next]!
      }),
    )
    const mean = losses.reduce((a, b) => a + b, 0) / losses.length
    expect(result.perplexity / Math.exp(mean)).toBeCloseTo(1, 5)
  },
)

test('a tied head is the embedding, even where the checkpoint stores another', async () => {
  const variant = variants['gptj, all dimensions rotated, tied']!
  const [plain, stored] = [await temporaryFolder(), await temporaryFolder()]
  await writeVariant(plain, variant)
  await writeVariant(stored, variant, { 'lm_head.weight': [16, 24] })
  const logits = []
  for (const folder of [plain, stored]) {
    const model = await loadModel(folder)
    logits.push((await model.logits(variant.ids)).data)
    await model.dispose()
  }
  expect(logits[1]).toEqual(logits[0])
})
