import { isDeepStrictEqual } from 'node:util'
import { SparseGptError } from '../errors.js'
import { endTokens } from '../generation/stop.js'
import type { Engine } from '../models/engine.js'
import { PythonRandom } from '../text/python-random.js'
import { loglikelihoods, type Likelihood, type Request } from './loglikelihoods.js'
import { readQuestions, type TaskSource } from './task-data.js'
import { taskOf, type Question, type Task, type TaskName } from './tasks.js'

/** A measured value. */
export interface Metric {
  /** The mean over the questions. */
  value: number
  /** The standard error of the mean; null where there is only one question. */
  stderr: number | null
}

/** What a model makes of a task. */
export interface TaskResult {
  /** The name of the task. */
  task: TaskName
  /** The version of the task in lm-evaluation-harness. */
  version: number
  /** The number of questions. */
  samples: number
  /** The share of questions whose right choice is the likeliest; of lambada_openai, whose last word is. */
  acc: Metric
  /** As `acc`, with log-likelihoods divided by the number of characters of the choices; of some tasks. */
  acc_norm?: Metric
  /** exp of the mean negative log-likelihood of the last words; of lambada_openai. */
  perplexity?: number
}

/**
 * How tasks are evaluated.
 *
 * @internal
 */
export interface TaskSettings extends TaskSource {
  /** The number of examples before each question. */
  shots: number
  /** The number of questions, from the first on; of mmlu of each subject. Default: all. */
  limit?: number | undefined
  /** A function that is called after each step with the share of the work done, in (0, 1]. */
  onProgress?: ((fraction: number) => void) | undefined
}

/**
 * A question with what stands before it.
 *
 * @internal
 */
export interface Asked {
  question: Question
  /** The description of the task and the examples. */
  before: string
}

/**
 * The questions of a task as they are asked, by subject. Throws as readQuestions does; INVALID_OPTION for too many examples.
 *
 * @internal
 */
export async function askedQuestions(name: TaskName, settings: TaskSettings): Promise<Asked[][]> {
  const task = taskOf(name)
  const { shots, limit } = settings
  const all = await readQuestions(name, task.evaluated, settings)
  const others =
    shots === 0 || task.examples === task.evaluated ? all : await readQuestions(name, task.examples, settings)
  return [...all].map(([subject, questions]) => {
    const description = task.description?.(subject) ?? ''
    const examples = new Examples(task, name, others.get(subject) ?? [], shots)
    return questions.slice(0, limit).map((question) => ({
      question,
      before:
        description +
        examples
          .before(question)
          .map(({ example }) => `${example}\n\n`)
          .join(''),
    }))
  })
}

/** The seed that the harness draws examples with. */
const exampleSeed = 1234

/** Chooses examples as the harness does. */
class Examples {
  private readonly random = new PythonRandom(exampleSeed)

  constructor(
    private readonly task: Task,
    private readonly name: TaskName,
    private readonly pool: readonly Question[],
    private readonly shots: number,
  ) {
    const needed = this.drawsOneMore ? shots + 1 : shots
    if (shots === 0 || pool.length >= needed) return
    const message = `option shots: ${name} has ${pool.length} questions to take examples from (${task.examples}), but ${needed} are needed for ${shots} shots`
    throw new SparseGptError('INVALID_OPTION', message)
  }

  /** Whether one more example is drawn, so that the question itself can be left out: in tasks without a test split. */
  private get drawsOneMore(): boolean {
    return this.task.evaluated === 'validation'
  }

  /** The examples that stand before a question. */
  before(question: Question): Question[] {
    const { shots, pool, task, random } = this
    if (shots === 0) return []
    if (task.firstExamples) return pool.slice(0, shots)
    if (!this.drawsOneMore) return random.sample(pool, shots)
    const isOther = (example: Question) => !isDeepStrictEqual(example, question)
    const drawn = random
      .sample(pool, shots + 1)
      .filter(isOther)
      .slice(0, shots)
    if (drawn.length === shots) return drawn
    const rest = pool.filter(isOther)
    if (rest.length >= shots) return random.sample(rest, shots)
    const message = `option shots: ${this.name} has only ${rest.length} questions besides the one that is asked: give fewer shots`
    throw new SparseGptError('INVALID_OPTION', message)
  }
}

/**
 * The answers of a model to some questions: the likelihood of each choice. Throws as loglikelihoods and the tokenizer do.
 *
 * @internal
 */
export async function answers(
  engine: Engine,
  asked: readonly Asked[],
  { greedy, signal, onProgress }: Pick<TaskSettings, 'signal' | 'onProgress'> & { greedy: boolean },
): Promise<Likelihood[][]> {
  const pairs = asked.flatMap(({ question: { prompts, continuations }, before }) =>
    prompts.map((prompt, i) => splitBlanks(before + prompt, continuations[i]!)),
  )
  const requests = await requestsOf(engine, pairs, signal)
  const likelihoods = await loglikelihoods(engine, requests, { greedy, signal, onProgress })
  let end = 0
  return asked.map(({ question: { prompts } }) => likelihoods.slice(end, (end += prompts.length)))
}

