import { readFileSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { afterAll, describe, expect, test } from '@jest/globals'
import { nativeAddon } from '../../src/native/addon.js'
import { Device, type Tensor } from '../../src/native/device.js'
import { operations, phaseOf } from '../../src/native/operations.js'
import { expectError } from '../temporary.js'

const device = new Device('cpu', 1)
afterAll(() => device.close())

const header = readFileSync(new URL('../../native/core/operations.h', import.meta.url), 'utf8')
const list = header.slice(header.indexOf('#define SPARSEGPT_OPERATIONS'))
const declared = [...list.matchAll(/X\((\w+)\)/g)]
  .map(([, name]) => name!)
  .filter((name) => name !== 'Operation')
const inScript = (name: string) => name.charAt(0).toLowerCase() + name.slice(1)

describe('the operation table', () => {
  test('has the same operations in TypeScript and in C++, and a phase for each', () => {
    expect(Object.keys(operations).sort()).toEqual(declared.map(inScript).sort())
    for (const name of Object.keys(operations)) expect(phaseOf(name)).toBeDefined()
  })

  test('hands each operation the fields that its C++ struct names', () => {
    const seen = new Map<string, string[]>()
    const addon = nativeAddon()
    const spy = new Device('cpu', 1, {
      ...addon,
      run: (_, operation, fields) => void seen.set(operation, Object.keys(fields)),
    })
    const t = (rows: number, columns: number): Tensor => spy.empty('float32', [rows, columns])
    const vector = (size: number): Tensor => spy.empty('float32', [size])
    const x = t(4, 8)
    spy.cast(x, 'float32')
    spy.transpose(x, 'float32')
    spy.fill(x, 0)
    spy.writeFile(1, 0, x)
    spy.timestamp()
    spy.embedding(x, vector(3), 'float32')
    spy.linear(x, t(2, 8), vector(2))
    spy.layerNorm(x, vector(8), vector(8), 1e-5)
    spy.rmsNorm(x, vector(8), 1e-5)
    spy.rotary(x, { cosine: t(9, 2), sine: t(9, 2) }, vector(4), 4)
    const heads = { sequences: 1, heads: 2, kvHeads: 2, headDim: 4, scale: 1, slopes: vector(2) }
    spy.attention(x, x, x, heads)
    spy.activate(x, 'relu')
    spy.gate(x, x, 'relu')
    spy.add(x, x)
    spy.scale(x, 2)
    spy.softcap(x, 2)
    spy.takeColumns(x, { groups: 1, first: 0, count: 2, stride: 2 })
    spy.scatterAdd(x, x, vector(4), vector(4))
    spy.crossEntropy(x, t(5, 8), vector(4), { bias: vector(5), likeliest: vector(4) })
    spy.accumulateGram(t(8, 8), x, 1)
    spy.accumulateSquares(vector(8), x, 1)
    spy.accumulateProduct(t(8, 8), x, x, 1)
    spy.normalizeGram(t(8, 8))
    spy.scaleColumns(x, vector(8))
    spy.checkFinite(x, 'x')
    spy.scores(x, vector(8))
    spy.selectMask(x, { sparsity: 0.5 })
    spy.applyMask(x, x)
    spy.markZeros(x)
    spy.factorHessian(t(8, 8), 0.01)
    spy.triangularProduct(x, t(8, 8))
    spy.conjugateGradients(x, t(4, 8), { mask: x, factor: t(8, 8) }, { tolerance: 0, iterations: 1 })
    const factor = { factor: t(8, 8), dead: vector(8) }
    spy.pruneSparsegpt(
      x,
      factor,
      { given: x },
      {
        blockSize: 128,
        rounding: { bits: 4, groupSize: 4, symmetric: true, clip: true, stepType: 'bfloat16' },
      },
    )
    spy.countZeros(x, t(1, 2))
    const [bitmask, offsets] = [spy.empty('uint8', [4, 1]), spy.empty('uint8', [4, 8])]
    spy.markValues(x)
    spy.packValues(x, bitmask, offsets, 3)
    spy.unpackValues({ values: vector(3), bitmask, offsets }, x, 'a file')
    const codes = spy.empty('uint8', [4, 8])
    const grids = { bits: 4, symmetric: true, clip: false, stepType: 'bfloat16' } as const
    spy.findGrids(x, grids)
    spy.quantizeCodes(x, { steps: t(4, 1), zeros: t(4, 1) }, 4)
    spy.dequantizeCodes(codes, { scale: t(4, 1), zeroPoints: codes }, 4, x)
    spy.markCodes(codes, codes, 4)
    spy.packCodes(codes, 4, [9], { bitmask, offsets })
    spy.unpackCodes({ packed: vector(9), bitmask, offsets, zeroPoints: codes }, 4, codes, 'a file')
    const form = { bits: 4, masked: true, group: 4, halfScales: false } as const
    const matrix = { x: codes, grid: { zeros: codes, scales: codes } }
    spy.measureStrips(matrix, form)
    spy.packStrips(matrix, offsets, 99, form)
    spy.multiplyStrips(x, { stream: vector(99), offsets, rows: 4, form }, vector(4))
    spy.multiply(x, t(8, 2))
    spy.accumulateRows(vector(8), x)
    spy.normGradient(x, x, vector(8), 1e-5, { dweight: vector(8), dbias: vector(8) })
    spy.attentionGradient(x, x, x, x, { ...heads, sinks: vector(2) }, t(4, 2))
    spy.activateGradient(x, x, 'relu')
    spy.gateGradient(x, x, x, 'relu')
    spy.putColumns(x, t(4, 2), { first: 0, count: 2, stride: 2 })
    spy.rowDots(x, x)
    spy.relativeErrors(x, x, { dx: x })
    spy.klDivergence({ x, head: t(5, 8), bias: vector(5) }, { x, head: t(5, 8), bias: vector(5) }, { dx: x })
    const step = { step: 1, rate: 1, beta1: 0.9, beta2: 0.9, epsilon: 1e-8, decay: 0, keepZeros: true }
    spy.adam(x, { first: x, second: x, gradient: x }, step)
    expect([...seen.keys()].sort()).toEqual(Object.keys(operations).sort())
    for (const name of declared) {
      const struct = header.slice(header.indexOf(`struct ${name} {`))
      const fields = /SPARSEGPT_FIELDS\(([^)]*)\)/
        .exec(struct)![1]!
        .split(',')
        .map((field) => field.trim())
      const camel = fields.map((field) => field.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase()))
      expect([name, seen.get(inScript(name))!.sort()]).toEqual([name, camel.sort()])
    }
  })

  test('counts FLOP of causal attention with a start and a window', () => {
    const pairs = (queries: number, start: number, window: number) => {
      let count = 0
      for (let i = 0; i < queries; i++) count += window > 0 ? Math.min(window, start + i + 1) : start + i + 1
      return count
    }
    for (const [queries, start, window] of [
      [5, 0, 0],
      [5, 3, 0],
      [7, 0, 3],
      [7, 2, 4],
      [3, 9, 4],
    ] as const) {
      const [q, k] = [device.empty('float32', [queries, 4]), device.empty('float32', [start + queries, 4])]
      const shape = { sequences: 1, heads: 1, kvHeads: 1, headDim: 4, scale: 1, start, window }
      const { flop } = operations.attention.call(q, k, k, shape)
      expect(flop).toBe(4 * 4 * pairs(queries, start, window))
    }
  })
})

