import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, test } from '@jest/globals'
import { answers, askedQuestions, evaluateTask } from '../../src/evaluation/evaluate.js'
import { taskNames, taskOf, type TaskName } from '../../src/evaluation/tasks.js'
import { engineOf, loadModel, type Model } from '../../src/sdk/model.js'
import { describeWithShared, sharedPath } from '../shared.js'

/** What the harness makes of a task: harness.py. */
interface Expected {
  acc: number
  acc_stderr: number
  acc_norm?: number
  acc_norm_stderr?: number
  perplexity?: number
  /** Of each choice of each question. */
  loglikelihoods: number[][]
  /** The prompt of the last choice of the last question. */
  last_prompt: string
}

const data = fileURLToPath(new URL('tasks', import.meta.url))
const golden =
  process.env['SPARSEGPT_HARNESS_GOLDEN'] ?? fileURLToPath(new URL('harness.json', import.meta.url))
const { shots: expected } = JSON.parse(readFileSync(golden, 'utf8')) as {
  shots: Record<string, Record<TaskName, Expected>>
}

describeWithShared("a model's answers are those that lm-evaluation-harness gets", () => {
  const cases = Object.keys(expected).flatMap((shots) => taskNames.map((task) => [task, shots] as const))

  test.each(cases)('%s with %s examples', async (task, count) => {
    const model = await loadModel(
      process.env['SPARSEGPT_HARNESS_MODEL'] ?? sharedPath('models', 'TinyStories-656K')!,
      { device: 'cpu', threads: 1 },
    )
    try {
      await compare(model, task, Number(count), expected[count]![task])
    } finally {
      await model.dispose()
    }
  })
})

async function compare(model: Model, task: TaskName, shots: number, wanted: Expected): Promise<void> {
  const engine = engineOf(model)
  const settings = { data, shots }
  const asked = (await askedQuestions(task, settings)).flat()
  const { before, question } = asked.at(-1)!
  expect(before + question.prompts.at(-1)!).toBe(wanted.last_prompt)

  const { greedy = false } = taskOf(task)
  const own = await answers(engine, asked, { greedy })
  expect(own.map(({ length }) => length)).toEqual(wanted.loglikelihoods.map(({ length }) => length))
  const apart = own.flatMap((choices, i) =>
    choices.map(({ loglikelihood }, j) => Math.abs(loglikelihood - wanted.loglikelihoods[i]![j]!)),
  )
  expect(Math.max(...apart)).toBeLessThan(1e-3)

  const result = await evaluateTask(engine, task, settings)
  const { acc, acc_norm: norm, perplexity } = result
  expect(result.samples).toBe(asked.length)
  expect(acc.value).toBeCloseTo(wanted.acc, 10)
  expect(acc.stderr).toBeCloseTo(wanted.acc_stderr, 10)
  if (wanted.acc_norm !== undefined && task !== 'winogrande') {
    expect(norm?.value).toBeCloseTo(wanted.acc_norm, 10)
    expect(norm?.stderr).toBeCloseTo(wanted.acc_norm_stderr!, 10)
  }
  expect(perplexity === undefined).toBe(wanted.perplexity === undefined)
  if (perplexity !== undefined) expect(perplexity / wanted.perplexity!).toBeCloseTo(1, 3)
}
