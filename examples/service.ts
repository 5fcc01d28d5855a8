// A pruning service. GET /prune?model=…&text=…&out=…&sparsity=0.5 answers with server-sent events: `progress` while the job runs,
// then `report` or `failure`. A job ends when its client goes away. One job runs at a time, since each takes all cores.
//
//   npx tsx examples/service.ts PORT

import { createServer, type ServerResponse } from 'node:http'
import { loadModel, prune, SparseGptError } from 'sparsegpt'

const port = Number(process.argv[2] ?? 8080)
let busy = false

const server = createServer((request, response) => {
  const url = new URL(request.url ?? '/', 'http://localhost')
  if (request.method !== 'GET' || url.pathname !== '/prune') {
    answer(response, 404, 'GET /prune')
    return
  }
  const [model, text, out] = ['model', 'text', 'out'].map((name) => url.searchParams.get(name))
  if (!model || !text || !out) {
    answer(response, 400, 'model, text and out are needed')
    return
  }
  if (busy) {
    answer(response, 503, 'another job is running')
    return
  }
  busy = true

  response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-store' })
  const send = (event: string, data: unknown) =>
    response.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`)
  const left = new AbortController()
  response.on('close', () => left.abort())

  const sparsity = Number(url.searchParams.get('sparsity') ?? 0.5)
  job({ model, text, out, sparsity }, left.signal, (fraction) => send('progress', { fraction }))
    .then((report) => send('report', report))
    .catch((error: unknown) => {
      const { code, message } =
        error instanceof SparseGptError ? error : { code: 'INTERNAL', message: String(error) }
      console.log(`${out}: ${code}`)
      send('failure', { code, message })
    })
    .finally(() => {
      busy = false
      response.end()
    })
})

interface Job {
  model: string
  text: string
  out: string
  sparsity: number
}

async function job(
  { model: path, text, out, sparsity }: Job,
  signal: AbortSignal,
  progress: (share: number) => void,
) {
  const model = await loadModel(path)
  try {
    return await prune(model, {
      sparsity,
      calibration: { file: text },
      out,
      signal,
      onProgress: ({ fraction }) => progress(fraction),
    })
  } finally {
    await model.dispose()
  }
}

function answer(response: ServerResponse, status: number, text: string): void {
  response.writeHead(status, { 'Content-Type': 'text/plain' }).end(`${text}\n`)
}

server.listen(port, '127.0.0.1', () => {
  const address = server.address()
  console.log(`listening on ${typeof address === 'object' && address ? address.port : port}`)
})
process.once('SIGTERM', () => {
  server.close()
  server.closeAllConnections()
})
