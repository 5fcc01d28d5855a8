import { abortable } from '../abort.js'
import { SparseGptError } from '../errors.js'
import type { Engine } from '../models/engine.js'
import { PythonRandom } from '../text/python-random.js'
import { Decoder } from './decoder.js'
import { ResidentModel } from './resident-model.js'
import { chooseToken, type Sampling } from './sampling.js'
import { endTokens, StopStrings } from './stop.js'
import { TextStream } from './text-stream.js'

/** How a text is generated. */
export interface TextSettings extends Sampling {
  /** The number of tokens to generate at most. */
  maxTokens: number
  /** The seed of the choices. */
  seed: number
  /** The strings that end the text. */
  stop: readonly string[]
}

/** Why a text ended: at a token or string that ends it, after `maxTokens`, or at the end of the model's context. */
export type FinishReason = 'stop' | 'length' | 'context'

/** A generated text. */
export interface GeneratedText {
  /** The text that follows the prompt, without special tokens. */
  text: string
  /** The number of tokens generated; one that ends the text counts. */
  tokens: number
  /** The ids of these tokens. */
  tokenIds: number[]
  /** The number of tokens of the prompt. */
  promptTokens: number
  /** The time from the prompt's first token to the end of the text, in seconds; reading the weights is part of it. */
  seconds: number
  /** The tokens of the prompt per second, reading the weights included. */
  promptTokensPerSecond: number
  /** The generated tokens per second, from the first one on. */
  tokensPerSecond: number
  /** Why the text ended. */
  finishReason: FinishReason
}

/**
 * Continues a prompt, token ids, and hands the text over in pieces as it comes. Throws INVALID_OPTION for a prompt that is empty or
 * leaves no room in the model's context, INVALID_CHECKPOINT, NON_FINITE, ABORTED, and what Engine.tokenizer() throws.
 *
 * @internal
 */
export async function generateText(
  engine: Engine,
  prompt: Int32Array,
  settings: TextSettings,
  { signal, onPiece }: { signal: AbortSignal; onPiece: (piece: string) => void },
): Promise<GeneratedText> {
  checkPrompt(engine, prompt)
  const [tokenizer, { eos }] = await Promise.all([engine.tokenizer(), endTokens(engine)])
  const limit = Math.min(engine.architecture.contextLength, prompt.length + settings.maxTokens)
  const random = new PythonRandom(settings.seed)
  const stream = new TextStream(tokenizer, prompt, signal)
  const stops = new StopStrings(settings.stop)
  let text = ''
  /** Whether a stop string has ended the text. */
  const hand = (piece: string): boolean => {
    const certain = stops.push(piece)
    if (certain.text !== '') onPiece(certain.text)
    text += certain.text
    return certain.ended
  }

  const start = performance.now()
  const model = await ResidentModel.keptBy(engine, signal)
  const decoder = new Decoder(model, 1, limit)
  try {
    const ids = [...prompt]
    let first = start
    let finishReason: FinishReason | undefined
    while (finishReason === undefined) {
      const logits = await decoder.logits([ids], signal)
      if (ids.length === prompt.length) first = performance.now()
      const id = chooseToken(logits, settings, random)
      ids.push(id)
      if (eos.includes(id) || hand(await stream.push(id))) finishReason = 'stop'
      else if (ids.length === prompt.length + settings.maxTokens) finishReason = 'length'
      else if (ids.length === limit) finishReason = 'context'
      abortable(signal)
    }
    const end = performance.now()
    if (!hand(await stream.end())) {
      const rest = stops.end()
      if (rest !== '') onPiece(rest)
      text += rest
    }
    const tokens = ids.length - prompt.length
    const [whole, prefill, decoding] = [end - start, first - start, end - first].map((ms) => ms / 1000)
    return {
      text,
      tokens,
      tokenIds: ids.slice(prompt.length),
      promptTokens: prompt.length,
      seconds: whole!,
      promptTokensPerSecond: prompt.length / prefill!,
      tokensPerSecond: tokens > 1 ? (tokens - 1) / decoding! : 1 / whole!,
      finishReason,
    }
  } finally {
    decoder.dispose()
    model.dispose()
  }
}

/** Throws INVALID_OPTION unless the prompt has a token and leaves room for another in the model's context. */
function checkPrompt(engine: Engine, { length }: Int32Array): void {
  const { contextLength } = engine.architecture
  if (length === 0) {
    const message = 'generate: option prompt: is empty: give at least one token'
    throw new SparseGptError('INVALID_OPTION', message)
  }
  if (length >= contextLength) {
    const message = `generate: option prompt: ${length} tokens leave no room in the model's context of ${contextLength} tokens: give a shorter one`
    throw new SparseGptError('INVALID_OPTION', message)
  }
}
