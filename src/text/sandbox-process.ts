import { fork, type ChildProcess } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { abortable } from '../abort.js'
import { SparseGptError } from '../errors.js'

/** Texts to encode; `special`: whether the post-processor adds its special tokens to each. */
export interface EncodeTask {
  texts: string[]
  special: boolean
}

/** Sequences of token ids to decode, without the special ones. */
export interface DecodeTask {
  ids: Int32Array[]
}

/** A chat template (Jinja) to render with these values. */
export interface RenderTask {
  template: string
  values: Record<string, unknown>
}

/** Rows [rowStart, rowEnd) of columns of a Parquet file to decode. */
export interface RowsTask {
  /** The file's path. */
  file: string
  columns: string[]
  rowStart: number
  rowEnd: number
  /** What the pages of the rows have, unpacked, in bytes. */
  bytes: number
}

type Task = EncodeTask | DecodeTask | RenderTask | RowsTask

/** What the process is asked to do. */
export type Request = Task & {
  /** The memory that the process may take from then on, in bytes. */
  memory: number
  /** The contents of the tokenizer.json to load before anything else; absent when it stays the same. */
  json?: string
}

/** What the process answers. */
export interface Answer {
  /** The token ids of each text. */
  ids?: Int32Array[]
  /** The text of each sequence of ids, or the rendered one. */
  texts?: string[]
  /** Rows by the names of their columns. */
  rows?: Record<string, unknown>[]
  /** The library's message, when it refused. */
  error?: string
  /** The name of its error. */
  name?: string
  /** Whether it was the chat template that refused, by its raise_exception(). */
  raised?: boolean
}

/** How a request ended otherwise than with an answer. */
type Death = 'memory' | 'time' | 'crash'

/** A request that the process did not answer, or refused. */
export class SandboxFault extends Error {
  constructor(
    message: string,
    /** What happened to the process; undefined when it lives and the library refused. */
    readonly death?: Death,
    /** The library's answer, when it refused. */
    readonly answer: Answer = {},
  ) {
    super(message)
  }
}

const program = fileURLToPath(new URL('./sandbox-child.js', import.meta.url))

// Node takes 0.1 GB, a tokenizer.json 10 to 25 bytes per byte, and encoding 100 to 200 bytes per token.
const memoryBytes = 600e6
const memoryPerByte = 60
const memoryPerCharacter = 1000
const memoryPerRow = 600
const memoryPerUnpackedByte = 8
// A small fraction of the speed of the slowest tokenizer on a busy machine.
const timeMilliseconds = 15_000
const charactersPerMillisecond = 20
const bytesPerMillisecond = 1000
/** The time after which an idle process is ended: its memory is of more use to what comes next. */
const idleMilliseconds = 3000

/**
 * A tokenizer, or a reader of what else nobody vouches for, in a process of its own, which is started when it is needed, ended when it is idle, and may die: of an abort
 * in the native library, of the limit to its memory, or of that to its time. Requests are answered one after the other.
 */
export class SandboxProcess {
  private child: ChildProcess | undefined
  private loaded = false
  /** What the process may take, in bytes: what it took for one request is not free at once for the next. */
  private memory = 0
  private idle: NodeJS.Timeout | undefined
  private last: Promise<unknown> = Promise.resolve()

  constructor(
    /** The contents of the tokenizer.json; without them there is no tokenizer. */
    private readonly json = '',
  ) {}

  /** The token ids of each of `texts`. Throws as ask() does. */
  async encode(texts: string[], special: boolean, signal?: AbortSignal): Promise<Int32Array[]> {
    const { ids } = await this.ask({ texts, special }, signal)
    return ids ?? []
  }

  /** The text of each sequence of token ids, without special tokens. Throws as ask() does. */
  async decode(ids: Int32Array[], signal?: AbortSignal): Promise<string[]> {
    const { texts } = await this.ask({ ids }, signal)
    return texts ?? []
  }

  /** The text that a chat template makes of `values`. Throws as ask() does. */
  async render(template: string, values: Record<string, unknown>, signal?: AbortSignal): Promise<string> {
    const { texts } = await this.ask({ template, values }, signal)
    return texts?.[0] ?? ''
  }

  /** Rows of a Parquet file by the names of their columns. Throws as ask() does. */
  async rows(task: RowsTask, signal?: AbortSignal): Promise<Record<string, unknown>[]> {
    const { rows } = await this.ask(task, signal)
    return rows ?? []
  }

  /** Ends the process; the next request starts another. */
  close(): void {
    clearTimeout(this.idle)
    this.child?.kill('SIGKILL')
    this.child = undefined
    this.loaded = false
    this.memory = 0
  }

  /**
   * Hands a task to the process when those before it are done. Throws SandboxFault, ABORTED (the process is ended then),
   * OUT_OF_MEMORY when no process can be started.
   */
  private ask(task: Task, signal: AbortSignal | undefined): Promise<Answer> {
    const answer = this.last.then(() => this.answer(task, signal))
    this.last = answer.catch(() => undefined)
    return answer
  }

