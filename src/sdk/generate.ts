import * as z from 'zod'
import { SparseGptError } from '../errors.js'
import { generateText, type GeneratedText } from '../generation/text.js'
import type { Engine } from '../models/engine.js'
import { parseOptions } from '../options.js'
import type { ChatMessage } from '../text/tokenizer.js'
import { tokenIds } from '../text/vocabulary.js'
import { Queue } from './job.js'

/** What a text is to follow: a text, token ids, or a conversation that the model's chat template writes out. */
export type Prompt = string | ArrayLike<number> | { messages: readonly ChatMessage[] }

/** How a text is generated. */
export interface GenerateOptions {
  /** The number of tokens to generate at most, less where the model's context ends. Default 128. */
  maxTokens?: number
  /**
   * What the logits are divided by before a token is drawn; 0 (default): always the likeliest token, so that the text depends on the
   * prompt alone.
   */
  temperature?: number
  /** Draw only from the `topK` likeliest tokens. Default: all. */
  topK?: number
  /** Draw only from the fewest of the likeliest tokens whose probabilities sum to `topP`, after topK. Default: all. */
  topP?: number
  /** The seed of what is drawn: the same one gives the same text. Default 0. */
  seed?: number
  /** The strings that end the text, which are not part of it. Default: none. */
  stop?: string | readonly string[]
  /** A signal that stops the generation (ABORTED). */
  signal?: AbortSignal
}

/** A text that comes in pieces, each of whole characters; leaving a loop over them stops the generation. */
export interface TextGeneration extends AsyncIterable<string> {
  /** The whole text and what it took, when it has ended. Rejects as the iteration does; with ABORTED when that was left. */
  readonly result: Promise<GeneratedText>
}

const stopString = z.string().min(1).max(1024)
const schema = z.strictObject({
  maxTokens: z
    .int()
    .min(1)
    .max(2 ** 31 - 1)
    .default(128),
  temperature: z.number().min(0).max(1000).default(0),
  topK: z.int().min(1).optional(),
  topP: z.number().gt(0).max(1).optional(),
  seed: z.int().default(0),
  stop: z
    .union([stopString, z.array(stopString).max(64)], {
      error: 'must be a string of 1 to 1024 characters, or a list of at most 64 of them',
    })
    .default([])
    .transform((stop) => [stop].flat()),
  signal: z.instanceof(AbortSignal).optional(),
})

const messages = z.strictObject({
  messages: z
    .array(z.looseObject({ role: z.string(), content: z.string() }), {
      error: 'must be a list of { role, content }',
    })
    .min(1, 'must have at least one { role, content }'),
})

/**
 * Starts a generation; what is wrong with the arguments shows where its pieces or its result are awaited.
 *
 * @internal
 */
export function startGeneration(engine: Engine, prompt: Prompt, options: GenerateOptions): TextGeneration {
  // Their owner may change the ids while the text is generated.
  const said = isList(prompt) ? Array.from(prompt) : prompt
  const stop = new AbortController()
  const result = run(engine, said, options, stop.signal, (piece) => pieces.push(piece))
  // Stops the generation, and waits until it has freed what it holds.
  const leave = () => {
    stop.abort(new SparseGptError('ABORTED', 'generate: its pieces are read no further'))
    return result.catch(() => undefined)
  }
  const pieces = new Queue<string>(result, leave)
  // Reported to whoever awaits it.
  result.catch(() => undefined)
  return Object.assign(pieces, { result })
}

async function run(
  engine: Engine,
  prompt: Prompt,
  options: GenerateOptions,
  stop: AbortSignal,
  onPiece: (piece: string) => void,
): Promise<GeneratedText> {
  const o = parseOptions(schema, options, 'generate')
  const source = AbortSignal.any(o.signal ? [o.signal, stop] : [stop])
  const body = async (signal: AbortSignal) => {
    const ids = tokenIds(await promptIds(engine, prompt, signal), engine.vocabularySize)
    return generateText(engine, ids, o, { signal, onPiece })
  }
  return engine.job(source, body, { keeping: true })
}

const isList = (prompt: unknown): prompt is ArrayLike<number> =>
  Array.isArray(prompt) || ArrayBuffer.isView(prompt)

/** Throws INVALID_OPTION, and what the tokenizer throws. */
async function promptIds(engine: Engine, prompt: unknown, signal: AbortSignal): Promise<ArrayLike<number>> {
  if (typeof prompt === 'string') return (await engine.tokenizer()).encode(prompt, { signal })
  if (isList(prompt)) return prompt
  if (typeof prompt === 'object' && prompt !== null && 'messages' in prompt) {
    const conversation = parseOptions(messages, prompt, 'generate')
    return (await engine.tokenizer()).encodeChat(conversation.messages, { signal })
  }
  const message = 'generate: option prompt: must be a text, a list of token ids, or { messages }'
  throw new SparseGptError('INVALID_OPTION', message)
}
