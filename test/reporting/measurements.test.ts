import { existsSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { loadModel, perplexity, prune, sensitivity, sweep } from '../../src/index.js'
import { temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

let parent: string
let source: string
beforeAll(async () => {
  parent = await temporaryFolder()
  source = await writeTinyModel(join(parent, 'model'))
})

const calibration = { tokens: randomTokens(600), samples: 8, sequenceLength: 32 }
const text = { tokens: randomTokens(400, 2), sequenceLength: 32 }

describe('sweep', () => {
  test('has the perplexities that pruning and measuring one by one give, and writes them', async () => {
    const out = join(parent, 'swept')
    const options = { sparsity: [0.3, 0.6], patterns: ['2:4'], calibration, text, out }
    const report = await sweep(source, options)
    expect(report.points.map(({ method, sparsity }) => `${method} ${sparsity}`)).toEqual(
      [0.3, 0.6, 0.5].flatMap((share) => [`sparsegpt ${share}`, `wanda ${share}`, `magnitude ${share}`]),
    )
    const model = await loadModel(source)
    expect(report.dense).toBe((await perplexity(model, text)).perplexity)
    await prune(model, { method: 'wanda', sparsity: 0.6, calibration })
    expect(report.points[4]!.perplexity).toBe((await perplexity(model, text)).perplexity)
    await model.dispose()

    const json = JSON.parse(await readFile(join(out, 'sparsegpt-report.json'), 'utf8'))
    expect(json).toMatchObject({ format: 1, job: 'sweep', options: { sparsity: [0.3, 0.6] }, result: report })
    expect(await readFile(join(out, 'sparsegpt-report.html'), 'utf8')).toContain('Perplexity over sparsity')
    await expect(sweep(source, options)).rejects.toMatchObject({ code: 'OUTPUT_EXISTS' })
    const again = { ...options, sparsity: [0.3], patterns: [], methods: ['magnitude' as const], force: true }
    expect((await sweep(source, again)).points).toHaveLength(1)
  })

  test.each([
    ['no goal', {}, /sparsity: give at least one share/],
    ['no calibration text', { sparsity: [0.5] }, /calibration: is needed for every method but magnitude/],
    ['a pattern that is none', { patterns: ['2-4'], calibration }, /patterns\.0: must be n:m/],
  ])('with %s is refused', async (_, options, message) => {
    const out = join(parent, 'refused')
    await expect(sweep(source, { text, out, ...options })).rejects.toMatchObject({
      code: 'INVALID_OPTION',
      message: expect.stringMatching(message),
    })
    expect(existsSync(out)).toBe(false)
  })
})

describe('sensitivity', () => {
  test.each(['sparsegpt', 'magnitude'] as const)(
    'is nothing for a layer that has nothing to lose (%s)',
    async (method) => {
      const model = await loadModel(
        await writeTinyModel(join(parent, `idle-${method}`), 'llama', (name, values) => {
          if (name === 'model.layers.0.mlp.down_proj.weight') values.fill(0)
        }),
      )
      const { parts } = await sensitivity(model, { calibration, method, pattern: '2:4' })
      expect(parts).toHaveLength(14)
      expect(parts[0]).toMatchObject({ name: 'model.layers.0.self_attn.q_proj', block: 0 })
      // What feeds the layer has no effect either.
      const idle = parts.filter(({ name }) => name.startsWith('model.layers.0.mlp.'))
      for (const { damage } of idle) expect(Math.abs(damage)).toBeLessThan(1e-6)
      for (const part of parts) if (!idle.includes(part)) expect(part.damage).toBeGreaterThan(1e-4)
      const blocks = await sensitivity(model, { calibration, method, each: 'block' })
      expect(blocks.parts.map(({ name }) => name)).toEqual(['model.layers.0', 'model.layers.1'])
      for (const { damage } of blocks.parts) expect(damage).toBeGreaterThan(1e-4)
      await model.dispose()
    },
  )

  test('is what pruning the layer alone and comparing gives', async () => {
    const windows = [randomTokens(40, 3), randomTokens(40, 4)]
    const model = await loadModel(source)
    const { parts } = await sensitivity(model, { calibration: { windows }, sparsity: 0.7, method: 'wanda' })
    const { name, damage } = parts.find((part) => part.kind === 'self_attn.o_proj' && part.block === 1)!
    await prune(model, { calibration: { windows }, sparsity: 0.7, method: 'wanda', include: name })
    const divergences: number[] = []
    for (const tokens of windows) {
      const measured = await perplexity(model, { tokens, sequenceLength: 40, against: source })
      divergences.push(measured.against!.divergence)
    }
    expect(damage).toBeGreaterThan(0)
    expect(damage).toBeCloseTo((divergences[0]! + divergences[1]!) / 2, 5)
    await model.dispose()
  })

  test('writes its report', async () => {
    const model = await loadModel(source)
    const out = join(parent, 'sensitive')
    const report = await sensitivity(model, { calibration, each: 'block', out })
    await model.dispose()
    const json = JSON.parse(await readFile(join(out, 'sparsegpt-report.json'), 'utf8'))
    expect(json).toMatchObject({ job: 'sensitivity', result: report })
    expect(await readFile(join(out, 'sparsegpt-report.html'), 'utf8')).toContain('nats per token')
  })
})

test('a folder that cannot be made is an error', async () => {
  const file = join(parent, 'file')
  await writeFile(file, '')
  const options = { sparsity: [0.5], methods: ['magnitude' as const], text }
  await expect(sweep(source, { ...options, out: file })).rejects.toMatchObject({ code: 'OUTPUT_EXISTS' })
  await expect(sweep(source, { ...options, out: join(file, 'below') })).rejects.toMatchObject({
    code: 'WRITE_FAILED',
  })
})
