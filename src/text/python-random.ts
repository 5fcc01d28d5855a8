import { SparseGptError } from '../errors.js'

const size = 624
const middle = 397

/**
 * Python's `random.Random(seed)` for an integer seed, bit for bit: the Mersenne Twister MT19937 (Matsumoto & Nishimura,
 * 1998) seeded by `init_by_array`, so that the windows drawn are those of the paper's Python code.
 */
export class PythonRandom {
  readonly #state = new Uint32Array(size)
  #index = size

  /**
   * Seeds the generator with any integer; as in Python its sign is ignored.
   *
   * @throws SparseGptError INVALID_OPTION when it is not an integer that a number can hold exactly.
   */
  constructor(seed: number | bigint) {
    if (typeof seed === 'number' && !Number.isSafeInteger(seed)) {
      throw new SparseGptError(
        'INVALID_OPTION',
        `seed: ${seed} is not allowed; it must be an integer (a bigint if it is beyond 2^53)`,
      )
    }
    this.#initialize(digits(seed))
  }

  /**
   * A uniform integer in [a, b], both included.
   *
   * @throws SparseGptError INVALID_OPTION unless a <= b are integers at most 2^53 - 1 apart.
   */
  randint(a: number, b: number): number {
    const count = b - a + 1
    if (!Number.isSafeInteger(a) || !Number.isSafeInteger(b) || a > b || count > 2 ** 53) {
      throw new SparseGptError(
        'INVALID_OPTION',
        `randint(${a}, ${b}) is not allowed; it needs integers a <= b that are less than 2^53 apart`,
      )
    }
    const bits = bitLength(count)
    let drawn: number
    do drawn = this.#bits(bits)
    while (drawn >= count)
    return a + drawn
  }

  /** `count` of the items in random order, no more than there are, as Python's `sample` draws them. */
  sample<T>(items: readonly T[], count: number): T[] {
    const { length } = items
    const poolSize = 21 + (count > 5 ? 4 ** Math.ceil(Math.log(3 * count) / Math.log(4)) : 0)
    const drawn: T[] = []
    if (length <= poolSize) {
      const pool = [...items]
      for (let i = 0; i < count; i++) {
        const at = this.randint(0, length - i - 1)
        drawn.push(pool[at]!)
        pool[at] = pool[length - i - 1]!
      }
      return drawn
    }
    const taken = new Set<number>()
    while (drawn.length < count) {
      const at = this.randint(0, length - 1)
      if (taken.has(at)) continue
      taken.add(at)
      drawn.push(items[at]!)
    }
    return drawn
  }

  /** A uniform number in [0, 1), a multiple of 2^-53. */
  random(): number {
    const high = this.#next() >>> 5
    return (high * 2 ** 26 + (this.#next() >>> 6)) / 2 ** 53
  }

  /** `getrandbits(count)` for count <= 54; 32 bits at a time, the lowest first. Values from 2^53 on are rounded. */
  #bits(count: number): number {
    if (count <= 32) return this.#next() >>> (32 - count)
    const low = this.#next()
    return low + (this.#next() >>> (64 - count)) * 2 ** 32
  }

  /** The next 32 bits, tempered. */
  #next(): number {
    if (this.#index === size) this.#twist()
    let y = this.#state[this.#index++]!
    y ^= y >>> 11
    y ^= (y << 7) & 0x9d2c5680
    y ^= (y << 15) & 0xefc60000
    return (y ^ (y >>> 18)) >>> 0
  }

  #twist(): void {
    const state = this.#state
    for (let i = 0; i < size; i++) {
      const y = (state[i]! & 0x80000000) | (state[(i + 1) % size]! & 0x7fffffff)
      state[i] = state[(i + middle) % size]! ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0)
    }
    this.#index = 0
  }

  /** `init_by_array` of the reference implementation; storing into a Uint32Array is the reduction modulo 2^32. */
  #initialize(key: number[]): void {
    const state = this.#state
    const mixed = (i: number) => state[i - 1]! ^ (state[i - 1]! >>> 30)
    state[0] = 19650218
    for (let i = 1; i < size; i++) state[i] = Math.imul(1812433253, mixed(i)) + i
    let i = 1
    const advance = () => {
      if (++i < size) return
      state[0] = state[size - 1]!
      i = 1
    }
    for (let k = 0; k < Math.max(size, key.length); k++) {
      const j = k % key.length
      state[i] = (state[i]! ^ Math.imul(mixed(i), 1664525)) + key[j]! + j
      advance()
    }
    for (let k = 1; k < size; k++) {
      state[i] = (state[i]! ^ Math.imul(mixed(i), 1566083941)) - i
      advance()
    }
    state[0] = 0x80000000
  }
}

/** |seed| in base 2^32, lowest digit first; at least one digit. */
function digits(seed: number | bigint): number[] {
  let rest = BigInt(seed)
  if (rest < 0n) rest = -rest
  const result: number[] = []
  do {
    result.push(Number(rest & 0xffffffffn))
    rest >>= 32n
  } while (rest > 0n)
  return result
}

/** The number of binary digits of an integer in [1, 2^53]. */
function bitLength(value: number): number {
  const high = Math.floor(value / 2 ** 32)
  return high > 0 ? 64 - Math.clz32(high) : 32 - Math.clz32(value)
}
