import { isUtf8 } from 'node:buffer'

/**
 * Reads Python's pickle format as data. A pickle is a program for a small stack machine (the opcodes are described in
 * CPython's Lib/pickletools.py); its only dangerous instructions are those that look up a global and call it. Here the
 * globals are the few that the caller passes, calling one runs the caller's function, and everything else is refused.
 */

/** What is wrong with a pickle; whoever knows the file's name makes an error of it. */
export class PickleFault extends Error {}

/** A tuple of Python. */
export class Tuple {
  constructor(/** The items, in order. */ readonly items: readonly Value[]) {}
}

/** A list of Python. */
class List {
  /** The items, in order. */
  readonly items: Value[] = []
}

/** A dictionary of Python. */
export class Dict {
  /** The entries, in the order in which they were set. */
  readonly entries = new Map<Key, Value>()
}

/** A name that the pickle may use. */
export class Global {
  constructor(
    /** The name, as 'module name'. */
    readonly name: string,
    /** The function that runs when the pickle calls the name; undefined when it may only be mentioned. */
    readonly call?: (args: readonly Value[]) => Value,
  ) {}
}

/** Something that a Global or a persistent id stands for; the unpickler only passes it on. */
export interface Opaque {
  /** The word that tells what it is. */
  readonly kind: string
}

/** What may be a key of a dictionary. */
type Key = string | number | bigint | boolean | null
/** What a pickle may hold. */
export type Value = Key | Tuple | List | Dict | Global | Opaque

/** What the names in a pickle stand for. */
interface Meaning {
  /** The names that it may use, by 'module name'. */
  globals: ReadonlyMap<string, Global>
  /** Finds the value that a persistent id stands for. */
  persistent: (id: Value) => Value
}

/** A tensor takes about eight; this is more than 100,000 tensors, and less than a gigabyte. */
const maxObjects = 2 ** 20

const opcode = {
  mark: 0x28,
  stop: 0x2e,
  binint: 0x4a,
  binint1: 0x4b,
  binint2: 0x4d,
  none: 0x4e,
  binpersid: 0x51,
  reduce: 0x52,
  binunicode: 0x58,
  emptyList: 0x5d,
  append: 0x61,
  build: 0x62,
  global: 0x63,
  appends: 0x65,
  binget: 0x68,
  longBinget: 0x6a,
  binput: 0x71,
  longBinput: 0x72,
  setitem: 0x73,
  tuple: 0x74,
  setitems: 0x75,
  emptyDict: 0x7d,
  emptyTuple: 0x29,
  binfloat: 0x47,
  proto: 0x80,
  tuple1: 0x85,
  tuple2: 0x86,
  tuple3: 0x87,
  newtrue: 0x88,
  newfalse: 0x89,
  long1: 0x8a,
  shortBinunicode: 0x8c,
  binunicode8: 0x8d,
  stackGlobal: 0x93,
  memoize: 0x94,
  frame: 0x95,
} as const

const mark = Symbol('mark')

/**
 * The value of a pickle of protocols 2 to 5, of those types that tensors are described with.
 *
 * Throws PickleFault, and what `meaning` throws.
 */
export function unpickle(bytes: Buffer, meaning: Meaning): Value {
  return new Unpickler(bytes, meaning).run()
}

class Unpickler {
  private readonly stack: (Value | typeof mark)[] = []
  private readonly memo = new Map<number, Value>()
  private at = 0
  private objects = 0

  constructor(
    private readonly bytes: Buffer,
    private readonly meaning: Meaning,
  ) {}

  run(): Value {
    while (true) {
      const code = this.uint(1)
      if (code === opcode.stop) {
        const value = this.pop()
        if (this.stack.length > 0) throw new PickleFault('it ends with more than one value')
        return value
      }
      this.step(code)
      if (this.stack.length + this.objects > maxObjects) {
        throw new PickleFault(`it makes more than ${maxObjects} objects`)
      }
    }
  }

