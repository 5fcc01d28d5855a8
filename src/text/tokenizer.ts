import { dirname, join, resolve } from 'node:path'
import { abortable } from '../abort.js'
import { readRegularFile } from '../files/regular-file.js'
import { systemCode } from '../files/read-error.js'
import { SparseGptError } from '../errors.js'
import { readChatTemplate } from './chat-template.js'
import { SandboxFault, SandboxProcess } from './sandbox-process.js'
import { foreignContents } from '../files/foreign-contents.js'
import { gpt2Tokenizer } from './gpt2-tokenizer.js'
import { cuttingOf, piecesOf, type Cutting } from './pieces.js'

/** What turns a text into the token ids that a model was trained with. */
export interface Tokenizer {
  /**
   * The ids of `text` as one sequence, post-processor included (so, for example, with one leading `<s>`). Runs in a process
   * of its own, which ends when it is idle; a long text is encoded in pieces where that gives the same ids. `memory`: what that
   * process and this one may take, in bytes; default: no limit.
   *
   * @throws SparseGptError INVALID_TEXT when the tokenizer cannot encode it, or it cannot be cut and is too long to be encoded as a
   * whole; INVALID_CHECKPOINT when the tokenizer crashes, or takes too much memory or time; OUT_OF_MEMORY; ABORTED.
   */
  encode(text: string, options?: EncodeOptions): Promise<Int32Array>
  /**
   * The ids of a text that comes in parts, as encode() gives them for the whole, in memory for the ids and no more than a few parts. With
   * `most` it is encoded only until there are so many ids, or a few more.
   */
  encodeParts(
    parts: AsyncIterable<string>,
    options?: EncodeOptions & { most?: number | undefined },
  ): Promise<Int32Array>
  /** The ids of each of many short texts, as encode() gives them, in far less time than one by one. Throws as encode() does. */
  encodeAll(texts: readonly string[], options?: EncodeOptions): Promise<Int32Array[]>
  /**
   * The token ids of a conversation, up to where the model's answer begins or, if it is `complete`, as it is, by the chat template of the folder: chat_template.jinja,
   * or the `chat_template` of tokenizer_config.json.
   *
   * @throws SparseGptError FILE_NOT_FOUND when the folder has no chat template; INVALID_CHECKPOINT when it is damaged or takes too
   * much memory or time, or makes no text of the messages; INVALID_OPTION when it refuses the messages; and as encode() does.
   */
  encodeChat(
    messages: readonly ChatMessage[],
    options?: EncodeOptions & { complete?: boolean },
  ): Promise<Int32Array>
  /** The text of token ids, without special tokens. Throws as encode() does. */
  decode(ids: ArrayLike<number>, options?: Pick<EncodeOptions, 'signal'>): Promise<string>
  /** Ends the idle process at once, rather than some seconds after its last text; the next text starts another. */
  close(): void
}

/** A message of a conversation. */
export interface ChatMessage {
  /** Who speaks: 'system', 'user', 'assistant', or what else the model's chat template knows. */
  role: string
  /** The text of the message, or what else the template knows: null beside calls of tools, a list of parts. */
  content: string | null | readonly unknown[]
}

/** How a text is encoded. */
export interface EncodeOptions {
  signal?: AbortSignal | undefined
  memory?: number | undefined
}

/** The size of a piece that is encoded by itself, in characters, and the number of pieces that are encoded side by side. */
const pieceLength = 4096
const piecesAtOnce = 64
/** The length above which a text is cut, in characters: finding out where it may be takes time, too. */
const wholeLength = 65_536
/** The length of the longest piece that is encoded, in characters. */
const maxPieceLength = 2 ** 21

// What encoding takes at most, in bytes: this process and the tokenizer's, by byte of tokenizer.json, by character of a text that is
// there as a whole with its ids, by id of one that comes in parts, and by character of a long piece.
const processesBytes = 450e6
const bytesPerJsonByte = 25
const bytesPerCharacter = 12
const bytesPerToken = 8
const bytesPerPieceCharacter = 600

