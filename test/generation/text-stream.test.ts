import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { StopStrings } from '../../src/generation/stop.js'
import { TextStream } from '../../src/generation/text-stream.js'
import { loadTokenizer } from '../../src/text/tokenizer.js'
import { temporaryFolder } from '../temporary.js'
import { writeScriptedModel } from './scripted-model.js'

/** The pieces that a stream makes of ids, and at its end. */
async function pieces(stream: TextStream, ids: readonly number[]): Promise<string[]> {
  const made: string[] = []
  for (const id of ids) made.push(await stream.push(id))
  return [...made, await stream.end()]
}

describe('TextStream', () => {
  test('bytes of a character come together, special tokens are no text', async () => {
    const folder = await temporaryFolder()
    const ids = await writeScriptedModel(folder, 'aé<also-end>中😀b')
    const tokenizer = await loadTokenizer(folder)
    const made = await pieces(new TextStream(tokenizer, [0]), ids)
    expect(made).toEqual(['a', '', 'é', '', '', '', '中', '', '', '', '😀', 'b', ''])
    // What ends within a character is shown as such at the end, and not before.
    const cut = await pieces(new TextStream(tokenizer, [0]), ids.slice(0, -2))
    expect(cut.at(-1)).toBe('\ufffd')
    expect(cut.slice(0, -1).join('')).toBe('aé中')
    // A prompt that ends within a character, of which the text has the rest.
    expect((await pieces(new TextStream(tokenizer, ids.slice(0, 5)), ids.slice(5))).join('')).toBe('中😀b')
    // Bytes that never become a character are not waited for without end.
    const broken = await pieces(new TextStream(tokenizer, [0]), new Array<number>(80).fill(ids[1]!))
    expect(broken.slice(0, 32).join('')).toMatch(/^\ufffd{32}$/)
    tokenizer.close()
  })

  test('a tokenizer that drops the first space, and has tokens for bytes', async () => {
    const folder = await temporaryFolder()
    const bytes = ['<0xF0>', '<0x9F>', '<0x98>', '<0x80>', '<0x81>']
    const vocab = ['<unk>', '▁a', 'b', '▁', ...bytes]
    const replace = { type: 'Replace', pattern: { String: '▁' }, content: ' ' }
    const contents = {
      version: '1.0',
      decoder: {
        type: 'Sequence',
        decoders: [
          replace,
          { type: 'ByteFallback' },
          { type: 'Fuse' },
          { type: 'Strip', content: ' ', start: 1, stop: 0 },
        ],
      },
      model: {
        type: 'BPE',
        byte_fallback: true,
        unk_token: '<unk>',
        vocab: Object.fromEntries(vocab.map((content, id) => [content, id])),
        merges: [],
      },
    }
    await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(contents))
    const tokenizer = await loadTokenizer(folder)
    const ids = [1, 4, 5, 6, 7, 4, 5, 6, 8, 1, 2]
    // As what follows a text: with the space.
    expect(await pieces(new TextStream(tokenizer, [2]), ids)).toEqual([
      ...[' a', '', '', '', '😀', '', '', '', '😁', ' a', 'b', ''],
    ])
    tokenizer.close()
  })
})

describe('StopStrings', () => {
  test('what may be the beginning of one is held back', () => {
    const stops = new StopStrings(['\n\nUser', 'end'])
    expect(stops.push('a\n')).toEqual({ text: 'a', ended: false })
    expect(stops.push('\nUs')).toEqual({ text: '', ended: false })
    expect(stops.push('es e')).toEqual({ text: '\n\nUses ', ended: false })
    expect(stops.end()).toBe('e')
    expect(stops.push('xen')).toEqual({ text: 'x', ended: false })
    expect(stops.push('d of it')).toEqual({ text: '', ended: true })
    expect(stops.end()).toBe('')
  })

  test('the text ends before the first one, however it comes', () => {
    const letters = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 12 })
    const words = fc.array(fc.string({ unit: fc.constantFrom('a', 'b', 'c'), minLength: 1, maxLength: 4 }), {
      maxLength: 3,
    })
    fc.assert(
      fc.property(fc.array(letters, { maxLength: 6 }), words, (parts, strings) => {
        const stops = new StopStrings(strings)
        let [text, ended] = ['', false]
        for (const part of parts) {
          if (ended) break
          const certain = stops.push(part)
          text += certain.text
          ended = certain.ended
        }
        text += stops.end()
        const whole = parts.join('')
        expect(ended).toBe(strings.some((stop) => whole.includes(stop)))
        if (!ended) expect(text).toBe(whole)
        else {
          expect(whole.startsWith(text)).toBe(true)
          expect(strings.some((stop) => text.includes(stop))).toBe(false)
          expect(strings.some((stop) => whole.startsWith(stop, text.length))).toBe(true)
        }
      }),
    )
  })
})
