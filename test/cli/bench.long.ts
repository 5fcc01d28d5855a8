import { expect, test } from '@jest/globals'
import { temporaryFolder } from '../temporary.js'
import { writeTinyModel } from '../tiny-model.js'
import { sparsegpt } from './run.js'

const quick = ['--device', 'cpu', '--repeats', '1', '--threads', '2']

async function bench(args: string[]) {
  const run = await sparsegpt(['bench', ...args, ...quick, '--json'])
  expect(run).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\{.*\}\n$/) })
  return JSON.parse(run.stdout)
}

test('gemm: products and Gram matrices in both types, each with its share of a measured peak', async () => {
  const measure = () => bench(['gemm', '--sizes', '128x256x64,128x96'])
  let measured = await measure()
  // What else runs on the machine can slow down the measurement of a peak, but not each time.
  const wrong = () =>
    measured.lines.some((line: { results: { ofPeak: number }[] }) => line.results[0]!.ofPeak >= 1)
  for (let attempt = 1; wrong() && attempt < 5; attempt++) measured = await measure()
  const { table, repeats, devices, lines } = measured
  expect({ table, repeats }).toEqual({ table: 'gemm', repeats: 1 })
  expect(devices).toEqual([
    {
      device: 'cpu',
      name: expect.stringContaining('2 threads'),
      peaks: { float32: expect.any(Number), bfloat16: expect.any(Number) },
    },
  ])
  expect(lines.map(({ case: c, flop }: never) => [c, flop])).toEqual([
    [{ operation: 'linear', tokens: 128, inputs: 256, outputs: 64, dtype: 'float32' }, 2 * 128 * 256 * 64],
    [{ operation: 'gram', tokens: 128, columns: 96, dtype: 'float32' }, 128 * 96 * 97],
    [{ operation: 'linear', tokens: 128, inputs: 256, outputs: 64, dtype: 'bfloat16' }, 2 * 128 * 256 * 64],
    [{ operation: 'gram', tokens: 128, columns: 96, dtype: 'bfloat16' }, 128 * 96 * 97],
  ])
  for (const { flop, results, case: c } of lines) {
    expect(results).toHaveLength(1)
    const [{ seconds, ofPeak }] = results
    expect(seconds).toBeGreaterThan(0)
    expect(ofPeak).toBeGreaterThan(0)
    expect(ofPeak).toBeLessThan(1)
    // The peak at hand for the share lies near the run's median.
    expect(flop / seconds / ofPeak / devices[0].peaks[c.dtype]).toBeGreaterThan(0.1)
  }
})

test('solver: half of the weights, patterns and rounding for each size', async () => {
  const { devices, lines } = await bench(['solver', '--sizes', '64x48'])
  expect(Object.keys(devices[0].peaks)).toEqual(['float32'])
  expect(lines.map(({ name }: { name: string }) => name)).toEqual([
    '64 × 48, 50 %',
    '64 × 48, 2:4',
    '64 × 48, 4:8',
    '64 × 48, 50 % + 4 bit',
  ])
  expect(lines[0].flop).toBe(48 ** 3 / 3 + 64 * 48 ** 2)
  for (const { results } of lines) expect(results[0].seconds).toBeGreaterThan(0)
})

test('forward: a block of each family runs on random weights', async () => {
  const { lines } = await bench(['forward', '--sizes', 'opt-125m', '--seqlen', '16'])
  // Four matrices of 768² and two of 768 · 3072; two products over half of 16² scores for each of 768 columns.
  expect(lines[0].flop).toBe(2 * 16 * 12 * 768 ** 2 + 2 * 16 * 17 * 768)
  expect(lines.map((line: { case: { dtype: string } }) => line.case.dtype)).toEqual(['float32', 'bfloat16'])
  const llama = await bench(['forward', '--sizes', 'llama-1b', '--seqlen', '16', '--dtype', 'bfloat16'])
  expect(llama.lines).toHaveLength(1)
})

test('without --json a person reads a table', async () => {
  const { code, stdout } = await sparsegpt(['bench', 'gemm', '--sizes', '64x64x64', ...quick])
  expect(code).toBe(0)
  expect(stdout).toMatch(/^cpu: .*; peak float32 [\d.]+, bfloat16 [\d.]+ GFLOP\/s\n/)
  expect(stdout).toMatch(/product 64 × 64 × 64 │ float32 .*│ +[\d.]+ │ +[\d.]+ │ +[\d.]+ %/)
})

test.each<[string[], RegExp]>([
  [['attention'], /solver.*forward/],
  [['gemm', '--sizes', '12x'], /--sizes: "12x" is not a product such as/],
  [['solver', '--sizes', '64x44'], /--sizes: "64x44" is not .*8 divides/],
  [['solver', '--dtype', 'bfloat16'], /--dtype: the solver computes in float32/],
  [['forward', '--sizes', 'gpt-5'], /--sizes: "gpt-5" is not opt-125m, llama-1b, llama-7b/],
  [['gemm', '--repeats', '0'], /--repeats: .*0/],
  [['forward', '--seqlen', '0'], /--seqlen: .*0/],
])('bad usage ends with 2 and says what would be right: %j', async (args, message) => {
  expect(await sparsegpt(['bench', ...args])).toMatchObject({
    code: 2,
    stdout: '',
    stderr: expect.stringMatching(message),
  })
})

test('decode: a model as it is, beside the rate at which memory is read', async () => {
  const folder = await writeTinyModel(await temporaryFolder())
  const run = await sparsegpt(['bench', 'decode', folder, ...quick, '--max-tokens', '4', '--json'])
  expect(run.code).toBe(0)
  const { device, readRate, repeats, lines } = JSON.parse(run.stdout)
  expect({ device, repeats }).toEqual({
    device: { device: 'cpu', name: expect.stringContaining('2 threads') },
    repeats: 1,
  })
  expect(readRate).toBeGreaterThan(1e8)
  expect(lines).toHaveLength(1)
  const [line] = lines
  expect(line.bytesPerToken).toBeGreaterThan(0)
  expect(line.ofReadRate).toBeCloseTo((line.bytesPerToken * line.tokensPerSecond) / readRate, 6)
  expect(line.blockSeconds * 2).toBeLessThan(1 / line.tokensPerSecond)
})

test.each([
  [['--max-tokens', '0'], /--max-tokens/],
  [['--sizes', 'gpt-5'], /--sizes: "gpt-5" is not one of llama-135m/],
  [['--goals', '55%'], /--goals/],
  [['some-model', '--values', 'int4'], /--values: is for random weights/],
  [['--seqlen', '4'], /unknown option '--seqlen'/],
])('decode %p is a usage error', async (args, message) => {
  const { code, stderr } = await sparsegpt(['bench', 'decode', ...args])
  expect({ code, stderr }).toEqual({ code: 2, stderr: expect.stringMatching(message) })
})
