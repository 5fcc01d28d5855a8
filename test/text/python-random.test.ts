import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { PythonRandom } from '../../src/text/python-random.js'

// Made with CPython 3.11; the last ten draws come after the generator's state has been renewed several times:
//   random.seed(seed)
//   for _ in range(200): last = [random.randint(a, b) for a, b in ranges]
const ranges: [number, number][] = [
  [0, 0],
  [0, 1],
  [-5, 5],
  [0, 119194],
  [0, 2147483648],
  [0, 4294967295],
  [0, 4294967296],
  [0, 1099511627776],
  [0, 9007199254740991],
  [-4503599627370496, 4503599627370495],
]
const expected: [number | bigint, number[]][] = [
  [
    0,
    [0, 0, -3, 86053, 1508811531, 1389485604, 3406892792, 705454019164, 6352270559187675, 2691221350504334],
  ],
  [
    1,
    [0, 0, 4, 57555, 1362406906, 2511754249, 3378737502, 213248177905, 7317122852902930, -2282746187978845],
  ],
  [
    -1,
    [0, 0, 4, 57555, 1362406906, 2511754249, 3378737502, 213248177905, 7317122852902930, -2282746187978845],
  ],
  [42, [0, 1, 2, 72869, 1073108894, 406841968, 3409386903, 26291441555, 2354755429457945, 2202074402817947]],
  [
    4294967296,
    [0, 0, 4, 77543, 1575345263, 2945814868, 1355553445, 284526804519, 2114748358999651, -2591659616809894],
  ],
  [
    9007199254740991,
    [0, 1, 0, 30032, 1665619973, 654222130, 640144718, 824949645295, 6296795128260526, -2170316358887748],
  ],
  [
    123456789012345678901234567890n,
    [0, 0, 1, 72857, 1053419310, 2935529784, 1100916183, 422671961494, 6256675308462420, -4034849963327855],
  ],
  [
    -1180591620717411303424n,
    [0, 0, -3, 26506, 1407899263, 1011212225, 358065882, 1091269401362, 853197693891262, 2357063273177785],
  ],
  [
    3n ** 6300n,
    [0, 1, 3, 115018, 570525228, 1127350583, 2414373530, 706679084735, 4918078855958468, 2719833665713691],
  ],
]

describe('PythonRandom', () => {
  test.each(expected)('draws what CPython draws with seed %p', (seed, draws) => {
    const random = new PythonRandom(seed)
    let last: number[] = []
    for (let i = 0; i < 200; i++) last = ranges.map(([a, b]) => random.randint(a, b))
    expect(last).toEqual(draws)
  })

  test('draws the well-known first values of seed 0', () => {
    const random = new PythonRandom(0)
    expect(Array.from({ length: 5 }, () => random.randint(0, 99))).toEqual([49, 97, 53, 5, 33])
  })

  test.each([
    [0, [0.8444218515250481, 0.7579544029403025, 0.420571580830845]],
    [7, [0.32383276483316237, 0.15084917392450192, 0.6509344730398537]],
    [2 ** 40 + 3, [0.21978710637116716, 0.5494687768352203, 0.09461190973523603]],
  ])('random() is that of CPython with seed %p', (seed, numbers) => {
    const random = new PythonRandom(seed)
    expect(numbers.map(() => random.random())).toEqual(numbers)
  })

  // Made with CPython 3.11: random.Random(1234), then these samples of range(n).
  test('draws samples as Python does', () => {
    const random = new PythonRandom(1234)
    const expected: [number, number[]][] = [
      [5, [3, 0, 4, 2, 1]],
      [21, [2, 3, 11]],
      [22, [7, 0, 11]],
      [30, [20, 19, 15, 28, 14, 4, 2, 5]],
      [1000, [730, 117, 865, 14, 515, 498]],
      [90, [31, 8, 85, 69, 59, 76]],
      [3, []],
    ]
    for (const [length, drawn] of expected) {
      const items = Array.from({ length }, (_, i) => i)
      expect(random.sample(items, drawn.length)).toEqual(drawn)
    }
  })

  test('stays within its range', () => {
    fc.assert(
      fc.property(fc.maxSafeInteger(), fc.nat(2 ** 31 - 1), fc.integer(), (seed, width, a) => {
        const drawn = new PythonRandom(seed).randint(a, a + width)
        expect(Number.isInteger(drawn)).toBe(true)
        expect(drawn).toBeGreaterThanOrEqual(a)
        expect(drawn).toBeLessThanOrEqual(a + width)
      }),
    )
  })

  test.each([0.5, NaN, Infinity, 2 ** 53])('refuses the seed %p', (seed) => {
    expect(() => new PythonRandom(seed)).toThrow(expect.objectContaining({ code: 'INVALID_OPTION' }))
  })

  test.each([
    [1, 0],
    [0.5, 1],
    [0, NaN],
    [-(2 ** 53) + 1, 2 ** 53 - 1],
  ])('refuses randint(%p, %p)', (a, b) => {
    expect(() => new PythonRandom(0).randint(a, b)).toThrow(
      expect.objectContaining({ code: 'INVALID_OPTION' }),
    )
  })
})
