#!/usr/bin/env node
// Packs a release: sparsegpt-VERSION.tgz, of a commit and of nothing else, with binaries that belong to it.
//
//   npm run release [-- --out FOLDER]       refuses where something has not been committed, or a binary is missing or stale
//   node scripts/release.mjs --check        only says whether it would; npm does that before it publishes
//   node scripts/release.mjs --commit       writes dist/commit.json, which `sparsegpt --version` shows; npm does that before it packs
//
// The tarball is the same, byte by byte, wherever and whenever it is packed from that commit.

import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import { licencesPath, prebuilds, readManifest, root, sha256, sourcesDigest, targets } from './prebuilds.mjs'

const MOST_MEGABYTES = 6

function run(command, args, options) {
  const { status, stdout, error } = spawnSync(command, args, { cwd: root, encoding: 'utf8', ...options })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} failed${error ? `: ${error.message}` : ''}`)
  return stdout
}

/** What stands in the way of a release of this tree: lines of text. */
function problems() {
  const changed = run('git', ['status', '--porcelain']).trimEnd()
  return [
    ...(changed ? [`these files differ from the commit; commit them, or put them away:\n${changed}`] : []),
    ...binaryProblems(),
  ]
}

function binaryProblems() {
  const { binaries } = readManifest()
  const sources = sourcesDigest()
  const found = []
  for (const { file, optional } of targets) {
    const path = join(prebuilds, file)
    if (optional && !existsSync(path)) continue
    const problem =
      !existsSync(path) || !binaries[file]
        ? 'is missing'
        : sha256(readFileSync(path)) !== binaries[file].sha256
          ? 'is not the one that prebuildify made'
          : binaries[file].sources !== sources
            ? 'is stale: it was made of other sources'
            : undefined
    if (problem) found.push(`${relative(root, path)} ${problem}; run: npm run prebuildify -- --all`)
  }
  if (!existsSync(licencesPath))
    found.push(`${relative(root, licencesPath)} is missing; run: npm run prebuildify -- --all`)
  return found
}

function recordCommit() {
  const args = ['describe', '--always', '--abbrev=12', '--exclude=*', '--dirty']
  const { status, stdout } = spawnSync('git', args, { cwd: root, encoding: 'utf8' })
  mkdirSync(join(root, 'dist'), { recursive: true })
  // Without git, as in a copy of the sources, the commit is unknown.
  const commit = status === 0 && existsSync(join(root, '.git')) ? stdout.trim() : undefined
  writeFileSync(join(root, 'dist', 'commit.json'), `${JSON.stringify({ commit })}\n`)
}

function pack(folder) {
  // What an earlier build has left there, such as files of deleted sources, would be packed.
  rmSync(join(root, 'dist'), { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  const quiet = ['--silent', '--foreground-scripts=false']
  run('npm', ['pack', ...quiet, '--pack-destination', folder], { stdio: ['ignore', 'ignore', 'inherit'] })
  const { name, version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const path = join(folder, `${name}-${version}.tgz`)
  const megabytes = statSync(path).size / 1e6
  if (megabytes > MOST_MEGABYTES) {
    rmSync(path)
    throw new Error(`the tarball would have ${megabytes.toFixed(1)} MB; ${MOST_MEGABYTES} MB are the limit`)
  }
  console.log(
    `${path}\n${megabytes.toFixed(2)} MB, sha256 ${sha256(readFileSync(path))}\nTo publish it: npm publish ${path}`,
  )
}

try {
  const args = process.argv.slice(2)
  if (args.includes('--commit')) recordCommit()
  else {
    const found = problems()
    if (found.length > 0)
      throw new Error(`this tree cannot be released:\n${found.map((text) => `- ${text}`).join('\n')}`)
    const out = args.includes('--out') ? args[args.indexOf('--out') + 1] : '.'
    if (out === undefined) throw new Error('--out: must be followed by a folder')
    if (!args.includes('--check')) pack(resolve(root, out))
  }
} catch (error) {
  console.error(`release: ${error.message}`)
  process.exit(1)
}