const maxTokenizerBytes = 2 ** 28

/**
 * Loads `tokenizer.json` of a model folder (Hugging Face's format, read by its own library). Truncation and padding that
 * the file may ask for are switched off: a whole text file is encoded as one sequence. In the place of a missing
 * tokenizer.json, the vocab.json and merges.txt of GPT-2 and OPT are taken.
 *
 * @throws SparseGptError FILE_NOT_FOUND when there is none of these; INVALID_CHECKPOINT when it is damaged, crashes the
 * library, or takes too much memory or time; OUT_OF_MEMORY.
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  const file = join(resolve(folder), 'tokenizer.json')
  const advice =
    "copy it from the model's repository, or make it with transformers " +
    '(AutoTokenizer.from_pretrained(model).save_pretrained(folder))'
  const json = await readRegularFile(file, { maxBytes: maxTokenizerBytes, advice }).then(
    (bytes) => bytes.toString('utf8'),
    async (error: unknown) => {
      const missing = systemCode((error as Error).cause) === 'ENOENT'
      const older = missing ? await gpt2Tokenizer(resolve(folder)) : undefined
      if (older === undefined) throw error
      return older
    },
  )
  const tokenizer = new ProcessTokenizer(file, json)
  await tokenizer.load()
  return tokenizer
}

class ProcessTokenizer implements Tokenizer {
  private readonly process: SandboxProcess
  private cutting: Cutting | 'unknown' | undefined = 'unknown'

  constructor(
    private readonly file: string,
    private readonly json: string,
  ) {
    this.process = new SandboxProcess(json)
  }

  /** Finds out whether the library takes the file. Throws INVALID_CHECKPOINT, OUT_OF_MEMORY. */
  async load(): Promise<void> {
    try {
      await this.process.encode([], false)
    } catch (error) {
      if (!(error instanceof SandboxFault)) throw error
      const what = error.death === undefined ? 'is not a valid tokenizer file' : 'cannot be loaded'
      const message = `${this.file} ${foreignContents(this.json) ?? `${what}: ${error.message}`}`
      throw new SparseGptError('INVALID_CHECKPOINT', message, { cause: error })
    }
  }

  close(): void {
    this.process.close()
  }

  async encode(text: string, options: EncodeOptions = {}): Promise<Int32Array> {
    if (typeof text !== 'string')
      throw new SparseGptError('INVALID_OPTION', 'encode: the text must be a string')
    return this.encodeText(text, true, options)
  }

  async encodeAll(texts: readonly string[], { signal }: EncodeOptions = {}): Promise<Int32Array[]> {
    const all: Int32Array[] = []
    let together: string[] = []
    let length = 0
    const flush = async () => {
      if (together.length > 0) all.push(...(await this.named(this.process.encode(together, true, signal))))
      together = []
      length = 0
    }
    for (const text of texts) {
      if (length + text.length > wholeLength) await flush()
      if (text.length > wholeLength) all.push(await this.encode(text, { signal }))
      else {
        together.push(text)
        length += text.length
      }
    }
    await flush()
    return all
  }

  async encodeChat(
    messages: readonly ChatMessage[],
    { complete = false, ...options }: EncodeOptions & { complete?: boolean } = {},
  ): Promise<Int32Array> {
    const { file, source, values } = await readChatTemplate(dirname(this.file))
    const conversation = { ...values, messages, add_generation_prompt: !complete }
    const text = await this.process.render(source, conversation, options.signal).catch((error: unknown) => {
      if (!(error instanceof SandboxFault)) throw error
      const code = error.answer.raised ? 'INVALID_OPTION' : 'INVALID_CHECKPOINT'
      const what = error.answer.raised ? 'refuses the messages' : 'cannot be rendered'
      throw new SparseGptError(code, `the chat template of ${file} ${what}: ${error.message}`, {
        cause: error,
      })
    })
    if (text === '') {
      const message = `the chat template of ${file} makes an empty text of the messages: it should write them, and where the answer begins`
      throw new SparseGptError('INVALID_CHECKPOINT', message)
    }
    // The template writes the special tokens itself.
    return this.encodeText(text, false, options)
  }

  async decode(ids: ArrayLike<number>, { signal }: Pick<EncodeOptions, 'signal'> = {}): Promise<string> {
    const [text = ''] = await this.process.decode([Int32Array.from(ids)], signal).catch((error: unknown) => {
      if (!(error instanceof SandboxFault)) throw error
      const message = `the tokenizer ${this.file} cannot decode token ids: ${error.message}`
      throw new SparseGptError('INVALID_CHECKPOINT', message, { cause: error })
    })
    return text
  }

  private async encodeText(text: string, special: boolean, options: EncodeOptions): Promise<Int32Array> {
    return joined(await this.named(this.encodePieces(text, special, options)))
  }

  /** Names the tokenizer where its process could not encode. */
  private async named<T>(encoding: Promise<T>): Promise<T> {
    try {
      return await encoding
    } catch (error) {
      if (!(error instanceof SandboxFault)) throw error
      const refused = error.death === undefined
      const message = `the tokenizer ${this.file} cannot encode the text: ${error.message}`
      throw new SparseGptError(refused ? 'INVALID_TEXT' : 'INVALID_CHECKPOINT', message, { cause: error })
    }
  }

  async encodeParts(
    parts: AsyncIterable<string>,
    { most = Infinity, ...options }: EncodeOptions & { most?: number | undefined } = {},
  ): Promise<Int32Array> {
    const { signal, memory } = options
    const text = new PendingText(parts[Symbol.asyncIterator](), signal)
    try {
      await text.fill(wholeLength + 1)
      const cutting = text.pending.length > wholeLength ? this.knownCutting() : undefined
      if (!cutting) {
        await text.fill(maxPieceLength + 1)
        return await this.encode(text.pending, options)
      }
      const encoded: Int32Array[] = []
      let count = 0
      let begun = false as boolean
      const add = async (pieces: string[], special: boolean, cut: { before: number; after: number }) => {
        this.checkTokens(count, memory)
        for (const ids of await this.named(this.process.encode(pieces, special, signal))) {
          encoded.push(ids.subarray(cut.before, ids.length - cut.after))
          count += encoded.at(-1)!.length
        }
        begun = true
      }
      const { before, after } = cutting
      for (let wanted = piecesAtOnce * pieceLength; ;) {
        await text.fill(wanted)
        const pieces = [...piecesOf(text.pending, cutting, pieceLength)]
        const last = pieces.pop() ?? ''
        // Nowhere cut: more of the text may help.
        if (pieces.length === 0 && !text.ended) {
          this.checkLength(wanted, wanted, memory)
          wanted *= 2
          continue
        }
        this.checkLength(
          0,
          [...pieces, last].reduce((length, piece) => Math.max(length, piece.length), 0),
          memory,
        )
        // The special tokens that the post-processor puts around a text are those of its two ends.
        if (!begun && pieces.length > 0) await add([pieces.shift()!], true, { before: 0, after })
        for (let i = 0; i < pieces.length && count < most; i += piecesAtOnce)
          await add(pieces.slice(i, i + piecesAtOnce), false, { before: 0, after: 0 })
        if (count >= most) return joined(encoded)
        if (text.ended) {
          await add([last], true, { before: begun ? before : 0, after: 0 })
          return joined(encoded)
        }
        text.pending = last
        wanted = Math.max(piecesAtOnce * pieceLength, last.length + 1)
      }
    } finally {
      await text.close()
    }
  }

  private knownCutting(): Cutting | undefined {
    if (this.cutting === 'unknown') this.cutting = cuttingOf(this.json)
    return this.cutting
  }

  /** Throws OUT_OF_MEMORY when so many ids take more than `memory`, in bytes. */
  private checkTokens(count: number, memory = Infinity): void {
    const needed = this.fixedBytes + bytesPerToken * count
    if (needed <= memory) return
    const [takes, allows] = [needed, memory].map((bytes) => `${(bytes / 1e9).toFixed(2)} GB`)
    const message = `encoding the text takes more than ${takes!}, but memory allows ${allows!}: give a part of it, or its token ids`
    throw new SparseGptError('OUT_OF_MEMORY', message)
  }

  /** What the two processes take, whatever is encoded. */
  private get fixedBytes(): number {
    return processesBytes + bytesPerJsonByte * this.json.length
  }

  private async encodePieces(
    text: string,
    special: boolean,
    { signal, memory }: EncodeOptions,
  ): Promise<Int32Array[]> {
    const cutting = text.length > wholeLength ? this.knownCutting() : undefined
    const pieces = cutting === undefined ? [text] : [...piecesOf(text, cutting, pieceLength)]
    const longest = pieces.reduce((most, { length }) => Math.max(most, length), 0)
    this.checkLength(text.length, longest, memory)
    if (cutting === undefined || pieces.length === 1) return this.process.encode(pieces, special, signal)
    const [first, ...others] = pieces
    const last = others.pop()
    // The special tokens that the post-processor puts around a text are those of its two ends.
    const { before, after } = special ? cutting : { before: 0, after: 0 }
    const parts: Int32Array[] = []
    for (const ids of await this.process.encode([first!], special, signal))
      parts.push(ids.subarray(0, ids.length - after))
    for (let i = 0; i < others.length; i += piecesAtOnce)
      parts.push(...(await this.process.encode(others.slice(i, i + piecesAtOnce), false, signal)))
    for (const ids of await this.process.encode([last!], special, signal)) parts.push(ids.subarray(before))
    return parts
  }

  /** Throws INVALID_TEXT, OUT_OF_MEMORY. */
  private checkLength(length: number, longest: number, memory = Infinity): void {
    const advice = 'give a part of it, or its token ids'
    if (longest > maxPieceLength) {
      const message =
        `a stretch of ${longest} characters of the text has no place where it can be cut without a change of the token ids that ` +
        `${this.file} gives, and at most ${maxPieceLength} can be encoded as a whole: ${advice}`
      throw new SparseGptError('INVALID_TEXT', message)
    }
    const whole = longest > wholeLength ? longest : 0
    const needed = this.fixedBytes + bytesPerCharacter * length + bytesPerPieceCharacter * whole
    if (needed <= memory) return
    const sizes = [needed, memory].map((bytes) => `${(bytes / 1e9).toFixed(2)} GB`)
    const message = `encoding the text takes up to ${sizes[0]}, but memory allows ${sizes[1]}: ${advice}`
    throw new SparseGptError('OUT_OF_MEMORY', message)
  }
}

/** A text that comes in parts. */
class PendingText {
  /** What has come and was not taken. */
  pending = ''
  /** Whether the text has ended. */
  ended = false

  constructor(
    private readonly parts: AsyncIterator<string>,
    private readonly signal: AbortSignal | undefined,
  ) {}

  /** Waits until `length` characters are pending, or the text ends. Throws ABORTED, and what reading the parts throws. */
  async fill(length: number): Promise<void> {
    while (this.pending.length < length && !this.ended) {
      abortable(this.signal)
      const next = await this.parts.next()
      if (next.done) this.ended = true
      else this.pending += next.value
    }
  }

  /** Reads no further. */
  async close(): Promise<void> {
    if (!this.ended) await this.parts.return?.()
  }
}

function joined(parts: readonly Int32Array[]): Int32Array {
  const ids = new Int32Array(parts.reduce((sum, part) => sum + part.length, 0))
  let at = 0
  for (const part of parts) {
    ids.set(part, at)
    at += part.length
  }
  return ids
}
