/** Sequences that begin alike. */
export interface PrefixGroup {
  /** The number of tokens that all of them begin with; 0 for one by itself. */
  prefix: number
  /** The sequences, each with at least that many tokens. */
  members: readonly Int32Array[]
}

/**
 * Groups different sequences by what they begin with, so that running every prefix once and the rest of each sequence by itself
 * takes the fewest tokens in all.
 */
export function prefixGroups(sequences: readonly Int32Array[]): PrefixGroup[] {
  const sorted = [...sequences].sort(compare)
  // shared[i]: how many tokens the i-th begins with as the one before it does.
  const shared = sorted.map((sequence, i) => (i === 0 ? 0 : commonLength(sorted[i - 1]!, sequence)))

  /** The best groups of a run of neighbours, and the tokens that they save. */
  const best = (from: number, to: number): { groups: PrefixGroup[]; saved: number } => {
    if (to - from === 1) return { groups: [{ prefix: 0, members: [sorted[from]!] }], saved: 0 }
    let prefix = Infinity
    for (let i = from + 1; i < to; i++) prefix = Math.min(prefix, shared[i]!)
    const groups: PrefixGroup[] = []
    let saved = 0
    for (let start = from, i = from + 1; i <= to; i++) {
      if (i < to && shared[i]! > prefix) continue
      const part = best(start, i)
      groups.push(...part.groups)
      saved += part.saved
      start = i
    }
    const together = prefix * (to - from - 1)
    if (together <= saved) return { groups, saved }
    return { groups: [{ prefix, members: sorted.slice(from, to) }], saved: together }
  }
  return sorted.length === 0 ? [] : best(0, sorted.length).groups
}

function compare(a: Int32Array, b: Int32Array): number {
  const common = commonLength(a, b)
  return (a[common] ?? -1) - (b[common] ?? -1)
}

function commonLength(a: Int32Array, b: Int32Array): number {
  const length = Math.min(a.length, b.length)
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return i
  return length
}
