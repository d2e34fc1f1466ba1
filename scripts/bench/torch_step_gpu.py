#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The PyTorch GPU peer of `farskip bench step`: one training step of a DeepSeek-V2-shaped model, bf16 over fp32.

    torch_step_gpu.py CONFIG.yaml [key=value ...] [--steps N] [--warmup N] [--eager] [--optimizer compiled]
                      [--head-chunk TOKENS] [--json]

Reads the trainer's own configuration; weights and tokens are random. Everything between the attention calls is
compiled, attention is cuDNN's, the experts are torch._grouped_mm on rows sorted by expert with offsets that stay on
the device, so that one rank never waits for the GPU inside a step.

Started by torchrun or mpirun on N ranks, the experts are spread over all of them (all-to-all, whose counts the host
must read) and everything else is data parallel: gradients are reduced while the backward pass runs. As in the
trainer, micro-batch p of a step belongs to rank p mod N.

Steps on a GPU are timed between events, without a wait after each. With --device cpu it is a test of itself.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_model_gpu import Model, compile_pieces, initialise, is_expert
from torch_step import check_supported

SMALL_GRADIENT = 1 << 20  # elements; smaller ones are reduced together, after the backward pass


class Gradients:
    """Sums of the replicated parameters' gradients over all ranks, and the norm of all."""

    def __init__(self, model, ranks):
        named = list(model.named_parameters())
        self.ranks = ranks
        self.own = [p for name, p in named if is_expert(name)] if ranks > 1 else []
        self.replicated = [p for name, p in named if not (ranks > 1 and is_expert(name))]
        self.active, self.pending = False, []
        if ranks > 1:
            self.group = dist.new_group()  # apart from the all-to-all, which must not queue behind these
            for p in self.replicated:
                if p.numel() >= SMALL_GRADIENT:
                    p.register_post_accumulate_grad_hook(self.reduce_now)

    def reduce_now(self, parameter):
        if self.active:
            self.pending.append(dist.all_reduce(parameter.grad, group=self.group, async_op=True))

    def finish(self):
        if self.ranks == 1:
            return
        small = [p.grad for p in self.replicated if p.numel() < SMALL_GRADIENT]
        flat = torch.cat([g.flatten() for g in small])
        dist.all_reduce(flat, group=self.group)
        for gradient, part in zip(small, flat.split([g.numel() for g in small])):
            gradient.copy_(part.view_as(gradient))
        for work in self.pending:
            work.wait()
        self.pending.clear()

    def clip_scale(self, limit):
        """min(1, limit / norm), on the device."""
        squares = [torch.stack(torch._foreach_norm([p.grad for p in part], 2, dtype=torch.float32)).square().sum()
                   for part in (self.replicated, self.own) if part]
        if self.own:
            dist.all_reduce(squares[1], group=self.group)
        return (limit / (sum(squares).sqrt() + 1e-6)).clamp(max=1.0)

    def all(self):
        return [p.grad for p in self.replicated + self.own]


