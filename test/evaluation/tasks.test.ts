import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { askedQuestions } from '../../src/evaluation/evaluate.js'
import { readQuestions } from '../../src/evaluation/task-data.js'
import { compare, evaluateTasks, loadModel } from '../../src/index.js'
import { sparsegpt } from '../cli/run.js'
import { describeWithShared, sharedPath } from '../shared.js'
import { expectError, temporaryFolder } from '../temporary.js'

const own = fileURLToPath(new URL('tasks', import.meta.url))

/** A folder of task data with one file. */
async function dataWith(task: string, file: string, contents: string | Buffer): Promise<string> {
  const data = await temporaryFolder()
  await mkdir(join(data, task))
  await writeFile(join(data, task, file), contents)
  return data
}

describe('questions are read', () => {
  const rows = async (file: string) =>
    (await readFile(join(own, file), 'utf8'))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>)

  test('of .json and of shards as of .jsonl', async () => {
    const expected = await readQuestions('boolq', 'validation', { data: own })
    const all = await rows('boolq/validation.jsonl')
    const list = await dataWith('boolq', 'validation.json', JSON.stringify(all))
    expect(await readQuestions('boolq', 'validation', { data: list })).toEqual(expected)
    const lines = all.map((row) => JSON.stringify(row))
    const shards = await dataWith('boolq', 'validation-00001-of-00002.jsonl', lines.slice(9).join('\n'))
    await writeFile(join(shards, 'boolq/validation-00000-of-00002.jsonl'), lines.slice(0, 9).join('\n'))
    expect(await readQuestions('boolq', 'validation', { data: shards })).toEqual(expected)
  })

  test('of .parquet, with lists and integers of 64 bits', async () => {
    const all = await rows('mmlu/test.jsonl')
    const column = (name: string) => all.map((row) => row[name])
    const columnData = [
      { name: 'question', data: column('question') as string[] },
      { name: 'subject', data: column('subject') as string[] },
      { name: 'choices', data: column('choices') as string[][] },
      { name: 'answer', data: column('answer').map((value) => BigInt(value as number)) },
    ]
    const data = await dataWith('mmlu', 'test.parquet', Buffer.from(parquetWriteBuffer({ columnData })))
    expect(await readQuestions('mmlu', 'test', { data })).toEqual(
      await readQuestions('mmlu', 'test', { data: own }),
    )
  })

  test('and limited, of each subject', async () => {
    const asked = await askedQuestions('mmlu', { data: own, shots: 0, limit: 3 })
    expect(asked.map(({ length }) => length)).toEqual([3, 3])
  })
})

describe('bad data are refused with their place', () => {
  const question = { goal: 'g', sol1: 'a', sol2: 'b', label: 0 }
  test.each([
    [
      'a missing field',
      'piqa',
      'validation.jsonl',
      { ...question, sol2: undefined },
      'INVALID_TEXT',
      /line 1: sol2/,
    ],
    [
      'a label that is no number',
      'piqa',
      'validation.jsonl',
      { ...question, label: 'b' },
      'INVALID_TEXT',
      /label/,
    ],
    [
      'labels that are not as many as texts',
      'arc_easy',
      'test.jsonl',
      { question: 'q', choices: { text: ['a'], label: ['A', 'B'] }, answerKey: 'B' },
      'INVALID_TEXT',
      /line 1: choices.*a label for each text/,
    ],
    ['no object', 'piqa', 'validation.jsonl', 7, 'INVALID_TEXT', /line 1: the row/],
    [
      'no blank',
      'winogrande',
      'validation.jsonl',
      { sentence: 's', option1: 'a', option2: 'b', answer: '1' },
      'INVALID_TEXT',
      /sentence/,
    ],
    ['no such split', 'piqa', 'test.jsonl', question, 'FILE_NOT_FOUND', /piqa has no validation\.jsonl/],
  ] as const)('%s', async (_, task, file, row, code, message) => {
    const data = await dataWith(task, file, JSON.stringify(row))
    await expectError(askedQuestions(task, { data, shots: 0 }), code, message)
  })

  test('an empty file, a split that is there twice, no folder', async () => {
    const data = await dataWith('piqa', 'validation.jsonl', '\n')
    await expectError(askedQuestions('piqa', { data, shots: 0 }), 'INVALID_TEXT', /has no rows/)
    await writeFile(join(data, 'piqa/validation.json'), '[]')
    await expectError(askedQuestions('piqa', { data, shots: 0 }), 'INVALID_OPTION', /more than once/)
    await expectError(askedQuestions('boolq', { data, shots: 0 }), 'FILE_NOT_FOUND', /boolq/)
  })

  test('too many examples; data that the hub does not have', async () => {
    await expectError(
      askedQuestions('boolq', { data: own, shots: 12 }),
      'INVALID_OPTION',
      /shots.*12 questions.*13/,
    )
    await expectError(askedQuestions('storycloze', { shots: 0 }), 'INVALID_OPTION', /--task-data/)
  })
})

