import * as z from 'zod'

/** The version of EleutherAI's lm-evaluation-harness whose prompts and scoring these are. */
export const harness = 'lm-evaluation-harness 0.4.13'

/** A question, as it is put to a model. */
export interface Question {
  /** What stands before each choice. */
  prompts: readonly string[]
  /** The choices, with the blank before them where there is one. */
  continuations: readonly string[]
  /** What acc_norm divides each log-likelihood by: the characters of the choice. */
  lengths: readonly number[]
  /** The index of the right choice; -1 where it is none of them. */
  gold: number
  /** The question and its answer, as an example for another. */
  example: string
}

/** The parts of a data set. */
export type Split = 'train' | 'validation' | 'test' | 'dev'

/** A task: where its questions come from, and how they are asked. */
export interface Task {
  /** Its version in the harness. */
  version: number
  /** The data set on the hub, and which of its configurations; undefined where the hub has it for members only. */
  hub?: { name: string; configurations: readonly string[] }
  /** The split that is evaluated. */
  evaluated: Split
  /** The split that examples are drawn from. */
  examples: Split
  /** Whether examples are the first ones, rather than drawn. */
  firstExamples?: true
  /** Whether a choice is to be the likeliest continuation of all, rather than the likeliest choice. */
  greedy?: true
  /** Whether acc_norm is reported too. */
  normalized?: true
  /** The columns that are read of a .parquet file. */
  columns: readonly string[]
  /** The field that divides the questions into sets, whose results are pooled. */
  subject?: string
  /** What stands before all else. */
  description?: (subject: string) => string
  /** Makes a question of a row. Throws ZodError where a field is missing or wrong. */
  question: (fields: unknown) => Question
}

const text = z.string()
/** An integer; 64-bit ones of .parquet files are bigints. */
const integer = z.union([z.int(), z.bigint(), z.stringFormat('integer', /^-?\d+$/)]).transform(Number)
const choicesOf = (least: number) => z.array(text).min(least)

/** A task whose rows are of the schema, and whose questions `ask` makes of them. */
function task<Shape extends z.ZodRawShape>(
  shape: Shape,
  ask: (row: z.output<z.ZodObject<Shape>>) => Question,
  settings: Omit<Task, 'columns' | 'question' | 'version'> & { version?: number },
): Task {
  const schema = z.object(shape)
  return {
    version: 1,
    ...settings,
    columns: Object.keys(shape),
    question: (fields) => ask(schema.parse(fields)),
  }
}

/** A question whose choices follow one prompt, behind a blank. */
function choice(prompt: string, choices: readonly string[], gold: number): Question {
  return {
    prompts: choices.map(() => prompt),
    continuations: choices.map((text) => ` ${text}`),
    lengths: choices.map((text) => Array.from(text).length),
    gold: gold in choices ? gold : -1,
    example: `${prompt} ${choices[gold] ?? ''}`,
  }
}

const labelled = {
  choices: z
    .object({ text: choicesOf(1), label: choicesOf(1) })
    .refine(({ text, label }) => text.length === label.length, 'must have a label for each text'),
  answerKey: text,
}

const arc = (configuration: string) =>
  task(
    { question: text, ...labelled },
    ({ question, choices, answerKey }) =>
      choice(`Question: ${question}\nAnswer:`, choices.text, choices.label.indexOf(answerKey)),
    {
      hub: { name: 'allenai/ai2_arc', configurations: [configuration] },
      evaluated: 'test',
      examples: 'train',
      normalized: true,
    },
  )

/** The text of an activity, as HellaSwag's authors clean it of what WikiHow's pages have left. */
const cleaned = (text: string) =>
  text
    .trim()
    .replaceAll(' [title]', '. ')
    .replace(/\[.*?\]/g, '')
    .replaceAll('  ', ' ')

/** The text with its first letter large and all others small, as Python's capitalize() has it. */
const capitalized = (text: string) => {
  const [first = '', ...rest] = text
  return first.toUpperCase() + rest.join('').toLowerCase()
}

