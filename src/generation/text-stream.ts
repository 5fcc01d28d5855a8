import type { Tokenizer } from '../text/tokenizer.js'

/** What stands for bytes that are no character, such as the first ones of a character whose others come with the next token. */
const incomplete = '\ufffd'
/** The number of tokens after which bytes that still are no character count as what they are. */
const mostHeldBack = 32
/** The number of tokens of the prompt that show a tokenizer in what surroundings the text begins. */
const surroundings = 5

/**
 * The text of token ids that come one by one, in pieces of whole characters. A token's text may depend on those around it (a leading
 * space, the bytes of a character), so what is decoded are always a few tokens together.
 */
export class TextStream {
  private readonly ids: number[]
  /** Where the tokens begin that are decoded together, and how many of all have become text. */
  private first = 0
  private done: number
  /** The text of the tokens from `first` to `done`. */
  private before: string | undefined

  /** `prompt`: the token ids that the text follows. */
  constructor(
    private readonly tokenizer: Tokenizer,
    prompt: ArrayLike<number>,
    private readonly signal?: AbortSignal,
  ) {
    this.ids = Array.from(prompt).slice(-surroundings)
    this.done = this.ids.length
  }

  /** The text that the next token completes; '' when it ends within a character. Throws as Tokenizer.decode does. */
  async push(id: number): Promise<string> {
    this.ids.push(id)
    return this.advance(false)
  }

  /** The text of what was held back, when no more tokens come. Throws as Tokenizer.decode does. */
  end(): Promise<string> {
    return this.advance(true)
  }

  private async advance(last: boolean): Promise<string> {
    const { ids, first, done } = this
    if (done === ids.length) return ''
    this.before ??= await this.decode(first, done)
    const text = await this.decode(first)
    // A prompt that ends within a character is one whose end changes.
    const known = commonLength(this.before, text)
    const waits = text.endsWith(incomplete) || text.length === known
    if (waits && !last && ids.length - done < mostHeldBack) return ''
    this.first = done
    this.done = ids.length
    this.before = undefined
    return text.slice(known)
  }

  private decode(from: number, to?: number): Promise<string> {
    return this.tokenizer.decode(this.ids.slice(from, to), { signal: this.signal })
  }
}

/** The length of the beginning that two texts share. */
function commonLength(a: string, b: string): number {
  let length = 0
  while (length < a.length && a[length] === b[length]) length++
  return length
}
