import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { drawWindows, splitWindows } from '../../src/text/windows.js'

const counting = (length: number) => Int32Array.from({ length }, (_, i) => i)

const failing = (code: string, message: RegExp) =>
  expect.objectContaining({ code, message: expect.stringMatching(message) })

describe('drawWindows', () => {
  test('gives windows that all lie within the tokens', () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: 500 }), fc.nat(), fc.nat(), (length, part, seed) => {
        const sequenceLength = 1 + (part % (length - 1))
        const windows = drawWindows(counting(length), { samples: 5, sequenceLength, seed })
        expect(windows).toHaveLength(5)
        for (const window of windows) {
          const start = window[0]!
          expect([...window]).toEqual([...counting(length)].slice(start, start + sequenceLength))
          // randint(0, n - s - 1): the very last token is never in a window, as in the paper's code.
          expect(window.at(-1)).toBeLessThan(length - 1)
        }
      }),
    )
  })

  test('gives copies', () => {
    const tokens = counting(10)
    const [window] = drawWindows(tokens, { samples: 1, sequenceLength: 4, seed: 0 })
    window!.fill(-1)
    expect(tokens).toEqual(counting(10))
  })

  test('refuses a text that is too short, naming what there is and what is needed', () => {
    const draw = (length: number) => () =>
      drawWindows(counting(length), { samples: 1, sequenceLength: 8, seed: 0 })
    expect(draw(8)).toThrow(failing('INVALID_TEXT', /has 8 tokens.*at least 9/))
    expect(draw(0)).toThrow(failing('INVALID_TEXT', /has 0 tokens/))
    expect(draw(9)).not.toThrow()
  })

  test.each([
    ['samples', { samples: 0 }],
    ['samples', { samples: 1.5 }],
    ['sequenceLength', { sequenceLength: 0 }],
    ['sequenceLength', { sequenceLength: NaN }],
    ['seed', { seed: 0.5 }],
  ])('refuses a bad option %s', (option, change) => {
    const options = { samples: 1, sequenceLength: 4, seed: 0, ...change }
    expect(() => drawWindows(counting(10), options)).toThrow(
      failing('INVALID_OPTION', new RegExp(`^${option}`)),
    )
  })
})

describe('splitWindows', () => {
  test('gives the whole windows in order and drops the rest', () => {
    expect(splitWindows(counting(11), 4).map((window) => [...window])).toEqual([
      [0, 1, 2, 3],
      [4, 5, 6, 7],
    ])
  })

  test('gives at most the limit', () => {
    expect(splitWindows(counting(11), 2, 3)).toHaveLength(3)
    expect(splitWindows(counting(11), 2, 99)).toHaveLength(5)
  })

  test('refuses a text with no whole window', () => {
    expect(() => splitWindows(counting(3), 4)).toThrow(
      failing('INVALID_TEXT', /^the text has 3 tokens.*needs 4/),
    )
  })

  test('refuses bad options', () => {
    expect(() => splitWindows(counting(3), 0)).toThrow(failing('INVALID_OPTION', /^sequenceLength/))
    expect(() => splitWindows(counting(3), 1, 0)).toThrow(failing('INVALID_OPTION', /^windows/))
  })
})
