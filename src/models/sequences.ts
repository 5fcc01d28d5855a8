/** Some independent sequences of equal length that lie one after another in the activations, [count · length, features]. */
export interface Sequences {
  count: number
  /** The number of tokens of each sequence. */
  length: number
  /** The position of each sequence's first token: how many came before it. */
  start: number
  /** How long the sequences are that the tokens are a part of; default: start + length. */
  total?: number
}

/** The position of every token, int32 [count · length]. */
export function positionsOf({ count, length, start }: Sequences): Int32Array {
  return Int32Array.from({ length: count * length }, (_, t) => start + (t % length))
}
