import { readdirSync } from 'node:fs'
import { cp, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import { loadModel, plan, type ErrorCode } from '../../src/index.js'
import { inspect } from '../../src/sdk/inspect.js'
import { writeSafetensors, type TestTensor } from '../files/files.js'
import { readTensors } from '../safetensors-file.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { writeTinyModel } from '../tiny-model.js'
import { variants, writeVariant } from './variants.js'

/** A tiny LLaMA with entries of config.json replaced. */
async function changedConfig(change: object, family: 'llama' | 'gpt2' = 'llama'): Promise<string> {
  const folder = await writeTinyModel(await temporaryFolder(), family)
  const file = join(folder, 'config.json')
  const config = JSON.parse(await readFile(file, 'utf8')) as object
  await writeFile(file, JSON.stringify({ ...config, ...change }))
  return folder
}

/** A model of variants.json with tensors taken away, added, renamed or retyped. */
async function changedTensors(
  title: string,
  change: (tensors: TestTensor[]) => TestTensor[],
  config: object = {},
): Promise<string> {
  const folder = await temporaryFolder()
  const variant = variants[title]!
  await writeVariant(folder, variant)
  const file = join(folder, 'model.safetensors')
  const stored = [...(await readTensors(file))].map(([name, { shape, values }]): TestTensor => ({
    name,
    dtype: 'F32',
    shape,
    data: new Uint8Array(values.buffer),
  }))
  await writeSafetensors(file, change(stored))
  await writeFile(join(folder, 'config.json'), JSON.stringify({ ...variant.config, ...config }))
  return folder
}

const vector = (name: string, size: number): TestTensor => {
  return { name, dtype: 'F32', shape: [size], data: new Uint8Array(4 * size) }
}

describeWithShared('an untied head', () => {
  test('of OPT: the stored matrix is used, against transformers', async () => {
    const folder = sharedPath('cases', 'opt-untied')!
    const golden = await readTensors(join(folder, 'expected.safetensors'))
    const { values, shape } = golden.get('ids')!
    const [batch = 0, sequence = 0] = shape
    const ids = Array.from({ length: batch }, (_, i) => [
      ...values.subarray(i * sequence, (i + 1) * sequence),
    ])
    const expected = golden.get('logits')!.values
    const model = await loadModel(folder, { device: 'cpu' })
    const { data } = await model.logits(ids)
    await model.dispose()
    const range = Math.max(...expected) - Math.min(...expected)
    const worst = data.reduce((most, value, i) => Math.max(most, Math.abs(value - expected[i]!)), 0)
    expect(worst).toBeLessThan(1e-4 * range)
  })
})

describeWithShared('config.json with absurd entries', () => {
  const folder = sharedPath('cases', 'configs')
  const cases = folder === undefined ? [] : readdirSync(folder)
  test.each(cases)('%s ends in a typed error within a second', async (file) => {
    const model = await temporaryFolder()
    await cp(sharedPath('golden', 'models', file.replace(/--.*/, ''))!, model, { recursive: true })
    await cp(join(folder!, file), join(model, 'config.json'))
    const code = 'INVALID_CHECKPOINT'
    const before = { cpu: process.cpuUsage(), memory: process.memoryUsage.rss() }
    await expectError(loadModel(model, { device: 'cpu' }), code, /^config\.json: /)
    await expectError(plan(model), code, /^config\.json: /)
    expect(process.cpuUsage(before.cpu).user / 1e6).toBeLessThan(2)
    expect(process.memoryUsage.rss() - before.memory).toBeLessThan(100e6)
  })
})

describe('quantized weights', () => {
  const configs = [
    ['gptq', { quantization_config: { quant_method: 'gptq', bits: 4 } }],
    ['awq', { quantization_config: { quant_method: 'awq', bits: 4 } }],
    ['fp8', { quantization_config: { quant_method: 'fp8', weight_block_size: null } }],
    ['compressed-tensors', { quantization_config: { quant_method: 'compressed-tensors' } }],
    ['compressed-tensors', { compression_config: { quant_method: 'compressed-tensors' } }],
    ['bitsandbytes', { quantization_config: { load_in_4bit: true } }],
  ] as const
  test.each(configs)('%s in config.json: %j', async (method, change) => {
    const folder = await changedConfig(change)
    const named = new RegExp(`config.*quant_method "${method}".*float weights`)
    for (const open of [loadModel, plan, inspect]) await expectError(open(folder), 'UNSUPPORTED_MODEL', named)
  })

  test('an empty quantization_config, or null, says nothing', async () => {
    for (const quantization_config of [null, {}]) {
      await (await loadModel(await changedConfig({ quantization_config }))).dispose()
    }
  })

  test.each([
    ['qweight', /GPTQ or AWQ/],
    ['weight_packed', /compressed-tensors/],
    ['SCB', /bitsandbytes/],
  ])('a matrix stored as %s', async (end, message) => {
    const folder = await changedTensors('llama, biases and linear scaling', (tensors) =>
      tensors.map((tensor) => ({
        ...tensor,
        name: tensor.name.replace(/down_proj\.weight$/, `down_proj.${end}`),
      })),
    )
    await expectError(loadModel(folder), 'UNSUPPORTED_MODEL', message)
  })
})

describe('entries that change the forward pass', () => {
  test.each([
    [{ dual_chunk_attention_config: { chunk_size: 262144 } }, /dual_chunk_attention_config/],
    [{ attn_logit_softcapping: 50 }, /attn_logit_softcapping 50/],
    [{ layer_types: ['full_attention', 'sliding_attention'] }, /layer_types/],
    [{ embedding_multiplier: 12 }, /embedding_multiplier 12/],
    [{ use_bidirectional_attention: true }, /use_bidirectional_attention true/],
    [{ alibi: true }, /alibi true/],
    [{ partial_rotary_factor: 0.5 }, /partial_rotary_factor/],
    [{ rope_parameters: { rope_type: 'default', partial_rotary_factor: 0.5 } }, /partial_rotary_factor/],
    [{ rope_parameters: { full_attention: { rope_theta: 1e6 } } }, /rope parameter full_attention/],
  ])('%j', async (change, message) => {
    const folder = await changedConfig(change)
    await expectError(loadModel(folder), 'UNSUPPORTED_MODEL', message)
    await expectError(plan(folder), 'UNSUPPORTED_MODEL', message)
  })

  test('at the values that change nothing they are read over', async () => {
    const neutral = {
      dual_chunk_attention_config: null,
      layer_types: ['full_attention', 'full_attention'],
      embedding_multiplier: 1,
      attn_logit_softcapping: null,
      use_sliding_window: false,
      partial_rotary_factor: 1,
    }
    await (await loadModel(await changedConfig(neutral))).dispose()
  })

  test('falcon: kinds of attention that transformers computes otherwise', async () => {
    const falcon = 'falcon, new architecture'
    const sequential = await changedTensors(falcon, (tensors) => tensors, { parallel_attn: false })
    await expectError(loadModel(sequential), 'UNSUPPORTED_MODEL', /parallel_attn/)
  })

  test('layer_types for another number of blocks', async () => {
    const gemma2 = variants['gemma2, low caps']!
    const folder = await temporaryFolder()
    await writeVariant(folder, gemma2)
    const config = { ...gemma2.config, layer_types: ['full_attention'] }
    await writeFile(join(folder, 'config.json'), JSON.stringify(config))
    await expectError(loadModel(folder), 'INVALID_CHECKPOINT', /layer_types is for 1 blocks/)
  })
})

describe('what the architecture names is there when a model is opened', () => {
  const llama = 'mistral, short window'
  const without = (pattern: RegExp) => (tensors: TestTensor[]) =>
    tensors.filter(({ name }) => !pattern.test(name))

  test.each([
    ['the final norm', llama, /^model\.norm\.weight$/],
    ['the last norm of a block', llama, /layers\.1\.post_attention_layernorm/],
    ['a bias', 'llama, biases and linear scaling', /layers\.1\.mlp\.down_proj\.bias/],
    ['the embedding', llama, /embed_tokens/],
    ['the bias of the head', 'phi, norms of q and k', /^lm_head\.bias/],
    ['a position table', 'gpt_neo, local before global', /wpe/],
  ])('%s', async (_, title, pattern) => {
    const folder = await changedTensors(title, without(pattern))
    await expectError(loadModel(folder), 'INVALID_CHECKPOINT', /the tensor .* is missing/)
  })

  test('an untied head', async () => {
    const folder = await changedTensors(llama, without(/lm_head/), { tie_word_embeddings: false })
    await expectError(
      loadModel(folder),
      'INVALID_CHECKPOINT',
      /lm_head\.weight is missing.*tie_word_embeddings/,
    )
  })

  test('a norm of another type or shape', async () => {
    const retyped = (change: Partial<TestTensor>) => (tensors: TestTensor[]) =>
      tensors.map((tensor) => (tensor.name === 'model.norm.weight' ? { ...tensor, ...change } : tensor))
    const halves: Partial<TestTensor> = { dtype: 'F64', data: new Uint8Array(8 * 24) }
    const folder = await changedTensors(llama, retyped(halves))
    await expectError(loadModel(folder), 'UNSUPPORTED_MODEL', /model\.norm\.weight has dtype F64/)
    const shorter = await changedTensors(llama, retyped(vector('model.norm.weight', 23)))
    await expectError(loadModel(shorter), 'INVALID_CHECKPOINT', /model\.norm\.weight is \[23\]/)
  })

  test.each([
    ['a bias', 'mistral, short window', 'model.layers.0.self_attn.q_proj.bias'],
    ['a norm in a block', llama, 'model.layers.1.self_attn.q_norm.weight'],
    ['a norm at an end', llama, 'model.embed_norm.weight'],
    ['a bias of the head', llama, 'lm_head.bias'],
  ])('%s that config.json does not speak of is refused', async (_, title, name) => {
    const folder = await changedTensors(title, (tensors) => [...tensors, vector(name, 16)])
    const error = await expectError(loadModel(folder), 'UNSUPPORTED_MODEL', /does not use/)
    expect(error.message).toContain(name)
  })

  test('buffers and blocks beyond the last do not matter', async () => {
    const names = [
      'model.layers.0.self_attn.rotary_emb.inv_freq',
      'model.layers.7.input_layernorm.weight',
      'model.layers.0.attn.bias',
    ]
    const folder = await changedTensors(llama, (tensors) => [
      ...tensors,
      ...names.map((name) => vector(name, 4)),
    ])
    await (await loadModel(folder)).dispose()
  })

  test.each([
    ['base_model.model.', /under the prefix "base_model\.model\."/],
    ['_orig_mod.', /under the prefix "_orig_mod\."/],
    ['module.', /under the prefix "module\."/],
  ])('names under %s', async (prefix, message) => {
    const folder = await changedTensors(llama, (tensors) =>
      tensors.map((tensor) => ({ ...tensor, name: prefix + tensor.name })),
    )
    await expectError(loadModel(folder), 'INVALID_CHECKPOINT', message)
  })

  test('names under model.language_model., and names of something else', async () => {
    const renamed = (to: string) => (tensors: TestTensor[]) =>
      tensors.map((tensor) => ({ ...tensor, name: tensor.name.replace(/^model\./, to) }))
    const inner = await changedTensors(llama, renamed('model.language_model.'))
    await expectError(
      loadModel(inner),
      'INVALID_CHECKPOINT',
      /prefix "model\.language_model\.", but are expected under "model\."/,
    )
    const other = await changedTensors(llama, () => [vector('encoder.block.0.wq', 4), vector('x.y', 4)])
    await expectError(loadModel(other), 'INVALID_CHECKPOINT', /names that begin with "encoder\.block", "x"/)
  })

  test('the weights of an adapter', async () => {
    const folder = await changedTensors(llama, () => [
      vector('base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight', 4),
    ])
    await expectError(loadModel(folder), 'UNSUPPORTED_MODEL', /merge the LoRA adapter/)
  })
})

describe('entries of config.json', () => {
  test('an entry that is null and named as what every object inherits says nothing', async () => {
    const folder = await writeTinyModel(await temporaryFolder())
    const file = join(folder, 'config.json')
    const config = await readFile(file, 'utf8')
    await writeFile(file, `{"__proto__":null,"constructor":null,${config.slice(1)}`)
    const model = await loadModel(folder, { device: 'cpu', threads: 1 })
    await model.dispose()
  })

  test('names of Object.prototype are no activation', async () => {
    for (const hidden_act of ['constructor', '__proto__', 'toString'])
      await expectError(
        plan(await changedConfig({ hidden_act })),
        'INVALID_CHECKPOINT',
        /hidden_act: .* known are/,
      )
  })

  test('nested a hundred thousand times', async () => {
    const deep = '['.repeat(1e5) + ']'.repeat(1e5)
    const codes: Record<string, ErrorCode> = {
      model_type: 'UNSUPPORTED_MODEL',
      hidden_act: 'INVALID_CHECKPOINT',
      rope_scaling: 'INVALID_CHECKPOINT',
      quantization_config: 'UNSUPPORTED_MODEL',
      alibi: 'UNSUPPORTED_MODEL',
    }
    for (const entry of Object.keys(codes)) {
      const folder = await changedConfig({ [entry]: 'DEEP' })
      const file = join(folder, 'config.json')
      await writeFile(file, (await readFile(file, 'utf8')).replace('"DEEP"', deep))
      for (const open of [plan, loadModel]) await expectError(open(folder), codes[entry]!, new RegExp(entry))
    }
  })

  test('null stands for an entry that is not there', async () => {
    const entries = ['head_dim', 'rms_norm_eps', 'attention_bias', 'rope_theta', 'num_key_value_heads']
    const nulls = Object.fromEntries(entries.map((entry) => [entry, null]))
    await plan(await changedConfig(nulls))
    const model = await loadModel(await changedConfig({ ...nulls, num_key_value_heads: 2 }))
    await model.dispose()
  })

  test('NaN and Infinity, as Python writes them', async () => {
    const folder = await changedConfig({
      unread: 'NAN',
      initializer_range: ['INF', '-INF'],
      text: 'NaN "-Infinity',
    })
    const file = join(folder, 'config.json')
    const text = (await readFile(file, 'utf8')).replace(/"NAN"/, 'NaN').replace(/"(-?)INF"/g, '$1Infinity')
    expect(() => JSON.parse(text) as unknown).toThrow()
    await writeFile(file, text)
    await (await loadModel(folder)).dispose()
    await writeFile(file, text.replace('"hidden_size":24', '"hidden_size":NaN'))
    await expectError(loadModel(folder), 'INVALID_CHECKPOINT', /hidden_size: must be an integer/)
  })
})
