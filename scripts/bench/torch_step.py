#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The PyTorch CPU peer of `farskip bench step`: one training step of a DeepSeek-V2-shaped model in fp32.

    torch_step.py CONFIG.yaml [--steps N] [--warmup N] [--init DIR] [--tokens PREFIX] [--json]

Reads the `model` and `train` sections of the trainer's own configuration. Written for speed as far as plain
PyTorch goes: fused attention, tokens sorted by expert with one product per expert on contiguous rows, fused
AdamW, and a head that never holds all logits. What was tried and rejected stands in docs/results.md.

With --init (a hub-layout folder) and --tokens (a Megatron prefix, sample i = the S + 1 tokens from i S on) it
takes the same steps as the trainer does, so that the losses can be compared; --write-init and --write-tokens
make such inputs. Otherwise weights and tokens are random.

Letters: B batch, S sequence, T = B S tokens, H hidden, N heads, E experts, K top-k, R = T K routed rows,
I expert width, V vocabulary.
"""

import argparse
import json
import os
import resource
import statistics
import struct
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

COMPILE_BY_DEFAULT = False  # it saves memory, not time: the products dominate
HEAD_CHUNK = 1024  # tokens whose logits exist at one time


class Attention(nn.Module):
    """Multi-head latent attention without a query latent."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.nope, self.rope, self.value = (
            c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim)
        self.latent = c.kv_lora_rank
        width = self.nope + self.rope
        self.q_proj = nn.Linear(c.hidden_size, self.heads * width, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(c.hidden_size, self.latent + self.rope, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(self.latent, eps=1e-6)
        self.kv_b_proj = nn.Linear(self.latent, self.heads * (self.nope + self.value), bias=False)
        self.o_proj = nn.Linear(self.heads * self.value, c.hidden_size, bias=False)

    def forward(self, x_BSH, cos, sin):
        b, s, _ = x_BSH.shape
        q = self.q_proj(x_BSH).view(b, s, self.heads, -1)
        q_nope, q_rope = q.split([self.nope, self.rope], -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x_BSH).split([self.latent, self.rope], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(b, s, self.heads, -1)
        k_nope, v = kv.split([self.nope, self.value], -1)
        q_rope, k_rope = rotate(q_rope, cos, sin), rotate(k_rope[:, :, None], cos, sin)
        q = torch.cat([q_nope, q_rope], -1).transpose(1, 2)
        k = torch.cat([k_nope, k_rope.expand(-1, -1, self.heads, -1)], -1).transpose(1, 2)
        # The fused CPU kernel wants equal head sizes; zero columns cost less than the unfused path.
        v = F.pad(v, (0, self.nope + self.rope - self.value)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=(self.nope + self.rope) ** -0.5)
        return self.o_proj(out[..., :self.value].transpose(1, 2).reshape(b, s, -1))


def rotate(x_BSND, cos, sin):
    """Rotary embedding of adjacent pairs; cos and sin are [S, 1, D / 2]."""
    even, odd = x_BSND[..., 0::2], x_BSND[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def weighted_swiglu(gate_up, weight):
    return swiglu(gate_up) * weight


class Mlp(nn.Module):
    """SwiGLU; the activations are attributes so that compiled ones can take their place."""

    def __init__(self, hidden, width):
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * width, bias=False)
        self.down = nn.Linear(width, hidden, bias=False)
        self.swiglu, self.weighted_swiglu = swiglu, weighted_swiglu

    def forward(self, x, weight=None):
        gate_up = self.gate_up(x)
        return self.down(self.swiglu(gate_up) if weight is None else self.weighted_swiglu(gate_up, weight))


class Moe(nn.Module):
    """Softmax router over all experts, top k without renormalisation; no token is dropped."""

    def __init__(self, c):
        super().__init__()
        self.top_k, self.scale = c.num_experts_per_tok, c.routed_scaling_factor
        self.gate = nn.Linear(c.hidden_size, c.n_routed_experts, bias=False)
        self.experts = nn.ModuleList(
            Mlp(c.hidden_size, c.moe_intermediate_size) for _ in range(c.n_routed_experts))
        self.shared = Mlp(c.hidden_size, c.moe_intermediate_size * c.n_shared_experts)

    def forward(self, x_BSH):
        x_TH = x_BSH.view(-1, x_BSH.shape[-1])
        weight_TK, expert_TK = self.gate(x_TH).softmax(-1).topk(self.top_k, -1, sorted=False)
        order_R = expert_TK.flatten().argsort(stable=True)
        counts = torch.bincount(expert_TK.flatten(), minlength=len(self.experts)).tolist()
        token_R = order_R // self.top_k
        rows = x_TH.index_select(0, token_R).split(counts)
        weights = (weight_TK.flatten()[order_R] * self.scale)[:, None].split(counts)
        out_RH = torch.cat([expert(*inputs) for expert, *inputs in zip(self.experts, rows, weights)])
        return self.shared(x_TH).index_add(0, token_R, out_RH).view_as(x_BSH)


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.is_moe = index >= c.first_k_dense_replace
        self.mlp = Moe(c) if self.is_moe else Mlp(c.hidden_size, c.intermediate_size)

    def attend(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x, self.post_attention_layernorm(x)

    def forward(self, x, cos, sin):
        x, normed = self.attend(x, cos, sin)
        return x + self.mlp(normed)


class ChunkedHeadLoss(torch.autograd.Function):
    """Mean cross-entropy of x W^T, a chunk of tokens at a time; the gradients are made on the way, because
    the logits would otherwise have to be kept or computed twice."""

    @staticmethod
    def forward(ctx, x_TH, weight_VH, target_T):
        total = x_TH.new_zeros(())
        dx_TH, dweight_VH = torch.empty_like(x_TH), torch.zeros_like(weight_VH)
        for start in range(0, len(x_TH), HEAD_CHUNK):
            x, target = x_TH[start:start + HEAD_CHUNK], target_T[start:start + HEAD_CHUNK, None]
            log_probs = F.log_softmax(x @ weight_VH.T, -1)
            total -= log_probs.gather(1, target).sum()
            dlogits = log_probs.exp_()
            dlogits.scatter_add_(1, target, dlogits.new_full(target.shape, -1.0)).div_(len(x_TH))
            torch.mm(dlogits, weight_VH, out=dx_TH[start:start + HEAD_CHUNK])
            dweight_VH.addmm_(dlogits.T, x)
        ctx.save_for_backward(dx_TH, dweight_VH)
        return total / len(x_TH)

    @staticmethod
    def backward(ctx, upstream):
        dx_TH, dweight_VH = ctx.saved_tensors
        return dx_TH.mul_(upstream), dweight_VH.mul_(upstream), None


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, k) for k in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=c.initializer_range)

    def forward(self, tokens_BS, target_BS):
        c = self.config
        frequency = c.rope_theta ** -(torch.arange(0, c.qk_rope_head_dim, 2) / c.qk_rope_head_dim)
        angle = torch.arange(tokens_BS.shape[1])[:, None, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        x = self.embed_tokens(tokens_BS)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return ChunkedHeadLoss.apply(self.norm(x).flatten(0, 1), self.lm_head.weight, target_BS.flatten())


def compile_blocks(model):
    """Fuses the memory-bound work: norms, residuals, rotary embedding, activations. Routing stays eager,
    since the number of rows of an expert changes from step to step."""
    activations = [torch.compile(f, dynamic=True) for f in (swiglu, weighted_swiglu)]
    for layer in model.layers:
        layer.attend = torch.compile(layer.attend)
    for module in model.modules():
        if isinstance(module, Mlp):
            module.swiglu, module.weighted_swiglu = activations


def list_hub_names(model):
    """(hub name, view of the parameter) for each tensor of the hub layout."""
    for name, parameter in model.named_parameters():
        name = name if name.startswith("lm_head") else f"model.{name}"
        name = name.replace(".mlp.shared.", ".mlp.shared_experts.").replace(".down.", ".down_proj.")
        if ".gate_up." in name:
            gate, up = parameter.detach().chunk(2, 0)
            yield name.replace(".gate_up.", ".gate_proj."), gate
            yield name.replace(".gate_up.", ".up_proj."), up
        else:
            yield name, parameter.detach()


def load_init(model, folder):
    tensors = {}
    for shard in sorted(Path(folder).glob("model*.safetensors")):
        tensors |= load_file(shard)
    for name, view in list_hub_names(model):
        view.copy_(tensors.pop(name))
    if tensors:
        raise SystemExit(f"{folder}: tensors that the model does not have: {sorted(tensors)[:5]}")


def write_init(model, settings, folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    hub = {"model_type": settings["family"], "architectures": ["DeepseekV2ForCausalLM"], "torch_dtype": "float32"}
    hub |= {key: value for key, value in settings.items() if key != "family"}
    (Path(folder) / "config.json").write_text(json.dumps(hub, indent=1) + "\n")
    save_file({name: view.contiguous() for name, view in list_hub_names(model)},
              Path(folder) / "model.safetensors", metadata={"format": "pt"})


def write_tokens(prefix, tokens):
    """One document in the Megatron layout: PREFIX.bin (uint16) and PREFIX.idx."""
    tokens.astype(np.uint16).tofile(f"{prefix}.bin")
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1, 2)
    Path(f"{prefix}.idx").write_bytes(header + struct.pack("<iqqq", len(tokens), 0, 0, 1))


def read_tokens(prefix):
    dtype_code = Path(f"{prefix}.idx").read_bytes()[17]
    dtype = {8: np.uint16, 4: np.int32}[dtype_code]
    return np.fromfile(f"{prefix}.bin", dtype=dtype).astype(np.int64)


def make_optimizer(model, train):
    settings = train["optimizer"]
    parameters = list(model.parameters())
    groups = [{"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings["weight_decay"]},
              {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=train["learning_rate"]["peak"], betas=tuple(settings["betas"]),
                             eps=settings["eps"], fused=True)


def check_supported(document):
    model, train = document["model"], document["train"]
    wrong = []
    if model["family"] != "deepseek_v2" or model.get("q_lora_rank") is not None:
        wrong.append("model: only deepseek_v2 without q_lora_rank")
    if model.get("topk_method", "greedy") != "greedy" or model.get("rope_scaling"):
        wrong.append("model: only greedy routing and plain RoPE")
    if document.get("farskip", {}).get("mode", "off") not in ("off", False):  # YAML 1.1 reads off as false
        wrong.append("farskip.mode: only off")
    if train.get("aux_loss", 0.0) != 0.0 or train["learning_rate"]["schedule"] != "constant":
        wrong.append("train: only aux_loss 0 and a constant learning rate")
    if wrong:
        raise SystemExit("not in this benchmark: " + "; ".join(wrong))


def run_steps(model, train, stream, steps):
    """(losses, seconds) per step, gradient accumulation, clipping and update included."""
    optimizer, parameters = make_optimizer(model, train), list(model.parameters())
    batch, micro, s = train["global_batch"], train["micro_batch"], train["sequence_length"]
    losses, seconds = [], []
    for step in range(steps):
        starts = [(step * batch + row) * s for row in range(batch)]
        rows = torch.from_numpy(np.stack([stream[start:start + s + 1] for start in starts]))
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in rows.split(micro):
            loss = model(part[:, :-1], part[:, 1:]) * (len(part) / batch)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(parameters, train["optimizer"]["clip_grad_norm"], foreach=True)
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
        losses.append(total)
    return losses, seconds


def current_rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the timed ones")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=COMPILE_BY_DEFAULT)
    parser.add_argument("--init", help="hub-layout folder with the initial weights")
    parser.add_argument("--tokens", help="Megatron prefix; default: random tokens")
    parser.add_argument("--write-init", help="writes the initial weights to this folder")
    parser.add_argument("--write-tokens", help="writes the tokens that the steps need to this prefix")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a line to read")
    return parser.parse_args()



def main():
    arguments = parse_arguments()
    document = yaml.safe_load(arguments.config.read_text())
    check_supported(document)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(document.get("seed", 1))
    startup_rss = current_rss()

    train, steps = document["train"], arguments.warmup + arguments.steps
    model = Model(SimpleNamespace(**document["model"]))
    if arguments.init:
        load_init(model, arguments.init)
    if arguments.write_init:
        write_init(model, document["model"], arguments.write_init)
    count = steps * train["global_batch"] * train["sequence_length"] + 1
    if arguments.tokens:
        stream = read_tokens(arguments.tokens)
    else:
        stream = np.random.default_rng(document.get("seed", 1)).integers(0, model.config.vocab_size, count)
    if arguments.write_tokens:
        write_tokens(arguments.write_tokens, stream)
    if len(stream) < count:
        raise SystemExit(f"{arguments.tokens}: {len(stream)} tokens; {steps} steps need {count}")
    if arguments.compile:
        compile_blocks(model)

    losses, seconds = run_steps(model, train, stream, steps)
    median = statistics.median(seconds[arguments.warmup:])
    result = {
        "program": f"torch {torch.__version__}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": arguments.threads,
        "losses": losses,
        "step_seconds": median,
        "step_seconds_all": seconds,
        "tokens_per_second": train["global_batch"] * train["sequence_length"] / median,
        "startup_memory_bytes": startup_rss,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - startup_rss,
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"{result['program']}: {median:.3f} s a step, {result['tokens_per_second']:.0f} tokens/s, "
              f"{result['peak_memory_bytes'] / 1e9:.2f} GB above start-up, loss {losses[-1]:.4f}")




if __name__ == "__main__":
    main()
