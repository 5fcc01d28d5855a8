import * as z from 'zod'
import { nativeAddon } from './addon.js'
import type { DeviceName } from './device.js'
import { native } from './failure.js'

/** What `devices()` says of a device. */
export type DeviceInfo =
  | {
      /** The name that the option `device` takes: 'cpu', 'cuda', 'cuda:1'. */
      kind: Exclude<DeviceName, 'auto'>
      available: true
      /** A description for people. */
      name: string
      /** The size of its own memory, in bytes; a device that works in the process's memory has none. */
      memory?: number
    }
  | {
      kind: Exclude<DeviceName, 'auto'>
      available: false
      /** Why there is no such device, and what to do. */
      reason: string
    }

const isNamed = (value: unknown) => {
  const [kind, index = '0', ...more] = typeof value === 'string' ? value.split(':') : []
  const known = nativeAddon()
    .backends()
    .some((traits) => traits.kind === kind)
  return known && /^\d{1,3}$/.test(index) && more.length === 0
}
const names = '"cpu", "cuda" or, of several GPUs, "cuda:1" and so on'

/**
 * Validates the name of one device.
 *
 * @internal
 */
export const namedDevice = z.custom<Exclude<DeviceName, 'auto'>>(isNamed, `must be ${names}`)

/**
 * Validates the option `device`.
 *
 * @internal
 */
export const deviceName = z.custom<DeviceName>(
  (value) => value === 'auto' || isNamed(value),
  `must be "auto", ${names}`,
)

/**
 * The memory that a job on a device can have on this machine, in bytes: what is free of the process's, within the limit of its container,
 * or all of a GPU's; undefined where there is no such device.
 */
export function availableMemory(name: Exclude<DeviceName, 'auto'>): number | undefined {
  const info = devices().find(({ kind }) => kind === name)
  if (!info?.available) return undefined
  return info.memory ?? process.availableMemory()
}

/**
 * Lists the devices that the option `device` can name: the CPU, and the GPUs or the reason why there is none (the CUDA
 * backend is not built, the driver is missing, there is no GPU). Throws DEVICE_UNAVAILABLE when the native addon is missing.
 */
export function devices(): DeviceInfo[] {
  const addon = nativeAddon()
  const list = addon.backends().map(({ kind }): DeviceInfo[] => {
    const { devices: found, reason } = native(() => addon.probe(kind))
    if (found.length === 0) return [{ kind, available: false, reason } as DeviceInfo]
    return found.map(({ name, memory }, index) => ({
      kind: (index === 0 ? kind : `${kind}:${index}`) as Exclude<DeviceName, 'auto'>,
      available: true,
      name,
      ...(memory > 0 && { memory }),
    }))
  })
  // The CPU, which 'auto' tries last, first.
  return list.reverse().flat()
}
