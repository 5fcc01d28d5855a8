import { writeFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterEach, describe, expect, test } from '@jest/globals'
import { proxyFor } from '../../src/hub/proxy.js'
import { resolveModel } from '../../src/hub/model-folder.js'
import { expectError } from '../temporary.js'
import { useHub } from './environment.js'
import { commit } from './hub-server.js'

const at = useHub()
const files = { 'config.json': '{}', 'model.safetensors': Buffer.alloc(3000, 'abc') }
const servers: Server[] = []
afterEach(() => {
  for (const server of servers.splice(0)) server.close().closeAllConnections()
})

async function serve(answer: (request: IncomingMessage, response: ServerResponse) => void) {
  const server = createServer(answer)
  servers.push(server)
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  return { server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }
}

const json = (response: ServerResponse, value: unknown, headers: Record<string, string> = {}) => {
  response.writeHead(200, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(value))
  return true
}
const entry = (path: string) => ({ type: 'file', path, size: 2, oid: 'a'.repeat(40) })

describe('a token', () => {
  test.each(['secret', 'api_org_x', 'eyJ.e30.x=='])('is passed on, whatever it is: %s', async (token) => {
    at.hub.add('org/private', files, { token })
    process.env['HF_TOKEN'] = token
    expect((await resolveModel('org/private')).name).toBe('org/private')
  })

  test('that no header can have is refused, but not looked at offline', async () => {
    at.hub.add('org/m', files)
    await resolveModel('org/m')
    process.env['HF_TOKEN'] = 'two\nlines'
    await expectError(resolveModel('org/m'), 'INVALID_OPTION', /HF_TOKEN/)
    process.env['HF_HUB_OFFLINE'] = '1'
    expect((await resolveModel('org/m')).name).toBe('org/m')
  })

  test('is sent to no other host than the endpoint: redirects, pages of a list', async () => {
    const seen: (string | undefined)[] = []
    const other = await serve((request, response) => {
      seen.push(request.headers.authorization)
      if (request.url === '/page') json(response, [])
      else response.end(files['model.safetensors'])
    })
    at.hub.add('org/m', files, { token: 'hf_x' })
    process.env['HF_TOKEN'] = 'hf_x'
    at.hub.answers.push((path, _request, response) => {
      if (path.includes('/tree/'))
        return json(response, Object.keys(files).map(entry), { link: `<${other.url}/page>; rel="next"` })
      if (!path.endsWith('/model.safetensors')) return false
      response.writeHead(302, { location: `${other.url}/file` }).end()
      return true
    })
    await resolveModel('org/m')
    expect(seen).toEqual([undefined, undefined])
  })
})

describe('refused', () => {
  test.each(['../../x.model', 'a/../../../x.model', '..', '/etc/x.model', 'a\\..\\x.model'])(
    'a listing with the name %s',
    async (name) => {
      at.hub.add('org/m', files)
      at.hub.answers.push(
        (path, _request, response) =>
          path.includes('/tree/') && json(response, [entry('config.json'), entry(name)]),
      )
      await expectError(resolveModel('org/m'), 'DOWNLOAD_FAILED', /lists a file .* no name of a file/)
    },
  )

  test.each(['ftp://127.0.0.1/x', 'file:///etc/passwd', 'data:text/plain,x'])(
    'a redirect to %s',
    async (location) => {
      at.hub.add('org/m', files)
      at.hub.answers.push((path, _request, response) => {
        if (!path.includes('/resolve/')) return false
        response.writeHead(302, { location }).end()
        return true
      })
      await expectError(
        resolveModel('org/m'),
        'DOWNLOAD_FAILED',
        /redirects from http:\/\/ to .* not followed/,
      )
    },
  )

  test('redirects in a circle', async () => {
    at.hub.answers.push((path, _request, response) => {
      response.writeHead(307, { location: path }).end()
      return true
    })
    await expectError(resolveModel('org/m'), 'DOWNLOAD_FAILED', /redirects more than 10 times/)
  })

  test('a list that pages without end', async () => {
    at.hub.add('org/m', files)
    const page = Array.from({ length: 20_000 }, (_, i) => entry(`file${i}`))
    at.hub.answers.push(
      (path, _request, response) =>
        path.includes('/tree/') && json(response, page, { link: `<${at.hub.url}${path}>; rel="next"` }),
    )
    await expectError(resolveModel('org/m'), 'DOWNLOAD_FAILED', /lists more than 100000 files/)
  })

  test('pages without a file, without end', async () => {
    at.hub.add('org/m', files)
    at.hub.answers.push(
      (path, _request, response) =>
        path.includes('/tree/') && json(response, [], { link: `<${at.hub.url}${path}>; rel="next"` }),
    )
    await expectError(resolveModel('org/m'), 'DOWNLOAD_FAILED', /more than 1000 requests/)
  })

  test('an answer that is packed, or endless', async () => {
    const bomb = gzipSync(Buffer.alloc(2 ** 26))
    at.hub.answers = [
      (_path, _request, response) => {
        response.writeHead(200, { 'content-type': 'application/json', 'content-encoding': 'gzip' }).end(bomb)
        return true
      },
    ]
    await expectError(resolveModel('org/m'), 'DOWNLOAD_FAILED', /answers packed \(gzip\)/)
    at.hub.answers = [
      (_path, _request, response) => {
        const more = () => {
          while (!response.destroyed && response.write(Buffer.alloc(2 ** 20, ' ')));
        }
        response.on('drain', more)
        more()
        return true
      },
    ]
    await expectError(resolveModel('org/m'), 'DOWNLOAD_FAILED', /answers with more than 67108864 bytes/)
  })

  test.each(['/revision/', '/tree/', '/paths-info/', '/resolve/'])(
    'a hub that stalls at %s',
    async (call) => {
      at.hub.add('org/m', files)
      process.env['HF_HUB_DOWNLOAD_TIMEOUT'] = '0.3'
      at.hub.answers.push((path) => path.includes(call))
      const start = performance.now()
      await expectError(resolveModel('org/m'), 'DOWNLOAD_FAILED', /sent nothing for 0\.3 seconds/)
      expect(performance.now() - start).toBeLessThan(10_000)
    },
  )

  test('a file of another size in the cache is downloaded again', async () => {
    at.hub.add('org/m', files)
    const { folder } = await resolveModel('org/m')
    const next = 'b'.repeat(40)
    at.hub.add('org/m', files, { commit: next })
    await writeFile(join(folder, 'model.safetensors'), 'cut')
    const again = await resolveModel('org/m')
    expect(again.folder).not.toContain(commit)
    expect(at.hub.ranges).toHaveLength(3)
  })
})

