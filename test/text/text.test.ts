import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { parquetWriteBuffer } from 'hyparquet-writer'
import type { SparseGptError } from '../../src/errors.js'
import { readText } from './read-text.js'

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

describe('a packed .jsonl file', () => {
  const lines = '{"text":"one"}\n\n{"text":"two"}\n'

  test.each(['p.jsonl.gz', 'p.json.gz', 'P.JSONL.GZ'])('%s is read as the file in it', async (name) => {
    expect(await readText(await fileOf(name, gzipSync(lines)))).toBe('one\n\ntwo')
  })

  test('may be of several parts', async () => {
    const parts = Buffer.concat([gzipSync('{"text":"one"}\n{"te'), gzipSync('xt":"two"}')])
    expect(await readText(await fileOf('parts.jsonl.gz', parts))).toBe('one\n\ntwo')
  })

  test.each([
    ['no gzip file', Buffer.from(lines)],
    ['cut off', gzipSync(lines.repeat(100)).subarray(0, 40)],
    ['damaged', Buffer.concat([gzipSync(lines).subarray(0, 20), Buffer.alloc(20, 7)])],
  ])('that is %s is refused', async (_title, contents) => {
    const file = await fileOf('bad.jsonl.gz', contents)
    await expect(readText(file)).rejects.toEqual(invalidAt('bad.jsonl.gz is not a valid gzip file'))
  })

  test('that is missing is named', async () => {
    await expect(readText('/nowhere/x.jsonl.gz')).rejects.toMatchObject({ code: 'FILE_NOT_FOUND' })
  })
})

describe('a .parquet file', () => {
  const rows = ['', ' = Title = \n', 'é漢😀', 'x'.repeat(100_000)]

  test.each(['UNCOMPRESSED', 'SNAPPY'] as const)('is the rows of its column (%s)', async (codec) => {
    const other = { name: 'id', data: rows.map((_, i) => i) }
    const columnData = [other, { name: 'text', data: rows }]
    const file = await fileOf(
      'a.parquet',
      Buffer.from(parquetWriteBuffer({ columnData, codec, rowGroupSize: 2 })),
    )
    expect(await readText(file)).toBe(rows.join('\n\n'))
    await expect(readText(file, { textField: 'body' })).rejects.toEqual(
      invalidAt('no column "body"', 'id, text'),
    )
    await expect(readText(file, { textField: 'id' })).rejects.toEqual(invalidAt('row 1 has no text'))
  })

  test('with a row without text is refused with its number', async () => {
    const columnData = [{ name: 'text', data: ['a', null, 'c'], nullable: true }]
    const file = await fileOf('null.parquet', Buffer.from(parquetWriteBuffer({ columnData })))
    await expect(readText(file)).rejects.toEqual(invalidAt('null.parquet, row 2'))
  })

  /** An integer in Thrift's compact form, as field `id` behind the one before it. */
  const field = (value: number) => {
    const bytes = [0x15]
    for (let rest = 2 * value; ; rest = Math.floor(rest / 128)) {
      bytes.push(rest < 128 ? rest : (rest % 128) + 128)
      if (rest < 128) return bytes
    }
  }
  const header = (bytes: number, packed: number, values: number) =>
    Buffer.from([
      ...field(0),
      ...field(bytes),
      ...field(packed),
      0x2c,
      ...field(values),
      ...[0x15, 0, 0x15, 6, 0x15, 6],
      0,
      0,
    ])

  test.each([
    ['unpacks to gigabytes', header(2 ** 31 - 1, 50, 4), /a page of 2147483647 bytes/],
    ['has a billion values', header(50, 50, 2 ** 30), /1073741824 values; of its group there can be 8/],
    ['is longer than its column', header(50, 2 ** 30, 4), /reaches beyond its column/],
    ['has no sizes', Buffer.from([0x15, 0, 0]), /has no sizes/],
    ['has an endless header', Buffer.alloc(500, 0x1c), /too deep/],
  ])('whose page %s is refused before memory is taken', async (_title, page, message) => {
    const data = Array.from({ length: 8 }, () => 'y'.repeat(1000))
    const columnData = [{ name: 'text', data, nullable: false }]
    const contents = Buffer.from(parquetWriteBuffer({ columnData, codec: 'UNCOMPRESSED' }))
    page.copy(contents, contents.indexOf('PAR1') + 4)
    const before = process.resourceUsage().maxRSS
    await expect(readText(await fileOf('claims.parquet', contents))).rejects.toMatchObject({
      code: 'INVALID_TEXT',
      message: expect.stringMatching(message),
    })
    expect(process.resourceUsage().maxRSS - before).toBeLessThan(100_000)
  })

  test('whose page goes on for a billion values is refused', async () => {
    const data = Array.from({ length: 64 }, (_, i) => (i % 3 === 0 ? null : 'yes'))
    const columnData = [{ name: 'text', data, type: 'STRING' as const }]
    const contents = Buffer.from(parquetWriteBuffer({ columnData, codec: 'UNCOMPRESSED' }))
    // Which rows are null: 8 times 8 bits. In their place: 2³⁰ - 1 times a one.
    const nulls = contents.indexOf(Buffer.from([8 * 2 + 1, 0b10110110]))
    Buffer.from([0xfe, 0xff, 0xff, 0xff, 0x07, 1]).copy(contents, nulls)
    await expect(readText(await fileOf('endless.parquet', contents))).rejects.toMatchObject({
      code: 'INVALID_TEXT',
      message: expect.stringMatching(/endless\.parquet is not .*(takes more than .* of memory|is damaged)/),
    })
  })

  test('that is something else, cut off or missing is refused', async () => {
    const columnData = [{ name: 'text', data: rows }]
    const whole = Buffer.from(parquetWriteBuffer({ columnData }))
    for (const contents of [Buffer.from('PAR1'), Buffer.alloc(100), whole.subarray(0, whole.length - 20)]) {
      const file = await fileOf('bad.parquet', contents)
      await expect(readText(file)).rejects.toEqual(invalidAt('bad.parquet is not a parquet file'))
    }
    await expect(readText('/nowhere/x.parquet')).rejects.toMatchObject({ code: 'FILE_NOT_FOUND' })
  })

  test('that is damaged anywhere is refused in words for users', async () => {
    const columnData = [{ name: 'text', data: ['one', 'two'] }]
    const whole = Buffer.from(parquetWriteBuffer({ columnData, codec: 'UNCOMPRESSED' }))
    const refusals = new Set<string>()
    for (let at = 0; at < whole.length; at += 5) {
      const damaged = Buffer.from(whole)
      damaged[at]! ^= 0xff
      const error = await readText(await fileOf('damaged.parquet', damaged)).catch(
        (thrown: unknown) => thrown,
      )
      if (typeof error === 'string') continue
      const { code, message } = error as SparseGptError
      expect(code).toBe('INVALID_TEXT')
      expect(message).not.toMatch(/Cannot read|is not a function|is not iterable/)
      refusals.add(message)
    }
    expect(refusals.size).toBeGreaterThan(3)
  })
})
