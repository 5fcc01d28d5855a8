/**
 * The first object key that occurs twice in the same object of `json`, at any depth, or undefined.
 *
 * JSON parsers keep the last (lossless-json: refuses, but only when the two values differ), so two readers may see
 * different tensors in one file. `json` must already be known to be valid JSON: this only follows its structure.
 */
export function duplicateKey(json: string): string | undefined {
  // One entry per open bracket: the keys seen so far for an object, null for an array.
  const open: (Set<string> | null)[] = []
  let keyExpected = false
  for (let i = 0; i < json.length; i++) {
    switch (json[i]) {
      case '{':
        open.push(new Set())
        keyExpected = true
        break
      case '[':
        open.push(null)
        keyExpected = false
        break
      case '}':
      case ']':
        open.pop()
        keyExpected = false
        break
      case ',':
        keyExpected = open.at(-1) instanceof Set
        break
      case ':':
        keyExpected = false
        break
      case '"': {
        const start = i++
        while (json[i] !== '"') i += json[i] === '\\' ? 2 : 1
        const keys = open.at(-1)
        if (!keyExpected || !keys) break
        // Decoded, because "a" and "\u0061" are the same key.
        const key = JSON.parse(json.slice(start, i + 1)) as string
        if (keys.has(key)) return key
        keys.add(key)
        break
      }
      default:
    }
  }
  return undefined
}
