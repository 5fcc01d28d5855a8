/** Whether `name` can only be a file directly in a folder, on any system (`:` is a drive or stream on Windows). */
export function isPlainName(name: string): boolean {
  return /^[^/\\:\0]+$/.test(name) && name !== '.' && name !== '..'
}
