import { request as requestHttp, type IncomingMessage, type RequestOptions } from 'node:http'
import { request as requestHttps } from 'node:https'
import { connect as connectTls, type TLSSocket } from 'node:tls'
import { isIP, type Socket } from 'node:net'
import { SparseGptError } from '../errors.js'
import { proxyFor } from './proxy.js'
import type { HubSettings } from './settings.js'

/** A request to the hub. */
interface HubRequest {
  /** GET, POST or another. */
  method: string
  /** The headers, without the token. */
  headers: Record<string, string>
  /** What is sent. */
  body: string | undefined
  /** The signal that stops it. */
  signal: AbortSignal | undefined
}

const maxRedirects = 10
/** The number of pages that an answer may have. */
const maxRequests = 1000
/** The largest answer of the hub that is no file, and the time that it may take in all. */
const maxReplyBytes = 2 ** 26
const replyMilliseconds = 60_000

/** The server has been silent for too long. */
export class HubTimeout extends Error {}

/**
 * What `fetch` would do for a call to the hub's API, with what matters here: the token goes to the endpoint's host only,
 * redirects stay within http and https, proxies are those of the environment, and silence and size are limited.
 *
 * Throws DOWNLOAD_FAILED for an answer that is refused, INVALID_OPTION (proxy, token), HubTimeout; what the network throws.
 */
export function hubFetch(settings: HubSettings, signal: AbortSignal | undefined): typeof fetch {
  let requests = 0
  return async (input, init) => {
    if (++requests > maxRequests) {
      const message = `${settings.endpoint} takes more than ${maxRequests} requests for one answer`
      throw new SparseGptError('DOWNLOAD_FAILED', message)
    }
    const url = input instanceof Request ? input.url : String(input)
    const limited = AbortSignal.any([AbortSignal.timeout(replyMilliseconds), ...(signal ? [signal] : [])])
    const { message, url: from } = await send(settings, url, {
      method: init?.method ?? 'GET',
      headers: Object.fromEntries(new Headers(init?.headers)),
      body: typeof init?.body === 'string' ? init.body : undefined,
      signal: limited,
    })
    const chunks: Buffer[] = []
    let bytes = 0
    try {
      for await (const chunk of message as AsyncIterable<Buffer>) {
        bytes += chunk.length
        if (bytes > maxReplyBytes) {
          throw new SparseGptError('DOWNLOAD_FAILED', `${from} answers with more than ${maxReplyBytes} bytes`)
        }
        chunks.push(chunk)
      }
    } finally {
      message.destroy()
    }
    const status = message.statusCode ?? 500
    const response = new Response(status === 204 || status === 304 ? null : Buffer.concat(chunks), {
      status,
      headers: headersOf(message),
    })
    Object.defineProperty(response, 'url', { value: from })
    return response
  }
}

/** Asks for a file, from the byte `start` on. The caller reads, or destroys, the message. Throws as hubFetch does. */
export async function openFile(
  settings: HubSettings,
  url: string,
  range: string | undefined,
  signal: AbortSignal | undefined,
): Promise<{ message: IncomingMessage; url: string }> {
  const headers: Record<string, string> = range === undefined ? {} : { range }
  return send(settings, url, { method: 'GET', headers, body: undefined, signal })
}

/** Sends a request and follows where it is redirected. */
async function send(
  settings: HubSettings,
  address: string,
  request: HubRequest,
): Promise<{ message: IncomingMessage; url: string }> {
  let url = new URL(address)
  const refuse = (what: string) => new SparseGptError('DOWNLOAD_FAILED', `${address} ${what}`)
  for (let redirects = 0; redirects <= maxRedirects; redirects++) {
    const message = await sendOnce(settings, url, request)
    const { location } = message.headers
    if (![301, 302, 303, 307, 308].includes(message.statusCode ?? 0) || location === undefined) {
      const encoding = message.headers['content-encoding'] ?? 'identity'
      if (encoding === 'identity') return { message, url: url.href }
      message.destroy()
      throw refuse(`answers packed (${encoding}), which it was asked not to`)
    }
    message.destroy()
    if (!URL.canParse(location, url.href)) throw refuse(`redirects to ${location}, which is no URL`)
    const next = new URL(location, url.href)
    const sameOrSafer = next.protocol === url.protocol || next.protocol === 'https:'
    if (!sameOrSafer || !['http:', 'https:'].includes(next.protocol)) {
      throw refuse(`redirects from ${url.protocol}// to ${next.protocol}//, which is not followed`)
    }
    if (message.statusCode === 303) request = { ...request, method: 'GET', body: undefined }
    url = next
  }
  throw refuse(`redirects more than ${maxRedirects} times`)
}

