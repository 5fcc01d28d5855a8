import * as actual from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { expect, jest, test } from '@jest/globals'
import { filled, writeConfig, writeSafetensors } from './files.js'
import type { Device, Tensor } from '../../src/native/device.js'
import type { DistillationLosses, SavedState } from '../../src/training/saved-training.js'
import { temporaryFolder } from '../temporary.js'

// What a power cut may take is what was written, created or renamed and not synchronized since. Here every such step is noted
// in order, in the place of a disk that forgets.

interface Step {
  what: 'write' | 'create' | 'sync' | 'rename'
  path: string
  /** The number of steps that had ended when this one began. */
  begun: number
}

let steps: Step[] = []
const note = (what: Step['what'], path: string, begun = steps.length) => steps.push({ what, path, begun })

const calls = {
  write: 'write',
  writeFile: 'write',
  truncate: 'write',
  sync: 'sync',
  datasync: 'sync',
} as const

const open = async (path: string, flags: string): Promise<FileHandle> => {
  const handle = await actual.open(path, flags)
  if (flags.includes('w')) note('create', path)
  for (const [name, what] of Object.entries(calls)) {
    const call = handle[name as 'sync'].bind(handle)
    Object.assign(handle, {
      [name]: async (...args: []) => {
        const begun = steps.length
        const result = await (call as (...all: []) => Promise<unknown>)(...args)
        if (what === 'sync') await setTimeout(20)
        note(what, path, begun)
        return result
      },
    })
  }
  return handle
}
const noted = {
  open,
  copyFile: async (from: string, to: string) => {
    await actual.copyFile(from, to)
    note('create', to)
    note('write', to)
  },
  rename: async (from: string, to: string) => {
    note('rename', to)
    await actual.rename(from, to)
  },
}
jest.unstable_mockModule('node:fs/promises', () => ({ ...actual, default: actual, ...noted }))
const addon = await import('../../src/native/addon.js')
jest.unstable_mockModule('../../src/native/addon.js', () => ({
  nativeAddon: () => ({
    ...addon.nativeAddon(),
    exchangePaths: (from: string, to: string) => {
      note('rename', to)
      return addon.nativeAddon().exchangePaths(from, to)
    },
  }),
}))
const { openCheckpoint } = await import('../../src/files/checkpoint.js')
const { CheckpointWriter } = await import('../../src/files/writer.js')
const { SavedTraining } = await import('../../src/training/saved-training.js')

/** What the first `end` steps have not made durable: files that were written, folders in which something is new. */
function volatile(end: number, folders: readonly string[]): string[] {
  const changed = new Map(folders.map((path) => [path, -1]))
  for (const [i, { what, path, begun }] of steps.slice(0, end).entries()) {
    if (what === 'write') changed.set(path, i)
    else if (what !== 'sync') changed.set(dirname(path), i)
    else if ((changed.get(path) ?? begun) < begun) changed.delete(path)
  }
  return [...changed.keys()]
}

const names = ['a', 'b', 'c', 'd', 'e']

test.each([false, true])(
  'a power cut takes neither a block that the journal notes nor the output (that replaces another: %s)',
  async (force) => {
    const work = await temporaryFolder()
    const [source, out] = [join(work, 'source'), join(work, force ? 'out' : 'new/deep/out')]
    await actual.mkdir(source)
    await writeConfig(source)
    const weightMap = Object.fromEntries(names.map((name, i) => [name, `${(i % 2) + 1}.safetensors`]))
    for (const file of new Set(Object.values(weightMap))) {
      const tensors = names.filter((name) => weightMap[name] === file).map((name) => filled(name, 5, 1))
      await writeSafetensors(join(source, file), tensors)
    }
    const index = { metadata: {}, weight_map: weightMap }
    await actual.writeFile(join(source, 'model.safetensors.index.json'), JSON.stringify(index))
    if (force) await actual.cp(source, out, { recursive: true })

    steps = []
    const files = () => dirname(steps.find(({ path }) => basename(path) === '1.safetensors')!.path)
    const writer = await CheckpointWriter.create(await openCheckpoint(source), out, { force })
    await writer.begin({ job: 'this' })
    const write = (name: string) => {
      const store = async (_: number, position: number) => {
        // The others end while the first is made durable.
        if (name !== 'a') await setTimeout(5)
        const handle = await open(join(files(), weightMap[name]!), 'r+')
        await handle.write(Buffer.alloc(5, 7), 0, 5, position)
        await handle.close()
      }
      return writer.write(name, [{ name, dtype: 'U8', shape: [5], store }])
    }
    for (const block of [['a', 'b', 'c'], ['d']]) {
      await Promise.all(block.map(write))
      await writer.finishBlock(block)
    }
    await writer.commit()

    const folder = dirname(files())
    // What mkdir has made.
    const made = [folder, files(), ...(force ? [work] : [join(work, 'new/deep'), join(work, 'new'), work])]
    const journal = join(folder, 'journal')
    const lines = steps.flatMap(({ what, path }, i) => (what === 'write' && path === journal ? [i] : []))
    expect(lines).toHaveLength(3)
    for (const line of lines.slice(1)) {
      expect(volatile(line, made).filter((path) => path !== journal)).toEqual([])
      expect(steps[line + 1]).toMatchObject({ what: 'sync', path: journal, begun: line + 1 })
    }
    const renamed = steps.findIndex(({ what, path }) => what === 'rename' && path === out)
    expect(volatile(renamed, made)).toEqual([])
    expect(volatile(steps.length, made)).toEqual([])
    expect(renamed).toBeGreaterThan(0)
    expect(await actual.readFile(join(out, '1.safetensors'))).toContain(7)
  },
)

test('a power cut takes no state of a training that the journal notes', async () => {
  const partialFolder = await temporaryFolder()
  const states: [step: number, atRisk: string[]][] = []
  const destination = {
    partialFolder,
    finished: [],
    finishBlock: ({ step }: SavedState) => {
      states.push([step, volatile(steps.length, [partialFolder])])
      return Promise.resolve()
    },
  }
  const losses: DistillationLosses = { training: [], heldOut: [{ step: 0, loss: 1 }], bestStep: 0 }
  const device = {
    writeFile: () => note('write', join(partialFolder, `state-${losses.training.length}.safetensors`)),
    synchronize: () => Promise.resolve(),
  } as unknown as Device
  steps = []
  const saved = new SavedTraining(device, destination)
  for (let step = 1; step <= 2; step++) {
    losses.training.push(0.5)
    await saved.save(new Map([['w', { shape: [0] } as unknown as Tensor]]), losses)
  }
  expect(states).toEqual([
    [1, []],
    [2, []],
  ])
  expect(await actual.readdir(partialFolder)).toEqual(['state-2.safetensors'])
})
