import type { Device, Tensor } from '../native/device.js'
import type { Block } from './block.js'
import type { BlockPass, BlockStep, LinearGroup } from './steps.js'

/** One batch on its way through a block, stopping at every group of linears. It owns the tensors made on the way. */
export class BlockRun {
  private readonly made: Tensor[] = []
  private step: IteratorResult<BlockStep, Tensor> | undefined

  constructor(
    private readonly device: Device,
    private readonly block: Block,
    private readonly pass: BlockPass,
    /** What goes with the run. */
    private readonly held: readonly Tensor[],
  ) {}

  /** Goes on to the next group; undefined at the end. Waits for the device only where the pass reads a tensor. */
  async advance(): Promise<LinearGroup | undefined> {
    const group = this.group()
    const outputs = () => group?.names.map((name) => this.block.apply(name, group.input)) ?? []
    this.step = this.device.within(this.made, () => this.pass.next(outputs()))
    while (!this.step.done && 'read' in this.step.value) {
      const elements = await this.device.readFloat32(this.step.value.read)
      this.step = this.device.within(this.made, () => this.pass.next(elements))
    }
    return this.group()
  }

  /** Runs to the end; the caller owns the block's output. */
  async finish(): Promise<Tensor> {
    while (!this.step?.done) await this.advance()
    const output = this.step.value
    this.dispose(output)
    return output
  }

  /** Moves what waits for the next step out of the device's memory. */
  offload(move: (tensor: Tensor) => void): void {
    for (const tensor of this.made) move(tensor)
  }

  /** Disposes of all that was made except `kept`. */
  dispose(kept?: Tensor): void {
    for (const tensor of this.made) if (tensor !== kept) tensor.dispose()
    this.made.length = 0
    for (const tensor of this.held) tensor.dispose()
  }

  private group(): LinearGroup | undefined {
    return this.step && !this.step.done && 'names' in this.step.value ? this.step.value : undefined
  }
}
