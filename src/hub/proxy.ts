import { SparseGptError } from '../errors.js'

/**
 * The proxy that the environment asks for: HTTPS_PROXY or HTTP_PROXY by the scheme of `url`, else ALL_PROXY, in capitals or
 * not, unless NO_PROXY lists the host (`host`, `.domain`, `host:port`, or `*` for all). Undefined for none.
 *
 * Throws INVALID_OPTION for one that is no http or https URL.
 */
export function proxyFor(url: URL): URL | undefined {
  const scheme = url.protocol.slice(0, -1)
  const name = [`${scheme}_proxy`, 'all_proxy'].find((candidate) => variable(candidate) !== '')
  if (name === undefined || isExcluded(url)) return undefined
  const given = variable(name)
  const address = given.includes('://') ? given : `http://${given}`
  const proxy = URL.canParse(address) ? new URL(address) : undefined
  if (proxy && ['http:', 'https:'].includes(proxy.protocol)) return proxy
  // Not the value: it may have a password.
  const message = `${name.toUpperCase()}: a proxy must be an http or https URL, such as http://host:3128`
  throw new SparseGptError('INVALID_OPTION', message)
}

function isExcluded(url: URL): boolean {
  const host = url.hostname.replace(/^\[|\]$/g, '').toLowerCase()
  const port = url.port || (url.protocol === 'https:' ? '443' : '80')
  return variable('no_proxy')
    .toLowerCase()
    .split(/[\s,]+/)
    .filter((entry) => entry !== '')
    .some((entry) => {
      if (entry === '*') return true
      const [, name = '', only] = /^\[?(.*?)\]?(?::(\d+))?$/.exec(entry.replace(/^\*?\./, '')) ?? []
      const whole = entry.includes('::') ? entry : name
      if (only !== undefined && !entry.includes('::') && only !== port) return false
      return host === whole || host.endsWith(`.${whole}`)
    })
}

const variable = (name: string) => process.env[name] || process.env[name.toUpperCase()] || ''
