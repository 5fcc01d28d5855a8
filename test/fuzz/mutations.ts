import fc from 'fast-check'
import type { PythonRandom } from '../../src/text/python-random.js'

/** One of `list`, each as likely. */
export const pick = <T>(random: PythonRandom, list: readonly T[]): T =>
  list[random.randint(0, list.length - 1)]!

/** True in `percent` of a hundred cases. */
export const chance = (random: PythonRandom, percent: number) => random.randint(1, 100) <= percent

/** Calls `change` one to three times. */
export function fewTimes<T>(random: PythonRandom, value: T, change: (value: T) => T): T {
  let changed = value
  for (let left = random.randint(1, 3); left > 0; left--) changed = change(changed)
  return changed
}

/** What is found in the place of a file after a download that went wrong. */
export const foreignContents: readonly Buffer[] = [
  '',
  '\0',
  '{}',
  '[]',
  'null',
  '\ufeff{}',
  '<!DOCTYPE html><html><body>404</body></html>',
  `version https://git-lfs.github.com/spec/v1\noid sha256:${'0'.repeat(64)}\nsize 12345\n`,
  'PK\x03\x04',
  'PAR1PAR1',
  '\x1f\x8b\x08\0',
].map((text) => Buffer.from(text, 'latin1'))

const boundaries = [
  0n,
  1n,
  0x7fn,
  0xffn,
  0x7fffffffn,
  0x80000000n,
  0xffffffffn,
  0x100000000n,
  (1n << 53n) - 1n,
  (1n << 63n) - 1n,
  (1n << 64n) - 1n,
]

/** The bytes with one change: bits, bytes, whole numbers, parts that are missing, twice there, elsewhere or random. */
export function mutateBytes(random: PythonRandom, bytes: Buffer): Buffer {
  if (bytes.length === 0) return Buffer.from([random.randint(0, 255)])
  // Headers and directories are at the two ends of a file.
  const near = Math.min(bytes.length, 64) - 1
  const at = pick(random, [
    random.randint(0, bytes.length - 1),
    random.randint(0, near),
    bytes.length - 1 - random.randint(0, near),
  ])
  const length = Math.min(random.randint(1, pick(random, [1, 8, 100])), bytes.length - at)
  const before = bytes.subarray(0, at)
  const part = bytes.subarray(at, at + length)
  const after = bytes.subarray(at + length)
  const changed = Buffer.from(bytes)
  switch (random.randint(0, 7)) {
    case 0:
      changed[at]! ^= 1 << random.randint(0, 7)
      return changed
    case 1:
      changed[at] = random.randint(0, 255)
      return changed
    case 2: {
      const number = Buffer.alloc(8)
      number.writeBigUInt64LE(pick(random, boundaries))
      number.copy(changed, at, 0, pick(random, [2, 4, 8]))
      return changed
    }
    case 3:
      return Buffer.from(before)
    case 4:
      return Buffer.concat([before, after])
    case 5:
      return Buffer.concat([before, ...Array.from({ length: pick(random, [2, 2, 50]) }, () => part), after])
    case 6:
      changed.set(part, random.randint(0, bytes.length - length))
      return changed
    default:
      return Buffer.concat([before, Buffer.from(part).map(() => random.randint(0, 255)), after])
  }
}

const numbers = [-1, 0, 1, 2, 3, 0.5, 7, 64, 1e6, 2 ** 31, 2 ** 32, 2 ** 53, 1e19, 1e308, 5e-324, -(2 ** 31)]
const strings = ['', '\0', ' ', 'constructor', '__proto__', '../x', '/', '\ud800', 'é漢😀', 'x'.repeat(5000)]

function nested(random: PythonRandom): unknown {
  let value: unknown = 1
  for (let depth = pick(random, [3, 100]); depth > 0; depth--) value = depth % 2 ? [value] : { a: value }
  return value
}

function otherValue(random: PythonRandom, old: unknown): unknown {
  if (typeof old === 'number' && chance(random, 60)) {
    return pick(random, [old + 1, old - 1, old * 2, Math.floor(old / 2), -old, old / 3, String(old)])
  }
  switch (random.randint(0, 6)) {
    case 0:
      return pick(random, numbers)
    case 1:
      return pick(random, strings)
    case 2:
      return pick<unknown>(random, [null, true, false, [], {}])
    case 3:
      return [old]
    case 4:
      return Array.from({ length: pick(random, [2, 100]) }, () => old)
    case 5:
      return chance(random, 20) ? nested(random) : { [pick(random, strings)]: old }
    default:
      return fc.sample(fc.jsonValue({ maxDepth: 2 }), { seed: random.randint(0, 2 ** 31 - 1), numRuns: 1 })[0]
  }
}

type Json = Record<string, unknown>

/** The JSON value with one change, somewhere in it: another value or key, one that is missing or stands at another place. */
export function mutateJson(random: PythonRandom, value: unknown): unknown {
  const copy = structuredClone(value)
  const places: [container: Json, key: string][] = []
  const visit = (container: unknown) => {
    if (typeof container !== 'object' || container === null) return
    for (const [key, inner] of Object.entries(container)) {
      places.push([container as Json, key])
      visit(inner)
    }
  }
  visit(copy)
  if (places.length === 0 || chance(random, 1)) return otherValue(random, copy)
  const [container, key] = pick(random, places)
  switch (random.randint(0, 5)) {
    case 0:
      if (Array.isArray(container)) container.splice(Number(key), 1)
      else Reflect.deleteProperty(container, key)
      break
    case 1: {
      const name = pick(random, [...strings, `${key}_`, pick(random, places)[1]])
      const how = { enumerable: true, configurable: true, writable: true }
      Object.defineProperty(container, name, { value: container[key], ...how })
      break
    }
    case 2: {
      const [other, otherKey] = pick(random, places)
      container[key] = structuredClone(other[otherKey])
      break
    }
    default:
      container[key] = otherValue(random, container[key])
  }
  return copy
}

/** The text of a JSON value, rarely with what only some parsers take, or nearly JSON. */
export function jsonText(random: PythonRandom, value: unknown): Buffer {
  const text = JSON.stringify(value)
  if (chance(random, 85)) return Buffer.from(text)
  if (chance(random, 40)) return mutateBytes(random, Buffer.from(text))
  const deep = '['.repeat(20_000) + ']'.repeat(20_000)
  const literals = [
    deep,
    'NaN',
    'Infinity',
    '-Infinity',
    '1e999',
    '-0',
    '00',
    '1_0',
    '9'.repeat(400),
    '0.1e-999',
  ]
  const found = [...text.matchAll(/\d+(?=[,\]}])/g)]
  if (found.length === 0) return Buffer.from(`\ufeff${text}`)
  const { index, 0: number } = pick(random, found)
  return Buffer.from(text.slice(0, index) + pick(random, literals) + text.slice(index + number.length))
}