describe('the addon', () => {
  test('refuses operations and fields that it does not know, by name', () => {
    const addon = nativeAddon()
    const handle = addon.openDevice('cpu', 0, 1)
    expect(() => addon.run(handle, 'nothing', {})).toThrow(/nothing/)
    expect(() => addon.run(handle, 'scale', { x: 1, factor: 2 })).toThrow(/scale\.x/)
    const tensor = addon.allocate(handle, 'float32', 1, 1)
    expect(() => addon.run(handle, 'scale', { x: tensor, factor: 'two' })).toThrow(/scale\.factor/)
    expect(() => addon.openDevice('abacus', 0, 1)).toThrow(/abacus.*cuda, cpu/)
    addon.closeDevice(handle)
  })

  test('takes what it needs for an operation from the kind of backend, and checks the operands', () => {
    const addon = nativeAddon()
    const [weight, squares, out] = [
      [64, 32],
      [1, 32],
      [64, 32],
    ].map(([rows, columns]) => addon.shapeTensor('float32', rows!, columns!, false))
    expect(addon.scratchBytes('cpu', 'scores', { out, weight, squares })).toBeGreaterThan(0)
    expect(() => addon.scratchBytes('cpu', 'scores', { out, weight, squares: weight })).toThrow(/squares/)
  })

  test('an operation that fails its check fails at the next synchronisation', async () => {
    device.softcap(device.zeros('float32', [2, 2]), -1)
    await expectError(device.synchronize(), 'INTERNAL', /cap must be positive.*softcap/)
  })
})

describe('scopes', () => {
  test('an asynchronous body keeps its scope, also beside another', async () => {
    const collect = async (tensors: Tensor[], sizes: number[]) => {
      for (const size of sizes) {
        device.empty('float32', [size])
        await setTimeout(1)
      }
      return tensors.map(({ width }) => width)
    }
    const [a, b]: [Tensor[], Tensor[]] = [[], []]
    const results = await Promise.all([
      device.within(a, () => collect(a, [1, 2, 3])),
      device.within(b, () => collect(b, [4, 5])),
    ])
    expect(results).toEqual([
      [1, 2, 3],
      [4, 5],
    ])
  })

  test('tidy keeps what it returns, in the scope outside', () => {
    const outer: Tensor[] = []
    const kept = device.within(outer, () =>
      device.tidy(() => {
        device.empty('float32', [1])
        return device.empty('float32', [2])
      }),
    )
    expect(outer).toEqual([kept])
  })
})
