import { createHash } from 'node:crypto'
import { fingerprint } from '../files/fingerprint.js'
import type { JobIdentity } from '../files/journal.js'
import type { MaskFile } from '../files/mask-file.js'
import type { Engine } from '../models/engine.js'
import { version } from '../package.js'

/**
 * All that decides the result of a job, by names that a message can use. `options`: those that do, as parsed;
 * `windows`: the calibration text's; `dense`: the dense model, where it is another. Throws FILE_NOT_FOUND when the model's files have gone.
 */
export async function jobIdentity(
  engine: Engine,
  options: Record<string, unknown>,
  windows: readonly Int32Array[],
  masks: MaskFile | undefined,
  dense?: Engine,
): Promise<JobIdentity> {
  const { device, weights } = engine
  const given = Object.entries(options).filter(([, value]) => value !== undefined)
  return {
    'version of sparsegpt': version,
    ...Object.fromEntries(given.map(([name, value]) => [`option ${name}`, inWords(value)])),
    'option dtype': weights.dtype,
    // How many threads there are makes no difference.
    'option device': `${device.traits.kind} (${device.description.replace(/, \d+ threads?$/, '')})`,
    'option samples': String(windows.length),
    'option sequenceLength': String(windows[0]?.length ?? 0),
    'calibration text (hash of its windows)': hashOfWindows(windows),
    ...(masks && { 'option mask (hash)': await fingerprint(masks.all) }),
    ...(await modelIdentity(engine, 'model')),
    ...(dense && (await modelIdentity(dense, 'option dense'))),
  }
}

/** A hash of the token ids of windows. */
export function hashOfWindows(windows: readonly Int32Array[]): string {
  const hash = createHash('sha256')
  for (const { buffer, byteOffset, byteLength } of windows) {
    hash.update(new Uint8Array(buffer, byteOffset, byteLength))
  }
  return hash.digest('hex').slice(0, 32)
}

/** A hash that tells a model from others: of its config.json and of samples of its weights. Throws FILE_NOT_FOUND. */
export async function hashOfModel(engine: Engine): Promise<string> {
  const parts = Object.values(await modelIdentity(engine, ''))
  return createHash('sha256').update(parts.join()).digest('hex').slice(0, 32)
}

/** What tells a model from others, by names that begin with `name`. Throws FILE_NOT_FOUND. */
async function modelIdentity({ checkpoint }: Engine, name: string): Promise<JobIdentity> {
  const config = createHash('sha256').update(JSON.stringify(checkpoint.config)).digest('hex').slice(0, 32)
  return {
    [`${name} (hash of its config.json)`]: config,
    [`${name} (hash of its weights)`]: await fingerprint(checkpoint.tensors.values()),
  }
}

function inWords(value: unknown): string {
  return value instanceof RegExp ? String(value) : typeof value === 'string' ? value : JSON.stringify(value)
}
