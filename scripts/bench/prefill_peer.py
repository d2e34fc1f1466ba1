#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time to the first token of a Mixtral-shaped model over the GPUs of a host, in PyTorch as a user would write it: heads
and whole experts dealt out over the ranks, an all-reduce behind attention and one behind the experts, compiled blocks.

    torchrun --nproc-per-node 2 scripts/bench/prefill_peer.py configs/models/mixtral_8x7b.yaml

The counterpart of `farskip bench prefill CONFIG parallel.tensor=2 parallel.expert=2`. Weights are random, in bf16. Prints a
JSON row for each length and number of texts.
"""

import argparse
import json
import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml


def rms_norm(x, weight, eps):
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Layer:
    def __init__(self, c, ranks, rank):
        def matrix(*shape):
            return torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)

        self.c, h = c, c["hidden_size"]
        self.heads, self.kv = c["num_attention_heads"] // ranks, c["num_key_value_heads"] // ranks
        self.size = c.get("head_dim") or h // c["num_attention_heads"]
        self.q = matrix(self.heads * self.size, h)
        self.k, self.v = matrix(self.kv * self.size, h), matrix(self.kv * self.size, h)
        self.o = matrix(h, self.heads * self.size)
        self.norm1 = torch.ones(h, dtype=torch.bfloat16, device="cuda")
        self.norm2 = self.norm1.clone()
        self.router = matrix(c["num_local_experts"], h)
        self.own = c["num_local_experts"] // ranks
        self.first = self.own * rank
        self.gate_up = matrix(self.own, h, 2 * c["intermediate_size"])
        self.down = matrix(self.own, c["intermediate_size"], h)

    def attention(self, x, cos, sin):
        texts, length, _ = x.shape
        y = rms_norm(x, self.norm1, self.c["rms_norm_eps"])
        split = lambda z, heads: z.view(texts, length, heads, self.size).transpose(1, 2)  # noqa: E731
        q, k, v = split(F.linear(y, self.q), self.heads), split(F.linear(y, self.k), self.kv), split(F.linear(y, self.v), self.kv)
        z = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True)
        return F.linear(z.transpose(1, 2).reshape(texts, length, -1), self.o)

    def experts(self, x):
        top = self.c["num_experts_per_tok"]
        y = rms_norm(x, self.norm2, self.c["rms_norm_eps"]).view(-1, x.shape[-1])
        weights, chosen = torch.softmax(F.linear(y, self.router).float(), -1).topk(top)
        weights = weights / weights.sum(-1, keepdim=True)
        local = chosen.flatten() - self.first
        here = (local >= 0) & (local < self.own)
        order = torch.where(here, local, self.own).argsort(stable=True)  # rows of other ranks last
        ends = torch.bincount(torch.where(here, local, self.own), minlength=self.own + 1)[: self.own].cumsum(0).to(torch.int32)
        token = order // top
        gate, up = torch._grouped_mm(y[token], self.gate_up, offs=ends).chunk(2, dim=-1)
        out = torch._grouped_mm(F.silu(gate) * up, self.down, offs=ends)
        scale = weights.flatten()[order].unsqueeze(-1).to(out.dtype)
        out = torch.where(here[order].unsqueeze(-1), out * scale, 0)
        return torch.zeros_like(y).index_add(0, token, out).view_as(x)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--lengths", default="512,1024,2048")
    parser.add_argument("--requests", default="1,16")
    parser.add_argument("--repetitions", type=int, default=10)
    options = parser.parse_args()
    rank = int(os.environ["RANK"])
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    ranks = dist.get_world_size()
    with open(options.config, encoding="utf-8") as file:
        c = yaml.safe_load(file)["model"]
    c.setdefault("rms_norm_eps", 1e-5)
    torch.manual_seed(1)
    table = torch.empty(c["vocab_size"], c["hidden_size"], dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)
    head = torch.empty_like(table).normal_(0, 0.02)
    layers = [Layer(c, ranks, rank) for _ in range(c["num_hidden_layers"])]
    attention, experts = torch.compile(Layer.attention), torch.compile(Layer.experts)
    size = layers[0].size

    @torch.inference_mode()
    def prefill(tokens, cos, sin):
        x = F.embedding(tokens, table)
        for layer in layers:
            a = attention(layer, x, cos, sin)
            dist.all_reduce(a)
            x = x + a
            r = experts(layer, x)
            dist.all_reduce(r)
            x = x + r
        return F.linear(x[:, -1], head).argmax(-1)

    for length in map(int, options.lengths.split(",")):
        angles = torch.outer(torch.arange(length), 1e6 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
        cos, sin = angles.cos().to("cuda", torch.bfloat16), angles.sin().to("cuda", torch.bfloat16)
        for requests in map(int, options.requests.split(",")):
            tokens = torch.randint(c["vocab_size"], (requests, length), generator=torch.Generator().manual_seed(2))
            seconds = []
            for i in range(options.repetitions + 4):
                dist.barrier()
                torch.cuda.synchronize()
                begin = time.perf_counter()
                prefill(tokens.cuda(), cos, sin).cpu()
                if i >= 4:
                    seconds.append(time.perf_counter() - begin)
            if rank == 0:
                middle = statistics.median(seconds)
                print(json.dumps({"length": length, "requests": requests, "wiring": "off", "ranks": ranks, "seconds": middle,
                                  "tokens_per_second": requests * length / middle}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
