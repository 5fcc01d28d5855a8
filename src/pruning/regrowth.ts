import type { Device, Tensor } from '../native/device.js'

/** Too small to change any weight that it is added to, or an output; but no zero, which every method would keep. */
const mark = 2 ** -120
/** Times `mark` this is a zero in float32; times a weight it is none. */
const below = 2 ** -60

/** Makes ordinary weights of the zeros of `weight`, float32 [rows, columns], in place: what solves it may change them. */
export function freeZeros(device: Device, weight: Tensor): void {
  device.tidy(() => {
    device.add(weight, device.fill(device.empty('float32', weight.shape), mark))
    return undefined
  })
}

/** Makes zeros again of what freeZeros() has freed and no solver has changed. */
export function settleZeros(device: Device, weight: Tensor): void {
  device.tidy(() => {
    const small = device.cast(weight, 'float32')
    device.scale(small, below)
    device.applyMask(weight, device.markZeros(small))
    return undefined
  })
}
