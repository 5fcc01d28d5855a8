import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { asText, randomTokens, writeTinyModel } from '../tiny-model.js'
import { sparsegpt } from './run.js'

let work: string
let model: string
let calibration: string
beforeAll(async () => {
  work = await temporaryFolder()
  model = await writeTinyModel(join(work, 'model'))
  calibration = join(work, 'text.txt')
  writeFileSync(calibration, asText(randomTokens(100)))
})

test('pack and unpack print the sizes, or one object with --json', async () => {
  const [dense, packed, direct, unpacked] = ['dense', 'packed', 'direct', 'unpacked'].map((name) =>
    join(work, name),
  ) as [string, string, string, string]
  const prune = ['prune', model, '--method', 'magnitude', '--pattern', '2:4', '--threads', '1']
  expect(await sparsegpt([...prune, '--out', dense])).toMatchObject({ code: 0 })
  expect(await sparsegpt([...prune, '--out', direct, '--encoding', 'bitmask'])).toMatchObject({ code: 0 })
  const json = await sparsegpt(['pack', dense, '--out', packed, '--json'])
  expect(json).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\{.*\}\n$/) })
  const bytes = (folder: string, file: string) => readFileSync(join(folder, file))
  const [before, after] = [bytes(dense, 'model.safetensors'), bytes(packed, 'packed.safetensors')]
  expect(JSON.parse(json.stdout)).toEqual({
    model: dense,
    out: packed,
    packed: { before: 0, after: 14 },
    bytes: { before: before.length, after: after.length },
    seconds: expect.any(Number),
  })
  expect(bytes(direct, 'packed.safetensors').equals(after)).toBe(true)
  const text = await sparsegpt(['unpack', packed, '--out', unpacked])
  expect(text).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(
      /unpacked: [\d.]+ kB before, [\d.]+ kB after \(\d\.\d{3} of it\), 14 matrices/,
    ),
  })
  expect(bytes(unpacked, 'model.safetensors').equals(before)).toBe(true)
})

test('prune stores codes with --bits and --head-bits', async () => {
  const out = join(work, 'codes')
  const prune = [
    'prune',
    model,
    '--method',
    'sparsegpt',
    '--calibration',
    calibration,
    '--samples',
    '2',
    '--seqlen',
    '8',
  ]
  const flags = ['--bits', '4', '--symmetric', '--encoding', 'bitmask', '--head-bits', '8', '--threads', '1']
  expect(await sparsegpt([...prune, ...flags, '--out', out])).toMatchObject({ code: 0 })
  const header = readFileSync(join(out, 'packed.safetensors'), 'latin1')
  expect(header).toMatch(/model\.embed_tokens\.codes.*layers\.0\.self_attn\.q_proj\.codes/)
  const wrong = await sparsegpt([...prune, '--encoding', 'compressed-tensors', '--out', join(work, 'none')])
  expect(wrong).toMatchObject({ code: 2, stderr: expect.stringMatching(/needs bits 4 or 8/) })
})

test('what cannot be packed, or unpacked, is told with the reason', async () => {
  const out = join(work, 'none')
  const other = await writeTinyModel(join(work, 'other'))
  for (const [args, code, reason] of [
    [['pack', model, '--out', out], 2, /no linear layer that would become smaller/],
    [['unpack', model, '--out', out], 2, /is not packed/],
    [['pack', model], 2, /--out/],
    [['pack', model, '--out', other], 1, /exists: give another folder, or force \(--force\)/],
  ] as const) {
    expect(await sparsegpt([...args])).toMatchObject({ code, stderr: expect.stringMatching(reason) })
  }
})
