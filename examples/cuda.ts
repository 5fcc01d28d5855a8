// Runs the same job on the CPU and on the first NVIDIA GPU, and compares times and losses. Without a GPU it says why, and ends well.
//
//   npx tsx examples/cuda.ts MODEL CALIBRATION_TEXT

import { devices, loadModel, prune, type DeviceName } from 'sparsegpt'

const [path, calibration] = process.argv.slice(2)
if (!path || !calibration) {
  console.error('usage: cuda.ts MODEL CALIBRATION_TEXT')
  process.exit(2)
}

async function run(device: DeviceName) {
  const model = await loadModel(path!, { device })
  const { seconds, layers } = await prune(model, {
    pattern: '2:4',
    calibration: { file: calibration!, samples: 64 },
  })
  await model.dispose()
  return { device, seconds, loss: layers.reduce((sum, { loss }) => sum + (loss ?? 0), 0) }
}

const gpu = devices().find(({ kind }) => kind === 'cuda')
const rows = [await run('cpu')]
if (gpu?.available) rows.push(await run('cuda'))
else console.log(`no CUDA here: ${gpu?.reason ?? 'the library for CUDA is not built'}`)
console.table(rows)