  private step(code: number): void {
    const { stack } = this
    switch (code) {
      case opcode.proto: {
        const version = this.uint(1)
        if (version < 2 || version > 5) throw new PickleFault(`its protocol is ${version}; known are 2 to 5`)
        break
      }
      case opcode.frame:
        this.take(8)
        break
      case opcode.mark:
        stack.push(mark)
        break
      case opcode.none:
        stack.push(null)
        break
      case opcode.newtrue:
        stack.push(true)
        break
      case opcode.newfalse:
        stack.push(false)
        break
      case opcode.binint:
        stack.push(this.take(4).readInt32LE())
        break
      case opcode.binint1:
        stack.push(this.uint(1))
        break
      case opcode.binint2:
        stack.push(this.uint(2))
        break
      case opcode.long1:
        stack.push(this.long(this.uint(1)))
        break
      case opcode.binfloat:
        stack.push(this.take(8).readDoubleBE())
        break
      case opcode.binunicode:
        stack.push(this.text(this.uint(4)))
        break
      case opcode.shortBinunicode:
        stack.push(this.text(this.uint(1)))
        break
      case opcode.binunicode8:
        stack.push(this.text(Number(this.take(8).readBigUInt64LE())))
        break
      case opcode.emptyTuple:
        this.make(new Tuple([]))
        break
      case opcode.tuple1:
      case opcode.tuple2:
      case opcode.tuple3:
        this.make(new Tuple(this.popSome(code - opcode.tuple1 + 1)))
        break
      case opcode.tuple:
        this.make(new Tuple(this.popToMark()))
        break
      case opcode.emptyList:
        this.make(new List())
        break
      case opcode.append:
        this.append(this.popSome(1))
        break
      case opcode.appends:
        this.append(this.popToMark())
        break
      case opcode.emptyDict:
        this.make(new Dict())
        break
      case opcode.setitem:
        this.setItems(this.popSome(2))
        break
      case opcode.setitems:
        this.setItems(this.popToMark())
        break
      case opcode.binput:
        this.remember(this.uint(1))
        break
      case opcode.longBinput:
        this.remember(this.uint(4))
        break
      case opcode.memoize:
        this.remember(this.memo.size)
        break
      case opcode.binget:
        stack.push(this.recall(this.uint(1)))
        break
      case opcode.longBinget:
        stack.push(this.recall(this.uint(4)))
        break
      case opcode.global: {
        const module = this.line()
        stack.push(this.global(module, this.line()))
        break
      }
      case opcode.stackGlobal: {
        const [module, name] = this.popSome(2)
        if (typeof module !== 'string' || typeof name !== 'string') {
          throw new PickleFault('it names a global by something that is not text')
        }
        stack.push(this.global(module, name))
        break
      }
      case opcode.binpersid:
        this.make(this.meaning.persistent(this.pop()))
        break
      case opcode.reduce: {
        const [callee, args] = this.popSome(2)
        if (!(callee instanceof Global) || !callee.call || !(args instanceof Tuple)) {
          throw new PickleFault('it calls something that is not one of the functions that build tensors')
        }
        this.make(callee.call(args.items))
        break
      }
      case opcode.build:
        // Attributes of a dictionary: transformers' `_metadata`. They say nothing about the tensors.
        this.pop()
        if (!(this.top() instanceof Dict))
          throw new PickleFault('it sets the attributes of something unexpected')
        break
      default:
        throw new PickleFault(
          `it has the opcode 0x${code.toString(16)}, which describing tensors does not need`,
        )
    }
  }

  private global(module: string, name: string): Global {
    const known = this.meaning.globals.get(`${module} ${name}`)
    if (known) return known
    throw new PickleFault(
      `it asks for ${JSON.stringify(`${module}.${name}`)}, which is not needed to describe tensors and was not run`,
    )
  }

  private make(value: Value): void {
    this.objects++
    this.stack.push(value)
  }

  private append(items: Value[]): void {
    const list = this.top()
    if (!(list instanceof List)) throw new PickleFault('it appends to what is not a list')
    this.objects += items.length
    for (const item of items) list.items.push(item)
  }

  private setItems(items: Value[]): void {
    const dict = this.top()
    if (!(dict instanceof Dict)) throw new PickleFault('it sets an entry of what is not a dictionary')
    if (items.length % 2 !== 0) throw new PickleFault('a dictionary has a key without a value')
    this.objects += items.length
    for (let i = 0; i < items.length; i += 2) {
      const key = items[i] as Value
      if (typeof key === 'object' && key !== null)
        throw new PickleFault('a dictionary has a key that is not text')
      // Python would keep the last: two readers might see different tensors.
      if (dict.entries.has(key))
        throw new PickleFault(`a dictionary has the key ${JSON.stringify(String(key))} twice`)
      dict.entries.set(key, items[i + 1] as Value)
    }
  }

  private remember(index: number): void {
    this.objects++
    this.memo.set(index, this.top())
  }

  private recall(index: number): Value {
    const value = this.memo.get(index)
    if (value === undefined) throw new PickleFault('it refers to a value it has not made')
    return value
  }

  private top(): Value {
    const value = this.stack.at(-1)
    if (value === undefined || value === mark) throw new PickleFault('it takes a value that is not there')
    return value
  }

  private pop(): Value {
    const value = this.top()
    this.stack.pop()
    return value
  }

  private popSome(count: number): Value[] {
    const values = Array.from({ length: count }, () => this.pop())
    return values.reverse()
  }

  private popToMark(): Value[] {
    const at = this.stack.lastIndexOf(mark)
    if (at < 0) throw new PickleFault('it takes values that are not there')
    const values = this.stack.splice(at)
    return values.slice(1) as Value[]
  }

  private take(count: number): Buffer {
    if (count > this.bytes.length - this.at) throw new PickleFault('it ends in the middle of a value')
    const start = this.at
    this.at += count
    return this.bytes.subarray(start, this.at)
  }

  private uint(count: 1 | 2 | 4): number {
    return this.take(count).readUIntLE(0, count)
  }

  /** A two's complement integer, lowest byte first. */
  private long(count: number): number | bigint {
    const hex = Buffer.from(this.take(count)).reverse().toString('hex')
    const value = BigInt.asIntN(count * 8, BigInt(`0x${hex || '0'}`))
    return value >= Number.MIN_SAFE_INTEGER && value <= Number.MAX_SAFE_INTEGER ? Number(value) : value
  }

  private text(count: number): string {
    const bytes = this.take(count)
    if (!isUtf8(bytes)) throw new PickleFault('it has text that is not valid UTF-8')
    return bytes.toString('utf8')
  }

  private line(): string {
    const end = this.bytes.indexOf(0x0a, this.at)
    if (end < 0) throw new PickleFault('it ends in the middle of a name')
    const text = this.text(end - this.at)
    this.at = end + 1
    return text
  }
}