class FusedAdamW:
    """torch.optim's fused kernel on fp32 parameters and gradients, after foreach clipping."""

    def __init__(self, model, train, gradients):
        settings, parameters = train["optimizer"], list(model.parameters())
        groups = [{"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings["weight_decay"]},
                  {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]
        self.limit, self.gradients = settings["clip_grad_norm"], gradients
        self.optimizer = torch.optim.AdamW(groups, lr=train["learning_rate"]["peak"], fused=True,
                                           betas=tuple(settings["betas"]), eps=settings["eps"])

    def step(self):
        torch._foreach_mul_(self.gradients.all(), self.gradients.clip_scale(self.limit))
        self.optimizer.step()


class CompiledAdamW:
    """The model's parameters become bf16 copies of fp32 ones kept here; a single compiled pass clips, updates and
    makes the next copy. Gradients stay in bf16, as the products give them, so they cannot be accumulated."""

    def __init__(self, model, train, gradients):
        settings, rate = train["optimizer"], train["learning_rate"]["peak"]
        self.limit, self.gradients = settings["clip_grad_norm"], gradients
        self.states, (beta1, beta2) = [], settings["betas"]
        for p in model.parameters():
            master = p.detach().flatten()
            p.data = p.data.to(model.dtype)
            decay = settings["weight_decay"] if p.dim() >= 2 else 0.0
            self.states.append((p, master, torch.zeros_like(master), torch.zeros_like(master), 1 - rate * decay))
        self.count = torch.zeros((), device=self.states[0][1].device)

        def update(master, m, v, gradient, copy, scale, count, keep):
            g = gradient.float() * scale
            m_new = beta1 * m + (1 - beta1) * g
            v_new = beta2 * v + (1 - beta2) * g * g
            root = (v_new / (1 - beta2**count)).sqrt() + settings["eps"]
            new = master * keep - rate * (m_new / (1 - beta1**count)) / root
            for target, value in ((m, m_new), (v, v_new), (master, new), (copy, new)):
                target.copy_(value)

        self.update = torch.compile(update, dynamic=True)
        self.keeps = {keep: torch.tensor(keep, device=self.count.device) for *_, keep in self.states}

    @torch.no_grad()
    def step(self):
        scale = self.gradients.clip_scale(self.limit)
        self.count += 1
        for p, master, m, v, keep in self.states:
            self.update(master, m, v, p.grad.flatten(), p.detach().view(-1), scale, self.count, self.keeps[keep])


OPTIMIZERS = {"fused": FusedAdamW, "compiled": CompiledAdamW}


class Place:
    """Rank, number of ranks and device, from the variables of torchrun or Open MPI."""

    def __init__(self, device):
        def read(torch_name, mpi_name, default):
            return int(os.environ.get(torch_name, os.environ.get(mpi_name, default)))

        self.rank = read("RANK", "OMPI_COMM_WORLD_RANK", 0)
        self.ranks = read("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", 1)
        local = read("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", 0)
        self.on_gpu = device == "cuda"
        self.device = torch.device("cuda", local) if self.on_gpu else torch.device("cpu")
        if self.on_gpu:
            torch.cuda.set_device(self.device)
        if self.ranks > 1:
            job = os.environ.get("PMIX_NAMESPACE", str(os.getppid()))
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            os.environ.setdefault("MASTER_PORT", str(20000 + zlib.crc32(job.encode()) % 12000))
            dist.init_process_group("nccl" if self.on_gpu else "gloo", rank=self.rank, world_size=self.ranks,
                                    device_id=self.device if self.on_gpu else None)

    def say(self, text):
        if self.rank == 0:
            print(text, file=sys.stderr, flush=True)


class Trainer:
    def __init__(self, document, options, place):
        self.train, self.place, self.options = document["train"], place, options
        self.seed = document.get("seed", 1)
        self.vocabulary = document["model"]["vocab_size"]
        self.parts = self.train["global_batch"] // self.train["micro_batch"]
        if self.parts % place.ranks != 0:
            raise SystemExit(f"train: {self.parts} micro-batches a step (global_batch / micro_batch) cannot be "
                             f"shared by {place.ranks} ranks")
        if options.optimizer == "compiled" and self.parts > place.ranks:
            raise SystemExit("--optimizer compiled: only one micro-batch a rank, since gradients stay in bf16")
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[document.get("precision", "fp32")]
        with torch.device(place.device):
            self.model = Model(SimpleNamespace(**document["model"]), place.ranks, dtype, options.head_chunk)
        initialise(self.model, self.seed, place.rank, place.ranks)
        self.gradients = Gradients(self.model, place.ranks)
        self.optimizer = OPTIMIZERS[options.optimizer](self.model, self.train, self.gradients)
        self.number = 0

    def batches(self):
        """(B, S + 1) random tokens for each of this rank's micro-batches, the same whatever the layout."""
        batch, micro, length = (self.train[key] for key in ("global_batch", "micro_batch", "sequence_length"))
        step = 0 if self.options.repeat_batch else self.number
        rows = [torch.randint(self.vocabulary, (length + 1,),
                              generator=torch.Generator().manual_seed(self.seed + step * batch + row))
                for row in range(batch)]
        mine = torch.stack(rows).split(micro)[self.place.rank::self.place.ranks]
        return [part.pin_memory() if self.place.on_gpu else part for part in mine]

    def step(self, batches):
        """The loss of this rank's share, on the device."""
        total = torch.zeros((), device=self.place.device)
        for number, rows in enumerate(batches):
            rows = rows.to(self.place.device, non_blocking=True)
            self.gradients.active = number + 1 == len(batches)
            loss = self.model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) / self.parts
            loss.backward()
            total += loss.detach()
        self.gradients.finish()
        self.optimizer.step()
        for parameter in self.model.parameters():
            parameter.grad = None
        self.number += 1
        return total

    def run(self, steps):
        """(losses, seconds) of the steps."""
        marks, losses = [self.mark()], []
        for _ in range(steps):
            losses.append(self.step(self.batches()))
            marks.append(self.mark())
        losses = torch.stack(losses)
        if self.place.ranks > 1:
            dist.all_reduce(losses)
        if not self.place.on_gpu:
            return losses.tolist(), [b - a for a, b in zip(marks, marks[1:])]
        torch.cuda.synchronize()
        return losses.tolist(), [a.elapsed_time(b) * 1e-3 for a, b in zip(marks, marks[1:])]

    def mark(self):
        if not self.place.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def start(document, options, place):
    """A trainer that has taken its first step; what does not compile is left out, and said."""
    for level in ("all", "all but the grouped products", "nothing") if options.compile else ("nothing",):
        trainer = Trainer(document, options, place)
        if level != "nothing":
            compile_pieces(trainer.model, options.compile_mode, experts=level == "all" and place.on_gpu)
        begin = time.perf_counter()
        try:
            losses, _ = trainer.run(1)
        except Exception as error:
            # Ranks that fail apart would wait for each other.
            if level == "nothing" or place.ranks > 1 or isinstance(error, torch.OutOfMemoryError):
                raise
            failure = f"{type(error).__name__}: {str(error)[:2000]}"
        else:
            place.say(f"compiled: {level}; first step {time.perf_counter() - begin:.1f} s")
            return trainer, losses, level
        place.say(f"compiling {level} failed, trying less. {failure}")
        del trainer
        torch._dynamo.reset()
        if place.on_gpu:
            torch.cuda.empty_cache()


def attention_backend(model, place):
    """cuDNN's attention where it takes these sizes, else what PyTorch finds."""
    if not place.on_gpu:
        return contextlib.nullcontext(), "default"
    width = model["qk_nope_head_dim"] + model["qk_rope_head_dim"]
    q, v = (torch.zeros(1, 1, 128, size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for size in (width, model["v_head_dim"]))
    try:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            F.scaled_dot_product_attention(q, q, v, is_causal=True).sum().backward()
        return sdpa_kernel(SDPBackend.CUDNN_ATTENTION), "cudnn"
    except RuntimeError as error:
        place.say(f"cuDNN attention is refused ({error}); PyTorch chooses")
        return contextlib.nullcontext(), "default"


def flops_per_token(trainer):
    """6 x (active parameters without embedding + causal attention)."""
    c, ranks = trainer.model.config, trainer.place.ranks
    active = 0.0
    for name, p in trainer.model.named_parameters():
        share = ranks * c.num_experts_per_tok / c.n_routed_experts if is_expert(name) else 1.0
        active += p.numel() * share if p.dim() >= 2 and name != "embedding" else 0.0
    width = c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim
    return 6 * active + 3 * c.num_hidden_layers * c.num_attention_heads * width * trainer.train["sequence_length"]


def quantile(values, share):
    """The smallest value that a share of all values does not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def memory_report(place):
    if not place.on_gpu:
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(), "device_used_bytes": total - free}


def measure(document, options, place):
    backend, attention = attention_backend(document["model"], place)
    with backend:
        trainer, losses, compiled = start(document, options, place)
        losses += trainer.run(max(options.warmup - 1, 0))[0] if options.warmup > 1 else []
        if place.on_gpu:
            torch.cuda.empty_cache()  # what compiling and the first step needed does not count
            torch.cuda.reset_peak_memory_stats()
        more, seconds = trainer.run(options.steps)
    train, median = trainer.train, quantile(seconds, 0.5)
    tokens = train["global_batch"] * train["sequence_length"]
    return {
        "program": f"torch {torch.__version__}",
        "device": torch.cuda.get_device_name() if place.on_gpu else "cpu",
        "ranks": place.ranks, "compiled": compiled, "compile_mode": options.compile_mode, "attention": attention,
        "optimizer": options.optimizer, "head_chunk": options.head_chunk,
        "step_seconds": median, "step_seconds_p99": quantile(seconds, 0.99), "step_seconds_all": seconds,
        "tokens_per_second": tokens / median,
        "model_tflops": flops_per_token(trainer) * tokens / median * 1e-12,
        **memory_report(place),
        "losses": losses + more,
    }


def read_value(text):
    value = yaml.safe_load(text)
    with contextlib.suppress(TypeError, ValueError):
        return float(value) if isinstance(value, str) else value  # 1e-3 is text in YAML 1.1
    return value


def read_document(options):
    document = yaml.safe_load(options.config.read_text())
    for override in options.overrides:
        path, equals, value = override.partition("=")
        if not equals:
            raise SystemExit(f"{override}: an override is key.path=value")
        *sections, key = path.split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = read_value(value)
    check_supported(document)
    return document


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the timed ones")
    parser.add_argument("--eager", dest="compile", action="store_false", help="compile nothing")
    parser.add_argument("--compile", action="store_true", default=True, help="compile (the default)")
    parser.add_argument("--compile-mode", choices=("default", "max-autotune-no-cudagraphs"), default="default")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="fused")
    parser.add_argument("--head-chunk", type=int,
                        help="tokens whose logits exist at one time; 0: all (default: 0 compiled, 2048 eager)")
    parser.add_argument("--repeat-batch", action="store_true", help="the same tokens in every step")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines to read")
    options = parser.parse_intermixed_args()
    if options.head_chunk is None:
        options.head_chunk = 0 if options.compile else 2048
    return options


def main():
    options = parse_arguments()
    document = read_document(options)
    torch.set_float32_matmul_precision("high")  # of fp32 products there is the router's alone
    place = Place(options.device)
    result = measure(document, options, place)
    if place.rank == 0 and options.json:
        print(json.dumps(result))
    elif place.rank == 0:
        memory = "".join(f", {key.removesuffix('_bytes').replace('_', ' ')} {value / 1e9:.1f} GB"
                         for key, value in result.items() if key.endswith("_bytes"))
        print(f"{result['program']}, {result['device']}, {place.ranks} ranks, compiled: {result['compiled']}, "
              f"attention {result['attention']}, optimizer {result['optimizer']}\n"
              f"step {1e3 * result['step_seconds']:.1f} ms (median of {options.steps}; p99 "
              f"{1e3 * result['step_seconds_p99']:.1f}), {result['tokens_per_second']:.0f} tokens/s, "
              f"{result['model_tflops']:.1f} model TFLOP/s{memory}\n"
              f"losses {' '.join(f'{loss:.4f}' for loss in result['losses'][:8])}")
    if place.ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