interface Pair {
  context: string
  continuation: string
}

/** Blanks at the end of a context belong to the token behind them. */
function splitBlanks(context: string, continuation: string): Pair {
  const kept = context.trimEnd()
  return { context: kept, continuation: context.slice(kept.length) + continuation }
}

/** The pairs as token ids: those of the continuation are what the whole text has more than the context. */
async function requestsOf(
  engine: Engine,
  pairs: readonly Pair[],
  signal: AbortSignal | undefined,
): Promise<Request[]> {
  const tokenizer = await engine.tokenizer()
  const texts = new Set(pairs.flatMap(({ context, continuation }) => [context, context + continuation]))
  texts.delete('')
  const encoded = await tokenizer.encodeAll([...texts], { signal })
  const ids = new Map([...texts].map((text, i) => [text, encoded[i]!]))
  const first = pairs.some(({ context }) => context === '') ? await firstToken(engine) : -1
  return pairs.map(({ context, continuation }) => {
    const whole = ids.get(context + continuation) ?? new Int32Array()
    if (context === '') {
      // The token that texts begin with, unless the tokenizer has put it there.
      const own = whole[0] === first ? whole.subarray(1) : whole
      return checked({ context: Int32Array.of(first), continuation: own }, continuation)
    }
    const before = ids.get(context)!
    return checked({ context: before, continuation: whole.subarray(before.length) }, continuation)
  })
}

function checked(request: Request, continuation: string): Request {
  if (request.context.length > 0 && request.continuation.length > 0) return request
  const message = `the tokenizer makes no token of its own of ${JSON.stringify(continuation)}, which is to be scored`
  throw new SparseGptError('INVALID_TEXT', message)
}

/** Throws INVALID_CHECKPOINT. */
async function firstToken(engine: Engine): Promise<number> {
  const { bos, eos } = await endTokens(engine)
  const first = [...bos, ...eos].find((id) => id >= 0 && id < engine.vocabularySize)
  if (first !== undefined) return first
  const message = `${engine.folder}: neither generation_config.json nor config.json has a bos_token_id or an eos_token_id, which a text without a context needs`
  throw new SparseGptError('INVALID_CHECKPOINT', message)
}

/**
 * Evaluates a model on a task. Throws as askedQuestions and answers do.
 *
 * @internal
 */
export async function evaluateTask(
  engine: Engine,
  name: TaskName,
  settings: TaskSettings,
): Promise<TaskResult> {
  const task = taskOf(name)
  const subjects = await askedQuestions(name, settings)
  const asked = subjects.flat()
  if (!asked.some(({ question }) => question.gold >= 0)) {
    const message = `${name}: no question (${task.evaluated}) has an answer among its choices: give data whose answers are not withheld`
    throw new SparseGptError('INVALID_TEXT', message)
  }
  const { signal, onProgress } = settings
  const asking = { greedy: task.greedy ?? false, signal, onProgress }
  const likelihoods = await answers(engine, asked, asking).catch((cause: unknown) => {
    if (!(cause instanceof SparseGptError) || cause.code !== 'INVALID_TEXT') throw cause
    throw new SparseGptError(cause.code, `${name}: ${cause.message}`, { cause })
  })
  const marks = asked.map(({ question }, i) => marked(question, likelihoods[i]!, task))
  let end = 0
  const groups = subjects.map(({ length }) => marks.slice(end, (end += length)))
  const sum = likelihoods.reduce((total, [first]) => total + first!.loglikelihood, 0)
  return {
    task: name,
    version: task.version,
    samples: asked.length,
    acc: pooled(groups.map((group) => group.map(({ acc }) => acc))),
    ...(task.normalized && { acc_norm: pooled(groups.map((group) => group.map(({ norm }) => norm))) }),
    ...(task.greedy && { perplexity: Math.exp(-sum / asked.length) }),
  }
}

/** Whether a question was answered right, and whether by the likelihood for each character. */
function marked(
  { gold, lengths }: Question,
  choices: readonly Likelihood[],
  { greedy }: Task,
): { acc: boolean; norm: boolean } {
  if (greedy) return { acc: choices.every((choice) => choice.greedy), norm: false }
  const scores = choices.map(({ loglikelihood }) => loglikelihood)
  return {
    acc: largest(scores) === gold,
    norm: largest(scores.map((score, i) => score / lengths[i]!)) === gold,
  }
}

/** The index of the largest score, the first of equal ones. */
const largest = (scores: readonly number[]) => scores.indexOf(Math.max(...scores))

/** The mean of the answers of all subjects, and its standard error by the variance within each. */
function pooled(subjects: readonly (readonly boolean[])[]): Metric {
  const count = subjects.reduce((sum, { length }) => sum + length, 0)
  const right = subjects.reduce((sum, answers) => sum + answers.filter(Boolean).length, 0)
  const squares = subjects.reduce((sum, answers) => {
    const mean = answers.filter(Boolean).length / answers.length
    return sum + answers.length * mean * (1 - mean)
  }, 0)
  const freedom = count - subjects.length
  return { value: right / count, stderr: freedom > 0 ? Math.sqrt(squares / freedom / count) : null }
}
