/**
 * What a file is that does not hold what its name says, from its beginning: a Git LFS pointer, a web page. It continues a message
 * that began with the file's name; undefined when it is neither.
 */
export function foreignContents(beginning: string): string | undefined {
  if (beginning.startsWith('version https://git-lfs.github.com/')) {
    return 'is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`, or download it from the hub'
  }
  if (/^\s*(<!doctype html|<html|<\?xml)/i.test(beginning)) {
    return 'is a web page, not the file itself: download it again; the server may have asked for a login or sent an error page'
  }
  return undefined
}
