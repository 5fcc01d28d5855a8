import { Device, type DeviceName } from '../../native/device.js'
import type { Arithmetic } from '../../native/operations.js'
import type { BenchCase, BenchDType } from './case.js'
import { createWorkload } from './workload.js'

/**
 * Measures the FLOP/s of a device by kind of arithmetic, in some seconds; attention is taken to run at the rate of products. Throws
 * DEVICE_UNAVAILABLE, OUT_OF_MEMORY.
 */
export async function measureRates(name: DeviceName, dtype: BenchDType): Promise<Record<Arithmetic, number>> {
  const device = new Device(name)
  const measure = async (c: BenchCase) => {
    const workload = await createWorkload(device, c)
    try {
      await workload.run() // warms up
      return await workload.run()
    } finally {
      workload.dispose()
    }
  }
  // Large enough that larger ones are hardly faster.
  const [tokens, rows, size] = [2048, 1024, device.traits.inHostMemory ? 2048 : 8192]
  try {
    await device.profile() // starts it
    const product = await measure({ operation: 'linear', tokens, inputs: size, outputs: size, dtype })
    const gram = await measure({ operation: 'gram', tokens, columns: size, dtype })
    const solver = await measure({ operation: 'solver', rows, columns: size, dtype: 'float32' })
    const { factorHessian = NaN, pruneSparsegpt = NaN } = solver.operations
    const linear = product.flop / product.seconds
    return {
      linear,
      attention: linear,
      gram: gram.flop / gram.seconds,
      factor: solver.kinds.factor / factorHessian,
      solve: solver.kinds.solve / pruneSparsegpt,
    }
  } finally {
    await device.close()
  }
}
