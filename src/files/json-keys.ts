/** What a look at the structure of a JSON text finds. */
export interface JsonStructure {
  /** The first object key that occurs twice in the same object, at any depth. */
  twice: string | undefined
  /** The number of brackets that are open at once, at most. */
  depth: number
  /** The number of keys of the object that has the most. */
  keys: number
  /** Whether every number is a plain integer of at most 15 digits, which no JSON parser rounds. */
  plain: boolean
}

const quote = 0x22
const backslash = 0x5c

/**
 * Looks at the structure of `json` without parsing it, and stops where a key is found twice or a limit is passed. Of a text that is no valid
 * JSON the result says nothing.
 *
 * JSON parsers keep the last of two equal keys (lossless-json: refuses, but only when the two values differ), so two readers
 * may see different tensors in one file.
 */
export function structureOf(json: string, limits = { depth: Infinity, keys: Infinity }): JsonStructure {
  const found: JsonStructure = { twice: undefined, depth: 0, keys: 0, plain: true }
  // One entry per open bracket: the keys seen so far for an object, null for an array.
  const open: (Set<string> | null)[] = []
  let keyExpected = false
  for (let i = 0; i < json.length; i++) {
    const code = json.charCodeAt(i)
    switch (code) {
      case 0x7b: // {
      case 0x5b: // [
        keyExpected = code === 0x7b
        open.push(keyExpected ? new Set() : null)
        if (open.length > found.depth) found.depth = open.length
        if (found.depth > limits.depth) return found
        break
      case 0x7d: // }
      case 0x5d: // ]
        open.pop()
        keyExpected = false
        break
      case 0x2c: // ,
        keyExpected = open.at(-1) instanceof Set
        break
      case 0x3a: // :
        keyExpected = false
        break
      case quote: {
        const start = i++
        let escaped = false
        for (; i < json.length; i++) {
          const inside = json.charCodeAt(i)
          if (inside === quote) break
          if (inside !== backslash) continue
          escaped = true
          i++
        }
        const keys = open.at(-1)
        if (!keyExpected || !keys) break
        // Decoded, because "a" and "\u0061" are the same key.
        const key = escaped ? decoded(json.slice(start, i + 1)) : json.slice(start + 1, i)
        if (keys.has(key)) return { ...found, twice: key }
        keys.add(key)
        if (keys.size > found.keys) found.keys = keys.size
        if (found.keys > limits.keys) return found
        break
      }
      default: {
        if (!isNumeric(code)) break
        const start = i
        // The "e" of true and false is no number.
        if ((code | 0x20) === 0x65) break
        let digits = true
        for (; i < json.length && isNumeric(json.charCodeAt(i)); i++) {
          if (!isDigit(json.charCodeAt(i))) digits = false
        }
        if (!digits || i - start > 15) found.plain = false
        i--
      }
    }
  }
  return found
}

/** The first object key that occurs twice in the same object of `json`, which is valid JSON; undefined for none. */
export const duplicateKey = (json: string) => structureOf(json).twice

function decoded(literal: string): string {
  try {
    return JSON.parse(literal) as string
  } catch {
    return literal
  }
}

const isDigit = (code: number) => code >= 0x30 && code <= 0x39

/** Whether a character outside of strings is of a number: a digit, or one of "-", "+", ".", "e" and "E". */
const isNumeric = (code: number) =>
  isDigit(code) || code === 0x2d || code === 0x2b || code === 0x2e || (code | 0x20) === 0x65