describeWithShared('models side by side', () => {
  let [model, pruned, text] = ['', '', '']
  beforeAll(async () => {
    model = sharedPath('models', 'TinyStories-656K')!
    text = sharedPath('data', 'tinystories.eval.txt')!
    pruned = join(await temporaryFolder(), 'pruned')
    const run = await sparsegpt([
      'prune',
      model,
      '--out',
      pruned,
      '--method',
      'magnitude',
      '--sparsity',
      '0.75',
    ])
    expect(run.code).toBe(0)
  })

  test('eval has both perplexity and tasks, and names whose prompts they are', async () => {
    const args = [
      'eval',
      model,
      '--dataset',
      text,
      '--windows',
      '2',
      '--seqlen',
      '64',
      '--tasks',
      'arc_easy,boolq',
    ]
    const { stdout } = await sparsegpt([
      ...args,
      '--task-data',
      own,
      '--limit',
      '5',
      '--against',
      pruned,
      '--json',
    ])
    const { perplexity, against, tasks } = JSON.parse(stdout)
    expect(perplexity).toBeGreaterThan(1)
    expect(against.top1Agreement).toBeLessThan(1)
    expect(tasks.harness).toMatch(/^lm-evaluation-harness \d/)
    expect(tasks.results).toMatchObject([
      { task: 'arc_easy', samples: 5, acc: { value: expect.any(Number) }, acc_norm: expect.any(Object) },
      { task: 'boolq', version: 2, samples: 5 },
    ])
    const shown = await sparsegpt([...args, '--task-data', own, '--limit', '5'])
    expect(shown.stdout).toMatch(/perplexity.*\narc_easy: acc .* ± .*acc_norm.*\nboolq: acc .*5 questions/)
  })

  test('compare has a column for each model', async () => {
    const args = ['compare', model, pruned, '--dataset', text, '--windows', '2', '--seqlen', '64']
    const { stdout } = await sparsegpt([...args, '--tasks', 'arc_easy', '--task-data', own, '--limit', '5'])
    for (const row of ['perplexity', 'arc_easy acc', 'arc_easy acc_norm', 'sparsity', 'MB', 'tokens/s'])
      expect(stdout).toMatch(new RegExp(`│ ${row} +│.*\\d.*│.*\\d`))
    const out = await temporaryFolder()
    const report = JSON.parse((await sparsegpt([...args, '--json', '--out', out])).stdout)
    const { models } = report
    const written = JSON.parse(await readFile(join(out, 'sparsegpt-report.json'), 'utf8'))
    expect(written).toMatchObject({
      format: 1,
      job: 'compare',
      options: { models: [model, pruned] },
      result: report,
    })
    expect(await readFile(join(out, 'sparsegpt-report.html'), 'utf8')).toContain('tokens per second')
    const again = await sparsegpt([...args, '--out', out])
    expect(again).toMatchObject({ code: 1, stderr: expect.stringContaining('[OUTPUT_EXISTS]') })
    expect(models).toMatchObject([
      { model, sparsity: 0, bytes: expect.any(Number), perplexity: expect.any(Number) },
      { model: pruned, sparsity: expect.closeTo(0.75, 2), tokensPerSecond: expect.any(Number) },
    ])
    expect(models[1].perplexity).toBeGreaterThan(models[0].perplexity)
  })

  test('bad options are refused before a model is loaded', async () => {
    for (const [args, words] of [
      [['eval', '/nowhere'], '--eval, --tasks or both'],
      [['eval', '/nowhere', '--dataset', text, '--shots', '1'], 'give --tasks too'],
      [['eval', '/nowhere', '--tasks', 'boolq', '--windows', '1'], 'give --eval too'],
      [['eval', '/nowhere', '--tasks', 'bool'], 'is no task'],
      [['compare', '/nowhere', '--limit', '1'], 'give --tasks too'],
    ] as const)
      expect(await sparsegpt([...args])).toMatchObject({ code: 2, stderr: expect.stringContaining(words) })
    await expectError(compare([]), 'INVALID_OPTION', /compare/)
  })

  test('answers that are withheld, and what the context cannot hold, are refused with the task', async () => {
    const loaded = await loadModel(model, { device: 'cpu' })
    try {
      for (const [row, message] of [
        [{ goal: 'g', sol1: 'a', sol2: 'b', label: -1 }, /piqa: no question \(validation\) has an answer/],
        [{ goal: 'g', sol1: 'a', sol2: 'b '.repeat(3000), label: 0 }, /piqa: a text of \d+ tokens/],
      ] as const) {
        const data = await dataWith('piqa', 'validation.jsonl', JSON.stringify(row))
        await expectError(evaluateTasks(loaded, { tasks: ['piqa'], data }), 'INVALID_TEXT', message)
      }
    } finally {
      await loaded.dispose()
    }
  })

  test('a model that is not there is found before others are measured', async () => {
    let begun = false
    const job = compare([model, join(model, 'nowhere')], { onProgress: () => (begun = true) })
    await expectError(job, 'FILE_NOT_FOUND', /nowhere/)
    expect(begun).toBe(false)
    for (const models of ['model', []]) {
      await expectError(
        compare(models as never),
        'INVALID_OPTION',
        /models must be a list of at least one path/,
      )
    }
  })

  test('an abort stops the evaluation of tasks', async () => {
    const loaded = await loadModel(model, { device: 'cpu' })
    const stop = new AbortController()
    const job = evaluateTasks(loaded, {
      tasks: ['piqa', 'hellaswag'],
      data: own,
      signal: stop.signal,
      onProgress: () => stop.abort(),
    })
    await expectError(job, 'ABORTED', /./)
    await loaded.dispose()
  })
})
