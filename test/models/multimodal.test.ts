import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from '@jest/globals'
import { loadModel, plan, prune } from '../../src/index.js'
import { writeSafetensors } from '../files/files.js'
import { readTensors } from '../safetensors-file.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { variants, weights, writeVariant } from './variants.js'

const title = 'llava, the language model'
const variant = variants[title]!

/** The names that transformers 5 has inside a model for those of the hub. */
const renamed = (name: string) =>
  name
    .replace(/^language_model\.model\./, 'model.language_model.')
    .replace(/^language_model\.lm_head/, 'lm_head')
    .replace(/^(vision_tower|multi_modal_projector)/, 'model.$1')

async function folderOf(rename: (name: string) => string, config: object = variant.config): Promise<string> {
  const folder = await temporaryFolder()
  const tensors = weights(variant.shapes).map((tensor) => ({ ...tensor, name: rename(tensor.name) }))
  await writeSafetensors(join(folder, 'model.safetensors'), tensors)
  await writeFile(join(folder, 'config.json'), JSON.stringify(config))
  return folder
}

test.each([
  ['the hub', (name: string) => name],
  ['transformers 5', renamed],
] as const)('of a multimodal model with names of %s only the language model is pruned', async (_, rename) => {
  const folder = await folderOf(rename)
  const out = join(await temporaryFolder(), 'out')
  const tokens = Int32Array.from({ length: 400 }, (_, i) => (i * 7 + ((i * i) % 5)) % 16)
  const model = await loadModel(folder)
  const report = await prune(model, {
    sparsity: 0.5,
    calibration: { tokens, samples: 8, sequenceLength: 16 },
    out,
  })
  await model.dispose()
  expect(report.layers).toHaveLength(14)
  const pruned = new Set(report.layers.map(({ name }) => `${name}.weight`))
  expect([...pruned].filter((name) => !name.includes('language_model'))).toEqual([])

  const [before, after] = [folder, out].map((place) => join(place, 'model.safetensors'))
  const [was, is] = [await readTensors(before!), await readTensors(after!)]
  expect([...is.keys()]).toEqual([...was.keys()])
  for (const [name, { values }] of is) {
    const share = values.filter((value) => value === 0).length / values.length
    if (pruned.has(name)) expect([name, share]).toEqual([name, 0.5])
    else expect([name, values]).toEqual([name, was.get(name)!.values])
  }
  expect(await readFile(join(out, 'config.json'), 'utf8')).toBe(
    await readFile(join(folder, 'config.json'), 'utf8'),
  )
  await (await loadModel(out)).dispose()
})

test('sizes that text_config leaves out are those of its class', async () => {
  const folder = await temporaryFolder()
  const text_config = { model_type: 'llama', vocab_size: 32064, rms_norm_eps: 1e-5 }
  await writeFile(join(folder, 'config.json'), JSON.stringify({ model_type: 'llava', text_config }))
  // LLaMA 7B: 32 blocks of 4 · 4096² + 3 · 4096 · 11008 weights.
  expect((await plan(folder)).prunedWeights).toBe(32 * (4 * 4096 ** 2 + 3 * 4096 * 11008))
})

test('a head that is tied by the whole config', async () => {
  const { config, shapes, ids } = variant
  const { 'language_model.lm_head.weight': head, ...rest } = shapes
  const [untied, tied] = [await temporaryFolder(), await temporaryFolder()]
  await writeVariant(untied, { ...variant, config: { ...config, tie_word_embeddings: null }, shapes: rest })
  await writeVariant(tied, { ...variant, config: { ...config, tie_word_embeddings: true }, shapes: rest })
  expect(head).toEqual([16, 24])
  const logits = []
  for (const folder of [untied, tied]) {
    const model = await loadModel(folder)
    logits.push((await model.logits(ids)).data)
    await model.dispose()
  }
  expect(logits[1]).toEqual(logits[0])
})

test.each([
  [
    { text_config: { model_type: 'mllama_text_model' } },
    /text_config\.model_type "mllama_text_model" is not/,
  ],
  [{ model_type: 'paligemma', text_config: { model_type: 'gemma' } }, /paligemma.* both directions/],
] as const)('%j is refused', async (change, message) => {
  const folder = await folderOf((name) => name, { ...variant.config, ...change })
  await expectError(loadModel(folder), 'UNSUPPORTED_MODEL', message)
})