async function sendOnce(settings: HubSettings, url: URL, request: HubRequest): Promise<IncomingMessage> {
  const { method, headers, body, signal } = request
  const endpoint = new URL(settings.endpoint)
  const secret = settings.token !== undefined && url.origin === endpoint.origin
  const options = {
    method,
    headers: {
      ...headers,
      'accept-encoding': 'identity',
      'user-agent': 'sparsegpt',
      ...(body === undefined ? {} : { 'content-length': String(Buffer.byteLength(body)) }),
      ...(secret ? { authorization: `Bearer ${settings.token}` } : {}),
    },
    ...(signal ? { signal } : {}),
  }
  const proxy = proxyFor(url)
  const through =
    proxy && (url.protocol === 'https:' ? await tunnel(proxy, url, settings, signal) : undefined)
  return new Promise((resolve, reject) => {
    const start = () => {
      if (through) return requestHttps(url, { ...options, agent: false, createConnection: () => through })
      if (!proxy) return (url.protocol === 'https:' ? requestHttps : requestHttp)(url, options)
      return viaProxy(proxy, { ...options, path: url.href, headers: { ...options.headers, host: url.host } })
    }
    let sent: ReturnType<typeof start>
    try {
      sent = start()
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code
      if (code !== 'ERR_INVALID_CHAR') throw error
      const what = 'the token has characters that cannot be sent; give one line of plain text'
      throw new SparseGptError('INVALID_OPTION', `HF_TOKEN: ${what}`)
    }
    sent.setTimeout(settings.timeout, () => sent.destroy(silence(url, settings)))
    sent.on('error', (error: NodeJS.ErrnoException) => {
      // A connection of an earlier request may have been closed by the server in the meantime.
      if (sent.reusedSocket && error.code === 'ECONNRESET') resolve(sendOnce(settings, url, request))
      else reject(error)
    })
    sent.on('response', (message: IncomingMessage) => {
      message.setTimeout(settings.timeout, () => message.destroy(silence(url, settings)))
      resolve(message)
    })
    sent.end(body)
  })
}

const silence = (url: URL, { timeout }: HubSettings) =>
  new HubTimeout(`${url.host} sent nothing for ${timeout / 1000} seconds (HF_HUB_DOWNLOAD_TIMEOUT)`)

/** A request that a proxy answers, with the name and password of its address. */
function viaProxy(
  proxy: URL,
  options: Omit<RequestOptions, 'headers'> & { headers: Record<string, string> },
) {
  const { username, password } = proxy
  const login = Buffer.from(`${decodeURIComponent(username)}:${decodeURIComponent(password)}`)
  return (proxy.protocol === 'https:' ? requestHttps : requestHttp)({
    ...options,
    hostname: proxy.hostname.replace(/^\[|\]$/g, ''),
    port: proxy.port || (proxy.protocol === 'https:' ? 443 : 80),
    headers: {
      ...options.headers,
      ...(username === '' ? {} : { 'proxy-authorization': `Basic ${login.toString('base64')}` }),
    },
  })
}

/** An encrypted connection to the host of `url` through a proxy, which sees the host's name only. */
function tunnel(
  proxy: URL,
  url: URL,
  settings: HubSettings,
  signal: AbortSignal | undefined,
): Promise<TLSSocket> {
  const host = `${url.hostname}:${url.port || 443}`
  return new Promise((resolve, reject) => {
    const sent = viaProxy(proxy, {
      method: 'CONNECT',
      path: host,
      headers: { host },
      ...(signal ? { signal } : {}),
    })
    sent.setTimeout(settings.timeout, () => sent.destroy(silence(proxy, settings)))
    sent.on('error', reject)
    sent.on('connect', (answer: IncomingMessage, socket: Socket) => {
      if (answer.statusCode !== 200) {
        socket.destroy()
        const message = `the proxy ${proxy.host} answers ${answer.statusCode} for ${host}: check HTTPS_PROXY and NO_PROXY`
        reject(new SparseGptError('DOWNLOAD_FAILED', message))
        return
      }
      // The name is checked against the certificate; an address has none to send.
      const name = url.hostname.replace(/^\[|\]$/g, '')
      const secure = connectTls({ socket, host: name, ...(isIP(name) ? {} : { servername: name }) })
      secure.once('secureConnect', () => resolve(secure)).once('error', reject)
    })
    sent.end()
  })
}

function headersOf(message: IncomingMessage): Headers {
  const headers = new Headers()
  for (const [name, value] of Object.entries(message.headers)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== undefined) headers.append(name, one)
  }
  return headers
}
