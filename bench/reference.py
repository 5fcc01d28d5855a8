"""The reference's side of the tables: times the SparseGPT class of a checkout of IST-DASLab/sparsegpt on PyTorch.

    python reference.py --reference DIR [--threads N] [--device cpu|cuda]

Reads cases from stdin, one JSON object a line (src/benchmark/case.ts, and "job"), runs each once with random data and answers
with one JSON object: {"seconds": s}, of a job also "phases" and "peakRssBytes". The first run of a case warms up.
"""

import argparse
import contextlib
import json
import random
import resource
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--reference", required=True, help="checkout of IST-DASLab/sparsegpt")
parser.add_argument("--threads", type=int, default=0, help="0 for PyTorch's own choice")
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
arguments = parser.parse_args()

import torch
import transformers
from torch import nn

sys.path.insert(0, arguments.reference)
from quant import Quantizer
from sparsegpt import SparseGPT

if arguments.threads > 0:
    torch.set_num_threads(arguments.threads)
if not torch.cuda.is_available():
    torch.cuda.synchronize = lambda: None  # the class calls it on any device
device = torch.device(arguments.device)
window = 2048  # the reference adds up the Gram matrix window by window


class Stopwatch:
    """Adds up the time spent in `with` blocks, the device's work included."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        torch.cuda.synchronize()
        self.start = time.perf_counter()

    def __exit__(self, *_):
        torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self.start


def timed(body):
    """Of the device's own clock, as on our side: waiting for a GPU can take longer than a product on it."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        body()
        end.record()
        end.synchronize()
        return {"seconds": start.elapsed_time(end) / 1000}
    watch = Stopwatch()
    with watch:
        body()
    return {"seconds": watch.seconds}


def pruner(layer, bits=None):
    gpt = SparseGPT(layer)
    if bits:
        gpt.quantizer = Quantizer()
        gpt.quantizer.configure(bits, perchannel=True, sym=False, mse=False)
    return gpt


def fasterprune(gpt, case):
    pattern = case.get("pattern") or {"n": 0, "m": 0}
    gpt.fasterprune(0.5, prunen=pattern["n"], prunem=pattern["m"], percdamp=0.01, blocksize=128)


def uniform(dtype, *shape):
    return (torch.rand(*shape, device=device) * 2 - 1).to(dtype)


def linear(case):
    dtype = getattr(torch, case["dtype"])
    x, weight = uniform(dtype, case["tokens"], case["inputs"]), uniform(dtype, case["outputs"], case["inputs"])
    return lambda: timed(lambda: nn.functional.linear(x, weight))


def gram(case):
    x = uniform(getattr(torch, case["dtype"]), case["tokens"], case["columns"])
    gpt = pruner(nn.Linear(case["columns"], 1, bias=False, device=device))

    def run():
        for first in range(0, case["tokens"], window):
            gpt.add_batch(x[first : first + window].unsqueeze(0), None)

    return lambda: timed(run)


def solver(case):
    rows, columns = case["rows"], case["columns"]
    layer = nn.Linear(columns, rows, bias=False, device=device)
    dense = uniform(torch.float32, rows, columns)
    collected = pruner(layer)
    for _ in range(0, 2 * columns, window):
        collected.add_batch(uniform(torch.float32, window, columns).unsqueeze(0), None)

    def run():
        layer.weight.data = dense.clone()
        gpt = pruner(layer, case.get("bits"))
        gpt.H = collected.H.clone()
        return timed(lambda: fasterprune(gpt, case))

    return run


class Reached(Exception):
    pass


def blocks_of(model):
    """The model's blocks, the list of modules that is as long as the config says."""
    count = model.config.num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)


def block_inputs(model, windows):
    """The hidden states that reach the first block, and its other arguments."""
    hidden, others = [], {}

    def catch(_, positional, named):
        named = dict(named)
        hidden.append(positional[0] if positional else named.pop("hidden_states"))
        named.pop("past_key_values", None)
        others.update(named)
        raise Reached

    handle = blocks_of(model)[0].register_forward_pre_hook(catch, with_kwargs=True)
    for ids in windows:
        with contextlib.suppress(Reached):
            model(ids.unsqueeze(0).to(device), use_cache=False)
    handle.remove()
    return hidden, others


def output_of(block, hidden, others):
    output = block(hidden, **others)
    return output[0] if isinstance(output, tuple) else output


def forward(case):
    config = transformers.AutoConfig.for_model(**case["config"])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, case["dtype"])).to(device).eval()
    (hidden,), others = block_inputs(model, [torch.randint(config.vocab_size, (case["tokens"],))])
    block = blocks_of(model)[0]
    return lambda: timed(lambda: output_of(block, hidden, others))


def draw_windows(case):
    from safetensors.torch import load_file

    tokens = load_file(case["tokens"])["tokens"].long()
    random.seed(0)
    starts = [random.randint(0, len(tokens) - case["sequence"] - 1) for _ in range(case["samples"])]
    return [tokens[start : start + case["sequence"]] for start in starts]


def job(case):
    """Prunes a whole model as the reference's scripts do: block by block, all layers from the dense block's inputs."""
    model = transformers.AutoModelForCausalLM.from_pretrained(case["model"], dtype=getattr(torch, case["dtype"]))
    model.to(device).eval()
    windows = draw_windows(case)

    def run():
        total, passes, hessian, solve = (Stopwatch() for _ in range(4))
        with total:
            hidden, others = block_inputs(model, windows)
            for block in blocks_of(model):
                linears = [m for m in block.modules() if isinstance(m, nn.Linear)]
                pruners = {layer: pruner(layer) for layer in linears}

                def collect(layer, inputs, output):
                    with hessian:
                        pruners[layer].add_batch(inputs[0].data, output.data)

                hooks = [layer.register_forward_hook(collect) for layer in linears]
                with passes:
                    for h in hidden:
                        output_of(block, h, others)
                for hook in hooks:
                    hook.remove()
                with solve:
                    for gpt in pruners.values():
                        fasterprune(gpt, case)
                        gpt.free()
                with passes:
                    hidden = [output_of(block, h, others) for h in hidden]
        phases = {"forward": passes.seconds - hessian.seconds, "statistics": hessian.seconds, "solve": solve.seconds}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if case.get("out"):
            model.save_pretrained(case["out"])
        return {"seconds": total.seconds, "phases": phases, "peakRssBytes": peak}

    return run


prepare = {"linear": linear, "gram": gram, "solver": solver, "forward": forward, "job": job}

if __name__ == "__main__":
    current, run = None, None
    with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):  # the class prints as it goes
        for line in sys.stdin:
            if line != current:
                run = None  # frees the last case's memory
                case = json.loads(line)
                current, run = line, prepare[case["operation"]](case)
            print(json.dumps(run()), file=sys.__stdout__, flush=True)
