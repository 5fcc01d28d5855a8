import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import {
  loadModel,
  perplexity,
  plan,
  prune,
  pruneLayer,
  SparseGptError,
  type Model,
  type PruneOptions,
} from '../../src/index.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { randomTokens, writeTinyModel } from '../tiny-model.js'

let folder: string
let model: Model
let scratch: string
beforeAll(async () => {
  folder = await writeTinyModel(await temporaryFolder())
  model = await loadModel(folder, { threads: 1, device: 'cpu' })
  scratch = await temporaryFolder()
})
afterAll(() => model.dispose())

const calibration = { tokens: randomTokens(200), samples: 2, sequenceLength: 16 }
const rows = 6
const columns = 8
const layer = {
  weight: Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(i + 1)),
  rows,
  columns,
  hessian: Float32Array.from({ length: columns * columns }, (_, i) => (i % (columns + 1) ? 0.1 : 2)),
}

const detached = <T extends Float32Array | Uint8Array>(type: new (length: number) => T): T => {
  const array = new type(8)
  structuredClone(array, { transfer: [array.buffer as ArrayBuffer] })
  return array
}
const revoked = () => {
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  return proxy
}
const throwing = () => ({
  get constructor(): never {
    throw new Error('a getter that throws')
  },
})

/** Values of many kinds. */
const anything = fc.oneof(
  fc.anything({
    withBigInt: true,
    withTypedArray: true,
    withDate: true,
    withNullPrototype: true,
    withSparseArray: true,
  }),
  fc.constantFrom<unknown>(
    1n,
    -1,
    0.5,
    2 ** 53,
    1e308,
    -0,
    NaN,
    Infinity,
    '',
    '\0',
    'a\0b',
    '2:4',
    '4:2',
    '0:0',
    '1:9999',
  ),
  fc
    .constantFrom<() => unknown>(
      throwing,
      () => Symbol('s'),
      () => new BigInt64Array(4),
    )
    .map((make) => make()),
  fc.constantFrom<unknown>(
    new SharedArrayBuffer(8),
    new DataView(new ArrayBuffer(8)),
    new Map(),
    /x/g,
    () => undefined,
  ),
  fc.constantFrom<unknown>(
    { length: 1e9 },
    { length: -1 },
    { length: NaN },
    [1n],
    [Symbol('t')],
    [{}],
    ['1'],
    [1.5],
    [2 ** 40],
  ),
)
const settles = async (call: () => Promise<unknown>) => {
  try {
    await call()
  } catch (error) {
    if (error instanceof SparseGptError) {
      expect(error.code).not.toBe('INTERNAL')
      expect(error.message).not.toMatch(/\[object /)
      return
    }
    throw error
  }
}

/** Options of which some have arbitrary values. */
const spoilt = <T extends object>(valid: T, names: readonly string[]) =>
  fc
    .uniqueArray(fc.tuple(fc.constantFrom(...names), anything), {
      minLength: 1,
      maxLength: 2,
      selector: ([name]) => name,
    })
    .map((changes): T => ({ ...valid, ...Object.fromEntries(changes) }))

const selection = ['method', 'sparsity', 'pattern', 'mask', 'blockSize', 'dampening', 'bits', 'groupSize']

describe('whatever the arguments, a call settles, and rejects with a SparseGptError', () => {
  test('pruneLayer', async () => {
    const options = fc.oneof(
      {
        weight: 4,
        arbitrary: spoilt(layer, [...selection, 'weight', 'rows', 'columns', 'hessian', 'device', 'other']),
      },
      { weight: 1, arbitrary: anything },
    )
    await fc.assert(
      fc.asyncProperty(options, (o) => settles(() => pruneLayer(o as typeof layer))),
      { numRuns: 400 },
    )
  })

  test('prune', async () => {
    // Strings would name files; of those that name none on any system, anything says enough.
    const harmless = (value: unknown) => typeof value !== 'string' || value === '' || value.includes('\0')
    const paths = ['mask', 'out', 'offload']
    const names = [
      ...selection,
      'sequential',
      'include',
      'exclude',
      'minBlock',
      'maxBlock',
      'calibration',
      'force',
    ]
    const more = ['memory', 'onProgress', 'signal', 'other']
    const valid: PruneOptions = { calibration }
    const options = fc
      .oneof(
        { weight: 3, arbitrary: spoilt(valid, [...names, ...more, ...paths]) },
        {
          weight: 2,
          arbitrary: spoilt(calibration, [
            'dataset',
            'file',
            'textField',
            'tokens',
            'samples',
            'sequenceLength',
            'seed',
            'saveTokens',
            'onDownload',
          ]).map((spoiltText) => ({ calibration: spoiltText })),
        },
        { weight: 1, arbitrary: anything },
      )
      .filter((o) => {
        if (typeof o !== 'object' || o === null || !('calibration' in o)) return true
        const text = (o.calibration ?? {}) as Record<string, unknown>
        return (
          paths.every((name) => harmless(Reflect.get(o, name))) &&
          (typeof text !== 'object' ||
            ['file', 'saveTokens'].every((name) => harmless(Reflect.get(text, name))))
        )
      })
    await fc.assert(
      fc.asyncProperty(options, (o) => settles(() => prune(model, o as PruneOptions))),
      { numRuns: 400 },
    )
  })

  test('the model of prune and perplexity', async () => {
    await fc.assert(
      fc.asyncProperty(anything, async (other) => {
        await expectError(
          prune(other as Model, { calibration }),
          'INVALID_OPTION',
          /^prune: the first argument must be a model/,
        )
        await expectError(
          perplexity(other as Model, calibration),
          'INVALID_OPTION',
          /^perplexity: the first argument/,
        )
      }),
      { numRuns: 100 },
    )
  })

  test('perplexity', async () => {
    const text = { tokens: calibration.tokens, sequenceLength: 16 }
    const names = [
      'tokens',
      'sequenceLength',
      'windows',
      'onProgress',
      'signal',
      'dataset',
      'textField',
      'other',
    ]
    await fc.assert(
      fc.asyncProperty(spoilt(text, names), (o) => settles(() => perplexity(model, o))),
      { numRuns: 200 },
    )
  })

  test('logits', async () => {
    const ids = fc.oneof(
      anything,
      fc.array(fc.oneof(anything, fc.array(anything, { maxLength: 3 })), { maxLength: 3 }),
    )
    await fc.assert(
      fc.asyncProperty(ids, (any) => settles(() => model.logits(any as number[][]))),
      { numRuns: 200 },
    )
  })

  test('plan', async () => {
    const names = [
      ...selection.filter((name) => name !== 'mask'),
      'device',
      'dtype',
      'samples',
      'sequenceLength',
      'include',
    ]
    await fc.assert(
      fc.asyncProperty(spoilt({ samples: 2, sequenceLength: 16 }, names), (o) =>
        settles(() => plan(folder, o)),
      ),
      { numRuns: 100 },
    )
  })
})

describe('what is not options', () => {
  test.each([[undefined], ['path'], [7], [null], [[]], [1n]])('%p', async (wrong) => {
    await expectError(
      prune(model, wrong as never),
      'INVALID_OPTION',
      /^prune: .*(must be an object|unknown option|is needed)/,
    )
    await expectError(pruneLayer(wrong as never), 'INVALID_OPTION', /^pruneLayer: /)
  })

  test('what throws when it is looked at', async () => {
    for (const wrong of [revoked(), { calibration, sparsity: revoked() }, { calibration: revoked() }]) {
      await expectError(prune(model, wrong as never), 'INVALID_OPTION', /^prune: /)
    }
    for (const wrong of [revoked(), { ...layer, weight: revoked() }, { ...layer, bits: revoked() }]) {
      await expectError(pruneLayer(wrong as never), 'INVALID_OPTION', /^pruneLayer: /)
    }
    await expectError(
      prune(revoked() as never, { calibration }),
      'INVALID_OPTION',
      /^prune: the first argument/,
    )
  })

  test('arrays that are detached', async () => {
    const empty = { calibration: { ...calibration, tokens: detached(Float32Array) } }
    await expectError(prune(model, empty), 'INVALID_TEXT', /the calibration text has 0 tokens/)
    await expectError(
      pruneLayer({ ...layer, weight: detached(Float32Array) }),
      'INVALID_OPTION',
      /option weight: must have/,
    )
    await expectError(pruneLayer({ ...layer, mask: detached(Uint8Array) }), 'INVALID_OPTION', /mask/)
  })

  test('a path with a NUL character names its option', async () => {
    for (const name of ['out', 'mask', 'offload']) {
      await expectError(
        prune(model, { calibration, [name]: 'a\0b' }),
        'INVALID_OPTION',
        new RegExp(`option ${name}: .*NUL`),
      )
    }
    await expectError(
      prune(model, { calibration: { file: 'a\0b' } }),
      'INVALID_OPTION',
      /option calibration.file: .*NUL/,
    )
    expect(await readdir(scratch)).toEqual([])
  })
})

test('a model that has been disposed of is refused by every function, and can be disposed of again', async () => {
  const gone = await loadModel(folder, { threads: 1, device: 'cpu' })
  await gone.dispose()
  await gone.dispose()
  const out = join(scratch, 'out')
  await expectError(
    prune(gone, { calibration, out }),
    'INVALID_OPTION',
    /^prune: the model .* has been disposed of/,
  )
  await expectError(
    perplexity(gone, calibration),
    'INVALID_OPTION',
    /^perplexity: the model .* has been disposed of/,
  )
  await expectError(gone.logits([[1, 2]]), 'INVALID_OPTION', /^logits: the model .* has been disposed of/)
  expect(await readdir(scratch)).toEqual([])
})
