import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { readText } from '../../src/calibration/text.js'

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'sparsegpt-test-'))
})
afterAll(() => rm(folder, { recursive: true }))

async function fileOf(name: string, contents: string | Uint8Array): Promise<string> {
  const file = join(folder, name)
  await writeFile(file, contents)
  return file
}

const invalidAt = (...parts: string[]) =>
  expect.objectContaining({
    code: 'INVALID_TEXT',
    message: expect.stringMatching(new RegExp(parts.join('.*'))),
  })

describe('a text file', () => {
  test.each(['a.txt', 'a.md', 'a'])('%s is read whole, with newlines as Python gives them', async (name) => {
    const text = ' first\r\n\n é 漢 \r😀\0last \n'
    expect(await readText(await fileOf(name, text))).toBe(' first\n\n é 漢 \n😀\0last \n')
  })

  test('loses a byte order mark, but only at the start', async () => {
    expect(await readText(await fileOf('bom.txt', '\ufeffa\ufeffb'))).toBe('a\ufeffb')
  })

  test('may be empty', async () => {
    expect(await readText(await fileOf('empty.txt', ''))).toBe('')
  })

  test.each([
    ['in the middle', Buffer.from([0x61, 0x0a, 0x62, 0xff, 0x0a, 0x63]), 2],
    ['cut off at the end', Buffer.from([0x61, 0x0a, 0x0a, 0xe6, 0xbc]), 3],
  ])('that is not UTF-8 %s is refused with the line', async (_where, bytes, line) => {
    const file = await fileOf('latin.txt', bytes)
    await expect(readText(file)).rejects.toEqual(invalidAt('latin.txt', `line ${line}`, 'UTF-8'))
  })

  test('that is missing, or a folder, is named', async () => {
    for (const file of [join(folder, 'missing.txt'), join(folder, 'missing.jsonl'), folder]) {
      await expect(readText(file)).rejects.toMatchObject({
        code: 'FILE_NOT_FOUND',
        message: expect.stringContaining(file),
      })
    }
  })
})

describe('a .jsonl file', () => {
  test('is its documents joined with an empty line, blank lines skipped', async () => {
    const file = await fileOf(
      'a.jsonl',
      '\ufeff{"text":"one"}\r\n\n  \n{"n":1,"text":"two\\nlines"}\n{"text":""}\n',
    )
    expect(await readText(file)).toBe('one\n\ntwo\nlines\n\n')
  })

  test('may name another field, and end without a newline', async () => {
    const file = await fileOf('b.JSONL', '{"content":"one"}\n{"content":"two"}')
    expect(await readText(file, { textField: 'content' })).toBe('one\n\ntwo')
  })

  test('may have lines longer than one read, with characters across its border', async () => {
    const long = 'é漢'.repeat(700_000)
    const lines = [`x${long}`, long].map((text) => JSON.stringify({ text }))
    expect(await readText(await fileOf('long.jsonl', lines.join('\n')))).toBe(`x${long}\n\n${long}`)
  })

  test.each([
    ['invalid JSON', '{"text":', 'line 2 is not valid JSON'],
    ['a list', '["text"]', 'line 2 must be a JSON object'],
    ['null', 'null', 'line 2 must be a JSON object'],
    ['text', '"text"', 'line 2 must be a JSON object'],
    ['no such field', '{"txt":"x"}', 'line 2 must be .*field "text"'],
    ['a field that is no string', '{"text":1}', 'line 2 must be .*field "text"'],
  ])('with %s is refused with the line', async (_title, line, message) => {
    const file = await fileOf('c.jsonl', `{"text":"fine"}\n${line}\n`)
    await expect(readText(file)).rejects.toEqual(invalidAt('c.jsonl', message))
  })

  test('does not take a field from the prototype', async () => {
    const file = await fileOf('d.jsonl', '{"text":"fine"}')
    await expect(readText(file, { textField: 'toString' })).rejects.toEqual(invalidAt('line 1'))
  })

  test('that is not UTF-8 is refused with the line', async () => {
    const file = await fileOf('e.jsonl', Buffer.from('{"text":"a"}\n\n{"text":"\xff"}', 'latin1'))
    await expect(readText(file)).rejects.toEqual(invalidAt('e.jsonl, line 3', 'UTF-8'))
  })
})