  private async answer(task: Task, signal: AbortSignal | undefined): Promise<Answer> {
    abortable(signal)
    clearTimeout(this.idle)
    if (this.child?.connected === false) this.close()
    const { memory, milliseconds } = neededFor(task, this.json.length)
    this.memory = Math.max(this.memory, memory)
    const request: Request = {
      memory: this.memory,
      ...(this.loaded || !this.json ? {} : { json: this.json }),
      ...task,
    }
    try {
      const answer = await this.exchange(request, milliseconds, signal)
      if (answer.error !== undefined) throw new SandboxFault(answer.error, undefined, answer)
      this.loaded = true
      return answer
    } catch (error) {
      // Without a tokenizer the process is of no use, and after a fault of another kind it is gone.
      if (!this.loaded || !(error instanceof SandboxFault) || error.death) this.close()
      throw error
    } finally {
      this.idle = setTimeout(() => this.close(), idleMilliseconds)
      this.idle.unref()
    }
  }

  private exchange(request: Request, milliseconds: number, signal: AbortSignal | undefined): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const child = (this.child ??= startChild())
      let stderr = ''
      const settle = (settled: () => void) => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', onAbort)
        child.off('message', onMessage).off('close', onExit).off('error', onError)
        child.stderr?.off('data', onStderr)
        settled()
      }
      const fail = (error: Error) => settle(() => reject(error))
      const send = () => {
        // When it cannot be sent, the process has ended, and says so itself.
        child.send(request, () => undefined)
      }
      const onMessage = (message: Answer | { ready: true }) => {
        if ('ready' in message) send()
        else settle(() => resolve(message))
      }
      const onStderr = (text: Buffer) => (stderr = (stderr + text.toString()).slice(-4096))
      const onExit = (code: number | null, by: NodeJS.Signals | null) => {
        // The process's own words, or those of V8.
        if (/memory limit|heap out of memory/.test(stderr)) {
          const limit = `${(request.memory / 1e9).toFixed(1)} GB`
          fail(new SandboxFault(`it takes more than ${limit} of memory`, 'memory'))
          return
        }
        const [line = ''] = stderr.trim().split('\n').slice(0, 1)
        fail(new SandboxFault(`its process ended with ${by ?? `code ${code}`}: ${line}`, 'crash'))
      }
      const onError = (error: NodeJS.ErrnoException) =>
        fail(
          new SparseGptError(
            'OUT_OF_MEMORY',
            `no process for the tokenizer can be started: ${error.message}`,
            {
              cause: error,
            },
          ),
        )
      const onAbort = () => {
        try {
          abortable(signal)
        } catch (error) {
          fail(error as Error)
        }
      }
      // The timer also keeps the program running while it waits; an idle process does not.
      const timer = setTimeout(() => {
        const seconds = Math.round(milliseconds / 1000)
        fail(new SandboxFault(`it took longer than ${seconds} seconds`, 'time'))
      }, milliseconds)
      signal?.addEventListener('abort', onAbort)
      child.on('message', onMessage).on('close', onExit).on('error', onError)
      child.stderr?.on('data', onStderr)
      if (readyChildren.has(child)) send()
    })
  }
}

/** The memory that the process may take for a task, in bytes, and the time; `json`: the length of the tokenizer.json. */
function neededFor(task: Task, json: number): { memory: number; milliseconds: number } {
  if ('file' in task) {
    const { rowStart, rowEnd, bytes } = task
    return {
      memory: memoryBytes + memoryPerRow * (rowEnd - rowStart) + memoryPerUnpackedByte * bytes,
      milliseconds: timeMilliseconds + bytes / bytesPerMillisecond,
    }
  }
  const characters = charactersOf(task)
  return {
    memory: memoryBytes + memoryPerByte * json + memoryPerCharacter * characters,
    milliseconds: timeMilliseconds + characters / charactersPerMillisecond + json / bytesPerMillisecond,
  }
}

/** The length of what a task is about, in characters or about as many. */
function charactersOf(task: EncodeTask | DecodeTask | RenderTask): number {
  if ('texts' in task) return task.texts.reduce((sum, text) => sum + text.length, 0)
  if ('ids' in task) return task.ids.reduce((sum, { length }) => sum + length, 0)
  return task.template.length
}

const readyChildren = new WeakSet<ChildProcess>()

function startChild(): ChildProcess {
  const child = fork(program, {
    serialization: 'advanced',
    // A group of its own: Ctrl-C at the terminal is for the parent, which ends this process.
    detached: process.platform !== 'win32',
    execArgv: [],
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  })
  child.once('message', () => readyChildren.add(child))
  // An idle process that dies is no error; the next request starts another.
  child.on('error', () => undefined)
  child.unref()
  child.channel?.unref()
  const stderr = child.stderr as (NodeJS.ReadableStream & { unref?: () => void }) | null
  stderr?.unref?.()
  return child
}
