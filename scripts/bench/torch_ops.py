#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The PyTorch peer of `farskip bench ops`: grouped products and attention at the sizes of a configuration.

    torch_ops.py CONFIG.yaml [--rounds N] [--ours FILE]

Prints one JSON object a line; with --ours, the file that `farskip bench ops --json` wrote, a table of what both have.
Timed alike: CUDA events around four runs, one run before them so that no launch is timed, the median of many rounds;
values are random normal, in bf16.
"""

import argparse
import json
import statistics

import torch
import torch.nn.functional as F
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel

REPEATS, WARMUP = 4, 2


def seconds_of(run, rounds):
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for number in range(-WARMUP, rounds):
        run()
        begin.record()
        for _ in range(REPEATS):
            run()
        end.record()
        end.synchronize()
        if number >= 0:
            times.append(begin.elapsed_time(end) * 1e-3 / REPEATS)
    return statistics.median(times)


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def expert_ends(rows, experts, skewed):
    """As spread_rows in src/cli/op_cases.cpp: even, or by Zipf's law."""
    shares = [1 / (e + 1) if skewed else 1.0 for e in range(experts)]
    total, so_far, ends = sum(shares), 0.0, []
    for share in shares:
        so_far += share
        ends.append(round(rows * so_far / total))
    return torch.tensor(ends, device="cuda", dtype=torch.int32)


def bf16(*shape):
    """As `farskip bench ops --json` writes the type of an input."""
    return f"bf16[{', '.join(str(size) for size in shape)}]"


class Bench:
    def __init__(self, model, train, rounds):
        self.model, self.rounds = model, rounds
        self.length, self.batch = train["sequence_length"], train["micro_batch"]
        self.results = []

    def measure(self, name, flops, run, peer=None):
        """peer: op, phase, types of the first inputs, and end of the name of what it stands beside in farskip."""
        seconds = seconds_of(run, self.rounds)
        print(json.dumps({"name": name, "seconds": seconds, "tflops": flops / seconds * 1e-12}), flush=True)
        if peer:
            self.results.append((*peer, seconds))

    def square(self):
        a, b = random(8192, 8192), random(8192, 8192)
        self.measure("square product", 2 * 8192**3, lambda: a @ b.T)

    def experts(self, skewed):
        m = self.model
        rows, experts = self.batch * self.length * m["num_experts_per_tok"], m["n_routed_experts"]
        way = "skewed" if skewed else "balanced"
        ends = expert_ends(rows, experts, skewed)
        hidden, width = m["hidden_size"], m["moe_intermediate_size"]
        for part, n, k in (("up", 2 * width, hidden), ("down", hidden, width)):
            name = f"experts {part}, {way}"
            w, x, y = random(experts, n, k), random(rows, k), random(rows, n)
            flops = 2 * rows * n * k
            self.measure(name, flops, lambda: torch._grouped_mm(x, w.transpose(-2, -1), offs=ends),
                         ("grouped_matmul", "forward", [bf16(*x.shape), bf16(*w.shape)], way))
            self.measure(f"{name}, input gradient", flops, lambda: torch._grouped_mm(y, w, offs=ends),
                         ("grouped_matmul", "backward", [bf16(*y.shape), bf16(*w.shape)], way))
            self.measure(f"{name}, weight gradient", flops, lambda: torch._grouped_mm(y.T, x, offs=ends),
                         ("grouped_matmul_wgrad", "backward", [bf16(*y.shape), bf16(*x.shape)], way))

    def attention(self):
        m = self.model
        heads, d, dv = m["num_attention_heads"], m["qk_nope_head_dim"] + m["qk_rope_head_dim"], m["v_head_dim"]
        q, k, v = (random(self.batch, self.length, heads, size).transpose(1, 2).requires_grad_() for size in (d, d, dv))
        flops = self.batch * self.length * heads * (self.length + 1) * (d + dv)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
            tokens = self.batch * self.length
            self.measure("attention", flops, run, ("attention", "forward", [bf16(tokens, heads * d)], ""))
            for deterministic in (False, True):
                torch.use_deterministic_algorithms(deterministic, warn_only=True)
                out = run()
                dout = torch.randn_like(out)
                self.measure("attention, gradient" + (" (deterministic)" if deterministic else ""), 2.5 * flops,
                             lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True),
                             None if deterministic else ("attention_grad", "backward", [bf16(tokens, heads * dv)], ""))
        torch.use_deterministic_algorithms(False)

    def head(self):
        """The logits of 2048 tokens at a time, in bf16, each block's gradients at once."""
        m = self.model
        tokens, block = self.batch * self.length, 2048
        h, w = random(tokens, m["hidden_size"]), random(m["vocab_size"], m["hidden_size"])
        targets = torch.randint(m["vocab_size"], (tokens,), device="cuda")
        dw = torch.zeros(w.shape, device="cuda")

        @torch.compile
        def gradient(logits, target):
            logits = logits.float()
            loss = F.cross_entropy(logits, target, reduction="sum")
            gradient = logits.softmax(-1) - F.one_hot(target, logits.shape[-1])
            return loss, gradient.bfloat16()

        def run():
            for t in range(0, tokens, block):
                _, dlogits = gradient(h[t:t + block] @ w.T, targets[t:t + block])
                dh = dlogits @ w  # noqa: F841
                dw.add_(dlogits.T @ h[t:t + block])

        self.measure("head and cross-entropy, with gradient", 6 * tokens * w.numel(), run,
                     ("linear_cross_entropy_grad", "backward", ["f32[1]", bf16(*h.shape), bf16(*w.shape)], ""))


def print_table(ours, theirs):
    print("\n| op | farskip | torch | torch / farskip |\n|---|---|---|---|")
    for o in map(json.loads, ours):
        for op, phase, inputs, way, peer in theirs:
            if o.get("op") == op and o["scope"].endswith(phase) and o["inputs"][:len(inputs)] == inputs \
                    and o["name"].endswith(way):
                print(f"| {o['name']} | {1e3 * o['seconds']:.3f} ms | {1e3 * peer:.3f} ms | {peer / o['seconds']:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--ours", type=argparse.FileType(), help="output of farskip bench ops --json")
    arguments = parser.parse_args()
    with open(arguments.config) as file:
        config = yaml.safe_load(file)
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__,
                      "cudnn": torch.backends.cudnn.version()}))
    bench = Bench(config["model"], config["train"], arguments.rounds)
    bench.square()
    bench.experts(skewed=False)
    bench.experts(skewed=True)
    bench.attention()
    bench.head()
    if arguments.ours:
        print_table(arguments.ours, bench.results)


if __name__ == "__main__":
    main()
