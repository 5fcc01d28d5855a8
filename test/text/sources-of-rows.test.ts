import { execFileSync } from 'node:child_process'
import { mkdir, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { loadModel, perplexity, type Model } from '../../src/index.js'
import { readText } from './read-text.js'
import { loadTokenizer } from '../../src/text/tokenizer.js'
import { readTokenFile, saveTokens } from '../../src/text/token-file.js'
import { expectError, temporaryFolder } from '../temporary.js'
import { asText, randomTokens, writeTinyModel } from '../tiny-model.js'

let folder: string
let model: Model
beforeAll(async () => {
  folder = await temporaryFolder()
  model = await loadModel(await writeTinyModel(await temporaryFolder()), { threads: 1 })
})
afterAll(() => model.dispose())

async function fileOf(name: string, contents: string | Uint8Array): Promise<string> {
  const file = join(folder, name)
  await writeFile(file, contents)
  return file
}

const rows = [{ text: 'one, [two] {three}' }, { text: 'é "quoted" \\ \n]' }, { text: '' }]
const joined = rows.map(({ text }) => text).join('\n\n')
const lines = rows.map((row) => JSON.stringify(row)).join('\n')

describe('a .json file', () => {
  test.each([
    ['a list', JSON.stringify(rows)],
    ['an indented list', `\ufeff\n${JSON.stringify(rows, null, 2)}\n`],
    ['lines', lines],
  ])('is read as rows: %s', async (_name, contents) => {
    expect(await readText(await fileOf('a.json', contents))).toBe(joined)
    expect(await readText(await fileOf('a.json.gz', gzipSync(contents)))).toBe(joined)
  })

  test('may be an empty list, or one longer than a read', async () => {
    expect(await readText(await fileOf('empty.json', '[ ]'))).toBe('')
    const long = Array.from({ length: 3 }, (_, i) => ({ text: `${i}é`.repeat(400_000) }))
    const text = await readText(await fileOf('long.json', JSON.stringify(long)))
    expect(text).toBe(long.map((row) => row.text).join('\n\n'))
  })

  test.each([
    ['an object over several lines', '{\n "text": "a"\n}', /line 1 is not valid JSON.*list of rows/],
    ['a list of texts', '["a"]', /row 1 must be a JSON object with the text in its field "text"/],
    ['a list without an end', '[{"text":"a"},', /list does not end/],
    ['something after the list', '[{"text":"a"}] x', /follows the list/],
    ['two lists', '[{"text":"a"}][]', /follows the list/],
    ['a damaged row', '[{"text":"a"},{"text":}]', /row 2 is not valid JSON/],
    ['plain text', 'some text', /line 1 is not valid JSON/],
  ])('with %s is refused', async (_name, contents, message) => {
    await expectError(readText(await fileOf('b.json', contents)), 'INVALID_TEXT', message)
  })
})

describe('a packed file', () => {
  test('of text is unpacked', async () => {
    expect(await readText(await fileOf('a.txt.gz', gzipSync('one\r\ntwo')))).toBe('one\ntwo')
  })

  test('that unpacks to a hundred times its size is refused', async () => {
    const bomb = gzipSync(Buffer.alloc(2 ** 26, '\n'))
    for (const name of ['bomb.txt.gz', 'bomb.jsonl.gz', 'bomb.json.gz']) {
      await expectError(readText(await fileOf(name, bomb)), 'INVALID_TEXT', /more than 100 times its size/)
    }
  })
})

describe('a row', () => {
  test('that does not end is refused', async () => {
    const endless = Buffer.alloc(2 ** 26 + 2, 'x')
    await expectError(readText(await fileOf('a.jsonl', endless)), 'INVALID_TEXT', /line 1 has more than/)
    endless.write('[')
    await expectError(readText(await fileOf('a.json', endless)), 'INVALID_TEXT', /row 1 has more than/)
  })
})

describe('what is no file', () => {
  test.each(['x.txt', 'x.txt.gz', 'x.jsonl', 'x.json', 'x.parquet', 'x.safetensors'])(
    'but a pipe or a device is refused: %s',
    async (name) => {
      const pipe = join(folder, name)
      execFileSync('mkfifo', [pipe])
      const reading = name.endsWith('safetensors') ? readTokenFile(pipe, 10) : readText(pipe)
      await expectError(reading, 'FILE_NOT_FOUND', /is a pipe or a device/)
    },
  )

  test('is refused: /dev/zero, a tokenizer that is a pipe', async () => {
    await expectError(readText('/dev/zero'), 'FILE_NOT_FOUND', /\/dev\/zero is a pipe or a device/)
    const pipe = join(await temporaryFolder(), 'tokenizer.json')
    execFileSync('mkfifo', [pipe])
    await expectError(loadTokenizer(join(pipe, '..')), 'FILE_NOT_FOUND', /tokenizer\.json is a pipe/)
  })
})

describe('the field of the text', () => {
  test('is refused where there are no rows', async () => {
    const file = await fileOf('plain.txt', asText(randomTokens(100)))
    const sources = [{ file }, { dataset: 'c4' as const }, { tokens: [1, 2, 3] }, { file: 'x.safetensors' }]
    for (const source of sources) {
      await expectError(
        perplexity(model, { ...source, textField: 'text', sequenceLength: 8 }),
        'INVALID_OPTION',
        /option textField: .*no (rows|such choice).*\.jsonl/,
      )
    }
  })

  test('of a .json file may be named', async () => {
    const body = asText(randomTokens(100))
    const file = await fileOf('field.json', JSON.stringify([{ body }]))
    const measured = await perplexity(model, { file, textField: 'body', sequenceLength: 8 })
    expect(measured.tokens).toBe(100)
  })
})

test('a data set that is not known: the known ones are named', async () => {
  await expectError(
    perplexity(model, { file: 'wikitext' }),
    'FILE_NOT_FOUND',
    /wikitext is neither a data set nor a file: the data sets are wikitext2, ptb, c4/,
  )
})

test('saveTokens that fails leaves no file, and an older one as it was', async () => {
  const place = await temporaryFolder()
  const ids = Int32Array.of(1, 2, 3)
  await mkdir(join(place, 'folder.safetensors'))
  await expectError(saveTokens(join(place, 'folder.safetensors'), ids), 'WRITE_FAILED', /folder\.safetensors/)
  expect(await readdir(place)).toEqual(['folder.safetensors'])
  // A limit to the size of files makes the write fail half way, as a full disk does.
  const program = `
    const { saveTokens } = await import(${JSON.stringify(new URL('../../dist/index.js', import.meta.url).href)})
    process.on('SIGXFSZ', () => {})
    await saveTokens(process.argv[1], new Int32Array(1 << 20)).catch((error) => console.log(error.code))`
  const file = join(place, 'tokens.safetensors')
  await saveTokens(file, ids)
  const output = execFileSync('bash', [
    '-c',
    'ulimit -f 100; "$0" --input-type=module -e "$1" "$2"',
    process.execPath,
    program,
    file,
  ])
  expect(output.toString().trim()).toBe('WRITE_FAILED')
  expect((await readdir(place)).sort()).toEqual(['folder.safetensors', 'tokens.safetensors'])
  expect(await readTokenFile(file, 10)).toEqual({ ids })
})