test('a connection that the hub has closed while it was idle is made anew', async () => {
  at.hub.add('org/m', files)
  const used = new WeakSet()
  let closed = 0
  at.hub.answers.push((_path, { socket }) => {
    if (!used.has(socket)) {
      used.add(socket)
      return false
    }
    closed++
    socket.resetAndDestroy()
    return true
  })
  expect((await resolveModel('org/m')).name).toBe('org/m')
  expect(closed).toBeGreaterThan(0)
})

test('a model without an organization is found by its name', async () => {
  at.hub.add('gpt2', files)
  expect(await resolveModel('gpt2')).toEqual({
    folder: join(at.home, 'hub', 'models--gpt2', 'snapshots', commit),
    name: 'gpt2',
  })
  await expectError(resolveModel('nobody'), 'FILE_NOT_FOUND', /nobody does not exist, and as a hub id: .*401/)
})

describe('a proxy', () => {
  test('is asked in the place of the hub, but not for what NO_PROXY lists', async () => {
    at.hub.add('org/m', files)
    const { url: hub } = at.hub
    const asked: (string | undefined)[] = []
    const logins = new Set<string | undefined>()
    const proxy = await serve((request, response) => {
      asked.push(request.url)
      logins.add(request.headers['proxy-authorization'])
      const { method, headers } = request
      void (async () => {
        const body: Buffer[] = []
        for await (const chunk of request as AsyncIterable<Buffer>) body.push(chunk)
        const to = request
          .url!.replace('http://hub.test', hub)
          .replace('http://localhost', 'http://127.0.0.1')
        const answer = await fetch(to, {
          method: method!,
          headers: { 'content-type': headers['content-type'] ?? '' },
          redirect: 'manual',
          ...(method === 'POST' ? { body: Buffer.concat(body) } : {}),
        })
        response.writeHead(answer.status, { ...Object.fromEntries(answer.headers), connection: 'close' })
        response.end(Buffer.from(await answer.arrayBuffer()))
      })()
    })
    process.env['HF_ENDPOINT'] = 'http://hub.test'
    process.env['http_proxy'] = proxy.url.replace('//', '//me:pass%20word@')
    expect((await resolveModel('org/m')).name).toBe('org/m')
    expect(asked[0]).toMatch(/^http:\/\/hub\.test\/api\/models\/org\/m\/revision\/main/)
    expect(asked.some((url) => url?.startsWith('http://localhost'))).toBe(true)
    expect([...logins]).toEqual([`Basic ${Buffer.from('me:pass word').toString('base64')}`])
    asked.length = 0
    process.env['NO_PROXY'] = 'example.com, hub.test'
    process.env['HF_HUB_DOWNLOAD_TIMEOUT'] = '2'
    await resolveModel('org/other').catch(() => undefined)
    expect(asked).toEqual([])
  })

  test('of an encrypted hub is asked for a tunnel', async () => {
    const asked: (string | undefined)[] = []
    const proxy = await serve(() => undefined)
    proxy.server.on('connect', (request, socket) => {
      asked.push(request.url)
      socket.end('HTTP/1.1 403 Forbidden\r\n\r\n')
    })
    process.env['HF_ENDPOINT'] = 'https://hub.test'
    process.env['HTTPS_PROXY'] = proxy.url
    await expectError(
      resolveModel('org/m'),
      'DOWNLOAD_FAILED',
      /the proxy 127.* answers 403 for hub\.test:443/,
    )
    expect(asked).toEqual(['hub.test:443'])
  })

  test.each([
    ['*', 'https://a.b', false],
    ['a.b', 'https://a.b', false],
    ['.b', 'https://a.b', false],
    ['*.b', 'https://a.b', false],
    ['b', 'https://a.b', false],
    ['a.b:443', 'https://a.b', false],
    ['a.b:80', 'https://a.b', true],
    ['::1', 'https://[::1]:8', false],
    ['c, x.b', 'https://a.b', true],
    ['', 'https://a.b', true],
    ['', 'http://a.b', false],
  ])('NO_PROXY=%p: %s', (no, url, proxied) => {
    process.env['HTTPS_PROXY'] = 'proxy:3128'
    process.env['NO_PROXY'] = no
    expect(proxyFor(new URL(url))?.host).toBe(proxied ? 'proxy:3128' : undefined)
  })

  test('that is no URL, or of another kind, is refused', () => {
    for (const proxy of ['socks5://x', 'http://[']) {
      process.env['ALL_PROXY'] = proxy
      expect(() => proxyFor(new URL('https://a.b'))).toThrow(/ALL_PROXY.*http or https/)
    }
  })
})