const tasks = {
  lambada_openai: task(
    { text },
    (row) => {
      const words = row.text.split(' ')
      const last = words.pop() ?? ''
      const prompt = words.join(' ')
      const continuation = ` ${last}`
      return {
        prompts: [prompt],
        continuations: [continuation],
        lengths: [continuation.length],
        gold: 0,
        example: `${prompt} ${continuation}`,
      }
    },
    {
      hub: { name: 'EleutherAI/lambada_openai', configurations: ['default'] },
      evaluated: 'test',
      examples: 'test',
      greedy: true,
    },
  ),
  piqa: task(
    { goal: text, sol1: text, sol2: text, label: integer },
    ({ goal, sol1, sol2, label }) => choice(`Question: ${goal}\nAnswer:`, [sol1, sol2], label),
    {
      hub: { name: 'baber/piqa', configurations: ['default', 'plain_text'] },
      evaluated: 'validation',
      examples: 'train',
      normalized: true,
    },
  ),
  arc_easy: arc('ARC-Easy'),
  arc_challenge: arc('ARC-Challenge'),
  hellaswag: task(
    { activity_label: text, ctx_a: text, ctx_b: text, endings: choicesOf(1), label: integer },
    ({ activity_label: activity, ctx_a: a, ctx_b: b, endings, label }) =>
      choice(cleaned(`${activity}: ${a} ${capitalized(b)}`), endings.map(cleaned), label),
    {
      hub: { name: 'Rowan/hellaswag', configurations: ['default'] },
      evaluated: 'validation',
      examples: 'train',
      normalized: true,
    },
  ),
  winogrande: task(
    { sentence: z.string().includes('_'), option1: text, option2: text, answer: integer },
    ({ sentence, option1, option2, answer }) => {
      const blank = sentence.indexOf('_')
      const prompts = [option1, option2].map((option) => sentence.slice(0, blank) + option)
      const rest = sentence.slice(blank + 1).trim()
      const gold = answer - 1
      return {
        prompts,
        continuations: prompts.map(() => ` ${rest}`),
        lengths: prompts.map(({ length }) => length),
        gold,
        example: `${prompts[gold] ?? ''} ${rest}`,
      }
    },
    {
      hub: { name: 'allenai/winogrande', configurations: ['winogrande_xl'] },
      evaluated: 'validation',
      examples: 'train',
    },
  ),
  boolq: task(
    { passage: text, question: text, label: integer },
    ({ passage, question, label }) =>
      choice(`${passage}\nQuestion: ${question}?\nAnswer:`, ['no', 'yes'], label),
    {
      version: 2,
      hub: { name: 'aps/super_glue', configurations: ['boolq'] },
      evaluated: 'validation',
      examples: 'train',
    },
  ),
  openbookqa: task(
    { question_stem: text, ...labelled },
    ({ question_stem: stem, choices, answerKey }) =>
      choice(stem, choices.text, choices.label.indexOf(answerKey.trimStart())),
    {
      hub: { name: 'allenai/openbookqa', configurations: ['main'] },
      evaluated: 'test',
      examples: 'train',
      normalized: true,
    },
  ),
  storycloze: task(
    {
      input_sentence_1: text,
      input_sentence_2: text,
      input_sentence_3: text,
      input_sentence_4: text,
      sentence_quiz1: text,
      sentence_quiz2: text,
      answer_right_ending: integer,
    },
    (row) => {
      const story = [row.input_sentence_1, row.input_sentence_2, row.input_sentence_3, row.input_sentence_4]
      return choice(story.join(' '), [row.sentence_quiz1, row.sentence_quiz2], row.answer_right_ending - 1)
    },
    { evaluated: 'test', examples: 'validation' },
  ),
  mmlu: task(
    { question: text, subject: text, choices: z.array(text).length(4), answer: integer },
    ({ question, choices, answer }) => {
      const letters = ['A', 'B', 'C', 'D']
      const lines = choices.map((text, i) => `${letters[i] ?? ''}. ${text}`)
      return choice([question.trim(), ...lines, 'Answer:'].join('\n'), letters, answer)
    },
    {
      hub: { name: 'cais/mmlu', configurations: ['all'] },
      evaluated: 'test',
      examples: 'dev',
      firstExamples: true,
      subject: 'subject',
      description: (subject) =>
        `The following are multiple choice questions (with answers) about ${subject.replaceAll('_', ' ')}.\n\n`,
      version: 2,
    },
  ),
} satisfies Record<string, Task>

/** The name of a task, as the harness has it; storycloze stands for storycloze_2016 and storycloze_2018. */
export type TaskName = keyof typeof tasks

export const taskNames = Object.keys(tasks) as [TaskName, ...TaskName[]]

export const taskOf = (name: TaskName): Task => tasks[name]
