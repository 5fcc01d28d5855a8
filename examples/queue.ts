// A queue of models to prune, on Redis. A worker that was killed in the middle of a job leaves its finished blocks beside the output
// folder; the queue hands the job to the next worker, which goes on from there.
//
//   npx tsx examples/queue.ts add REDIS_URL MODEL CALIBRATION_TEXT OUT      puts a job into the queue
//   npx tsx examples/queue.ts work REDIS_URL                                 works on jobs until SIGTERM

import { Queue, Worker } from 'bullmq'
import { Redis } from 'ioredis'
import { loadModel, prune } from 'sparsegpt'

interface Task {
  model: string
  text: string
  out: string
}

const name = 'prune'
const [command, url, model, text, out] = process.argv.slice(2)

if (command === 'add' && url && model && text && out) {
  const connection = new Redis(url)
  const queue = new Queue<Task>(name, { connection })
  // One job for each output folder, however often it is asked for.
  const jobId = Buffer.from(out).toString('base64url')
  const options = { jobId, attempts: 3, backoff: { type: 'fixed', delay: 1000 } }
  await queue.add(name, { model, text, out }, options)
  await queue.close()
  await connection.quit()
} else if (command === 'work' && url) {
  const connection = new Redis(url, { maxRetriesPerRequest: null })
  const worker = new Worker<Task>(
    name,
    async (job) => {
      const opened = await loadModel(job.data.model)
      try {
        const { sparsity, seconds } = await prune(opened, {
          pattern: '2:4',
          calibration: { file: job.data.text },
          out: job.data.out,
          resume: true, // what a killed worker has finished is not done again
          onProgress: ({ fraction, layer }) => {
            if (layer) console.log(`${job.data.out}: ${layer.name} pruned`)
            void job.updateProgress(Math.round(fraction * 100))
          },
        })
        return { sparsity: sparsity.achieved, seconds }
      } finally {
        await opened.dispose()
      }
    },
    {
      connection,
      concurrency: 1, // a job takes all cores
      // A worker renews its lock while it lives. A lock that ran out is a worker that died: its job goes to another one.
      lockDuration: 5000,
      stalledInterval: 2000,
      maxStalledCount: 10,
    },
  )
  worker.on('completed', ({ data }, result: { sparsity: number }) =>
    console.log(`${data.out}: done, ${(result.sparsity * 100).toFixed(1)} % zeros`),
  )
  worker.on('failed', (job, error) => console.error(`${job?.data.out ?? 'a job'}: ${error.message}`))
  worker.on('error', (error) => console.error(error.message))
  process.once('SIGTERM', () => void worker.close().then(() => connection.quit()))
} else {
  console.error('usage: queue.ts add REDIS_URL MODEL CALIBRATION_TEXT OUT | queue.ts work REDIS_URL')
  process.exitCode = 2
}
