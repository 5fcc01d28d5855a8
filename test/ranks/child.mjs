// One rank of a job: prunes as the JSON of the first argument says, and of what the second says dies where it is told to.
import { loadModel, MpiCommunicator, prune } from '../../dist/index.js'

const { model: folder, text, out, options } = JSON.parse(process.argv[2])
const { rank: victim, phase } = JSON.parse(process.argv[3] ?? '{}')
const die = () => process.kill(process.pid, 'SIGKILL')

class Rank extends MpiCommunicator {
  reports = 0

  async allReduce(device, tensor, settings) {
    if (victim === this.rank && phase === 'reduction' && this.reports === 1) die()
    return super.allReduce(device, tensor, settings)
  }

  async gather(device, value) {
    const values = await super.gather(device, value)
    // The reports of a block are gathered when all of it is stored; behind the last comes the writing of the rest.
    if (Array.isArray(value) && value[0]?.name !== undefined) this.reports++
    if (victim === this.rank && phase === 'write' && this.reports === 2) die()
    if (victim === this.rank && phase === 'error' && this.reports === 1)
      throw new Error('a rank has met an error')
    return values
  }
}

const communicator = new Rank()
const model = await loadModel(folder, { device: 'cpu', threads: 1 })
const report = await prune(model, {
  ...options,
  out,
  communicator,
  calibration: { file: text, samples: 12, sequenceLength: 64 },
  onProgress: (at) => {
    const here = { collect: 'forward', solve: 'solve' }[at.phase]
    if (victim === communicator.rank && phase === here && at.block === 1) die()
  },
})
if (communicator.rank === 0) console.log(JSON.stringify(report))
await model.dispose()
communicator.close()
