import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

export const commit = 'a'.repeat(40)

interface HubFile {
  contents: Buffer
  /** In large-file storage: its object id is a SHA-256, and downloading it redirects. */
  large: boolean
  oid: string
}

interface HubRepository {
  commit: string
  files: Map<string, HubFile>
  /** Readable only with this token. */
  token?: string
  gated?: boolean
}

/** A server on loopback that speaks the hub's endpoints, for models and data sets that the test adds. */
export class HubServer {
  private readonly repositories = new Map<string, HubRepository>()
  private readonly server = createServer((request, response) => this.answer(request, response))
  /** Method and path of every request, in order. */
  readonly requests: string[] = []
  /** Range headers of downloads that asked for more than a look. */
  readonly ranges: (string | undefined)[] = []
  /** So many of the next downloads are cut after so many bytes. */
  cuts: number[] = []
  /** Status of the next answers. */
  failures: number[] = []
  /** Answers of the test's own: the first that returns true has answered. */
  answers: ((path: string, request: IncomingMessage, response: ServerResponse) => boolean)[] = []
  /** Flips a byte of what is downloaded. */
  corrupt = false

  static async start(): Promise<HubServer> {
    const hub = new HubServer()
    await new Promise<void>((done) => hub.server.listen(0, '127.0.0.1', done))
    return hub
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`
  }

  async stop(): Promise<void> {
    this.server.closeAllConnections()
    await new Promise((done) => this.server.close(done))
  }

  /** `id` is 'org/name', or 'datasets/org/name'; files above 1000 bytes are large. */
  add(id: string, files: Record<string, string | Uint8Array>, change: Partial<HubRepository> = {}): void {
    const entries = Object.entries(files).map(([path, data]): [string, HubFile] => {
      const contents = Buffer.from(data)
      const large = contents.length > 1000
      const hash = large
        ? createHash('sha256').update(contents)
        : createHash('sha1').update(`blob ${contents.length}\0`).update(contents)
      return [path, { contents, large, oid: hash.digest('hex') }]
    })
    this.repositories.set(id, { commit, files: new Map(entries), ...change })
  }

  private answer(request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url ?? '', this.url)
    const path = decodeURIComponent(url.pathname)
    this.requests.push(`${request.method} ${path}`)
    const failure = this.failures.shift()
    if (failure !== undefined) {
      fail(response, failure, 'Busy')
      return
    }
    if (this.answers.some((answer) => answer(path, request, response))) return
    const stored = /^\/cdn\/(\w+)$/.exec(path)
    // A storage provider's host, which must not see the token.
    if (stored && request.headers.authorization !== undefined) {
      fail(response, 400, 'Only one authorization is allowed')
      return
    }
    if (stored) {
      this.send(request, response, this.find(stored[1]!))
      return
    }
    const api = /^\/api\/(models|datasets)\/((?:[^/]+\/)?[^/]+)\/(revision|tree|paths-info)\/(.+)$/.exec(path)
    const resolve = /^\/(datasets\/)?((?:[^/]+\/)?[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(path)
    if (api) {
      const [, type, name, call, revision] = api
      const id = type === 'models' ? name! : `datasets/${name}`
      this.withRepository(request, response, id, revision!, (repository) => {
        if (call === 'revision') {
          json(response, { id: name, _id: '1', sha: repository.commit })
          return
        }
        if (call === 'tree') {
          json(response, treeOf(repository))
          return
        }
        let body = ''
        request.on('data', (chunk: Buffer) => (body += chunk.toString()))
        request.on('end', () => {
          const { paths } = JSON.parse(body) as { paths: string[] }
          json(
            response,
            paths.flatMap((wanted) => {
              const file = repository.files.get(wanted)
              return file ? [entryOf(wanted, file)] : []
            }),
          )
        })
      })
    } else if (resolve) {
      const [, datasets = '', name, revision, file] = resolve
      this.withRepository(request, response, datasets + name!, revision!, (repository) => {
        const found = repository.files.get(file!)
        if (!found) {
          fail(response, 404, 'Entry not found', 'EntryNotFound')
          return
        }
        const headers = { 'X-Repo-Commit': repository.commit, ETag: `"${found.oid}"` }
        if (!found.large) {
          this.send(request, response, found, headers)
          return
        }
        response.writeHead(302, {
          ...headers,
          Location: `${this.url.replace('127.0.0.1', 'localhost')}/cdn/${found.oid}`,
          'X-Linked-Size': found.contents.length,
          'X-Linked-ETag': `"${found.oid}"`,
        })
        response.end()
      })
    } else {
      fail(response, 404, 'Not found')
    }
  }

  private withRepository(
    request: IncomingMessage,
    response: ServerResponse,
    id: string,
    revision: string,
    body: (repository: HubRepository) => void,
  ): void {
    const repository = this.repositories.get(id)
    if (!repository) {
      fail(response, 401, 'Invalid username or password.', 'RepoNotFound')
      return
    }
    const { authorization } = request.headers
    if (repository.token !== undefined && authorization !== `Bearer ${repository.token}`) {
      fail(response, 401, 'Invalid credentials in Authorization header')
      return
    }
    if (repository.gated) {
      fail(response, 403, 'Access to this model is restricted', 'GatedRepo')
      return
    }
    const known = ['main', 'v1', 'refs/convert/parquet', repository.commit]
    if (!known.includes(revision)) {
      fail(response, 404, 'Invalid rev id', 'RevisionNotFound')
      return
    }
    body(repository)
  }

  private find(oid: string): HubFile {
    const files = [...this.repositories.values()].flatMap(({ files: map }) => [...map.values()])
    return files.find((file) => file.oid === oid)!
  }

  private send(
    request: IncomingMessage,
    response: ServerResponse,
    { contents, oid }: HubFile,
    headers: Record<string, string> = { ETag: `"${oid}"` },
  ): void {
    const { range } = request.headers
    const look = range === 'bytes=0-0'
    if (!look) this.ranges.push(range)
    const [, first = '0', last = ''] = /^bytes=(\d+)-(\d*)$/.exec(range ?? '') ?? []
    const start = Number(first)
    const end = last === '' ? contents.length - 1 : Math.min(Number(last), contents.length - 1)
    const body = Buffer.from(contents.subarray(start, end + 1))
    if (this.corrupt && !look) body[0]! ^= 1
    response.writeHead(range === undefined ? 200 : 206, {
      ...headers,
      'Content-Length': body.length,
      'Accept-Ranges': 'bytes',
      ...(range === undefined ? {} : { 'Content-Range': `bytes ${start}-${end}/${contents.length}` }),
    })
    const cut = look ? undefined : this.cuts.shift()
    if (cut === undefined) response.end(body)
    else response.write(body.subarray(0, cut), () => setTimeout(() => response.destroy(), 20))
  }
}

const entryOf = (path: string, { contents, large, oid }: HubFile) => ({
  type: 'file',
  path,
  size: contents.length,
  // Of a large file this is the id of the small file that stands for it.
  oid: large ? createHash('sha1').update(oid).digest('hex') : oid,
  ...(large ? { lfs: { oid, size: contents.length, pointerSize: 130 } } : {}),
})

function treeOf({ files }: HubRepository) {
  const folders = new Set(
    [...files.keys()].flatMap((path) => (path.includes('/') ? [path.split('/')[0]] : [])),
  )
  return [
    ...[...folders].map((path) => ({ type: 'directory', path, size: 0, oid: '0'.repeat(40) })),
    ...[...files].filter(([path]) => !path.includes('/')).map(([path, file]) => entryOf(path, file)),
  ]
}

function json(response: ServerResponse, value: unknown): void {
  response.writeHead(200, { 'Content-Type': 'application/json' })
  response.end(JSON.stringify(value))
}

function fail(response: ServerResponse, status: number, error: string, code?: string): void {
  response.writeHead(status, {
    'Content-Type': 'application/json',
    ...(code ? { 'X-Error-Code': code } : {}),
  })
  response.end(JSON.stringify({ error }))
}
