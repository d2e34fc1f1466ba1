#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reference values from an independent implementation (PyTorch and transformers, CPU, fp32).

The FarSkip wirings are written here over the library's own attention, norm, router and expert modules,
straight from the equations (docs/architecture.md); mode "off" must equal the library's own forward.

    make_reference.py make VARIANT DIR      a tiny random model, its tokens and every reference value
    make_reference.py complete DIR [--out]  adds the values that DIR lacks (needs config, model, tokens)
    make_reference.py check DIR             recomputes what DIR holds and prints the largest differences

A folder holds config.json and model.safetensors (hub layout), reference.safetensors (`tokens` [B, S],
`logits.MODE` [B, S, V]), grads.MODE.safetensors (gradients of the mean next-token cross-entropy under the
library's names: experts packed as gate_up_proj [E, 2I, H], gate rows first, and down_proj [E, H, I]),
reference.json (losses, norms) and, for some, tokens.bin/.idx with AdamW loss curves in reference.json.
"""

import argparse
import itertools
import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import instella

GRADIENT_MODES = ("off", "full")
CURVE_MODES = ("off", "full")
CURVE_RULES = ("adamw", "muon")
CURVE_STEPS, CURVE_BATCH, CURVE_SEQUENCE = 20, 4, 32

COMMON = dict(
    vocab_size=160, hidden_size=32, intermediate_size=48, num_attention_heads=4, max_position_embeddings=256,
    rms_norm_eps=1e-6, tie_word_embeddings=False, attention_bias=False, torch_dtype="float32",
)
DEEPSEEK = dict(
    COMMON, model_type="deepseek_v2", moe_intermediate_size=16, num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=16,
    qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, first_k_dense_replace=1, n_routed_experts=8,
    norm_topk_prob=False, bos_token_id=1, eos_token_id=2,
)
QWEN = dict(
    COMMON, model_type="qwen3_moe", moe_intermediate_size=16, mlp_only_layers=[], bos_token_id=None,
    eos_token_id=None,
)
VARIANTS = {
    "deepseek_v2": dict(
        DEEPSEEK, num_hidden_layers=4, n_shared_experts=2, num_experts_per_tok=3, routed_scaling_factor=1.0,
        topk_method="greedy", n_group=None, topk_group=None,
        rope_parameters=dict(rope_type="default", rope_theta=1e4),
    ),
    "deepseek_v2_yarn": dict(
        DEEPSEEK, num_hidden_layers=3, n_shared_experts=1, num_experts_per_tok=2, routed_scaling_factor=4.0,
        topk_method="group_limited_greedy", n_group=4, topk_group=2, max_position_embeddings=128,
        rope_parameters=dict(
            rope_type="yarn", rope_theta=1e4, factor=4.0, mscale=0.707, mscale_all_dim=0.707, beta_fast=32,
            beta_slow=1, original_max_position_embeddings=32,
        ),
    ),
    "qwen3_moe": dict(
        QWEN, num_hidden_layers=4, num_key_value_heads=2, head_dim=24, num_experts=8, num_experts_per_tok=2,
        norm_topk_prob=True, decoder_sparse_step=1, rope_parameters=dict(rope_type="default", rope_theta=1e6),
    ),
    "qwen3_moe_tied": dict(
        QWEN, num_hidden_layers=3, num_key_value_heads=1, head_dim=16, num_experts=6, num_experts_per_tok=2,
        norm_topk_prob=False, decoder_sparse_step=2, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=1e4),
    ),
    "llama": dict(
        COMMON, model_type="llama", num_hidden_layers=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
        mlp_bias=False, rope_parameters=dict(rope_type="default", rope_theta=1e5),
    ),
    "llama_tied": dict(
        COMMON, model_type="llama", num_hidden_layers=3, num_key_value_heads=1, head_dim=16, bos_token_id=1,
        eos_token_id=[2, 3], mlp_bias=False, tie_word_embeddings=True,
        rope_parameters=dict(
            rope_type="llama3", rope_theta=1e4, factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0,
            original_max_position_embeddings=32,
        ),
    ),
    "qwen3": dict(
        COMMON, model_type="qwen3", num_hidden_layers=3, num_key_value_heads=2, head_dim=24,
        bos_token_id=None, eos_token_id=2, rope_parameters=dict(rope_type="linear", rope_theta=1e6, factor=2.0),
    ),
    "llama_biases": dict(
        COMMON, model_type="llama", num_hidden_layers=3, num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
        mlp_bias=False, attention_bias=True, rope_parameters=dict(rope_type="default", rope_theta=1e5),
    ),
    "llama_mlp_biases": dict(
        COMMON, model_type="llama", num_hidden_layers=3, num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
        mlp_bias=True, rope_parameters=dict(rope_type="default", rope_theta=1e5),
    ),
    "deepseek_v2_biases": dict(
        DEEPSEEK, num_hidden_layers=3, n_shared_experts=2, num_experts_per_tok=2, routed_scaling_factor=1.0,
        topk_method="greedy", n_group=None, topk_group=None, attention_bias=True, mlp_bias=True,
        rope_parameters=dict(rope_type="default", rope_theta=1e4),
    ),
    "deepseek_v3_biases": dict(
        DEEPSEEK, model_type="deepseek_v3", num_hidden_layers=3, q_lora_rank=12, n_shared_experts=1,
        num_experts_per_tok=2, norm_topk_prob=True, n_group=1, topk_group=1, routed_scaling_factor=1.5,
        num_nextn_predict_layers=0, attention_bias=True, rope_interleave=True, rope_parameters=dict(rope_type="default", rope_theta=1e4),
    ),
    "instella_moe": dict(
        COMMON, model_type="deepseek_v3", architectures=[instella.ARCHITECTURE], num_hidden_layers=4,
        num_key_value_heads=4, q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8,
        v_head_dim=16, first_k_dense_replace=1, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3,
        moe_intermediate_size=16, norm_topk_prob=True, scoring_func="sigmoid", topk_method="noaux_tc", n_group=1,
        topk_group=1, routed_scaling_factor=2.5, bos_token_id=0, eos_token_id=1, farskip=True,
        gated_attention=True, qk_layernorm=True, rope_interleave=True,
        rope_parameters=dict(
            rope_type="yarn", rope_theta=1e4, factor=40.0, mscale=1.0, mscale_all_dim=1.0, beta_fast=32,
            beta_slow=1, original_max_position_embeddings=32,
        ),
    ),
}
WITH_CURVES = ("deepseek_v2", "qwen3_moe")


def parse_mode(mode, num_layers):
    """Per layer (attention reads the partial stream, MLP reads the stream before this layer's attention)."""
    name, *bounds = mode.split("_")
    switches = {"off": (False, False), "full": (True, True), "attention": (True, False), "mlp": (False, True)}
    first, last = (int(bounds[0]), int(bounds[1])) if bounds else (0, num_layers - 1)
    return [switches[name] if first <= k <= last else (False, False) for k in range(num_layers)]


def list_modes(num_layers):
    return ["off", "full", "attention", "mlp", "full_0_1", f"full_2_{num_layers - 1}"]


def split_mlp(mlp, x_BSH, is_dense_model):
    """(always-present part, routed part) of a dense or sparse MLP; a missing part is None. In a model without
    experts the MLPs stand in their place."""
    if not hasattr(mlp, "experts"):
        return (None, mlp(x_BSH)) if is_dense_model else (mlp(x_BSH), None)
    x_TH = x_BSH.reshape(-1, x_BSH.shape[-1])
    _, weights_TK, experts_TK = mlp.gate(x_TH)
    routed = mlp.experts(x_TH, experts_TK, weights_TK).view_as(x_BSH)
    shared = mlp.shared_experts(x_BSH) if hasattr(mlp, "shared_experts") else None
    return shared, routed


def wired_forward(model, tokens_BS, mode):
    """Logits [B, S, V]. Two streams run through the layers: `full`, and `part`, which lacks the routed
    output of the layer before. Order of addition: ((full + attention) + shared) + routed."""
    body = model.model
    sequence = tokens_BS.shape[1]
    positions = torch.arange(sequence)[None]
    mask = torch.full((sequence, sequence), torch.finfo(torch.float32).min).triu(1)[None, None]
    full = body.embed_tokens(tokens_BS)
    part = full
    rotary = body.rotary_emb(full, position_ids=positions)
    is_dense_model = not any(hasattr(layer.mlp, "experts") for layer in body.layers)
    for layer, (partial_attention, outdated_mlp) in zip(body.layers, parse_mode(mode, len(body.layers))):
        normed = layer.input_layernorm(part if partial_attention else full)
        attention = layer.self_attn(hidden_states=normed, attention_mask=mask, position_embeddings=rotary)[0]
        after_attention = full + attention
        shared, routed = split_mlp(
            layer.mlp, layer.post_attention_layernorm(full if outdated_mlp else after_attention),
            is_dense_model)
        part = after_attention if shared is None else after_attention + shared
        full = part if routed is None else part + routed
    return model.lm_head(body.norm(full))


def next_token_loss(logits_BSV, tokens_BS):
    return torch.nn.functional.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), tokens_BS[:, 1:].flatten())


def is_instella(settings):
    return settings.get("architectures") == [instella.ARCHITECTURE]


def load_model(folder):
    if is_instella(json.loads((folder / "config.json").read_text())):
        return instella.load(folder)
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32).eval()


@torch.no_grad()
def compute_logits(model, tokens_BS, modes):
    return {mode: wired_forward(model, tokens_BS, mode) for mode in modes}


def compute_gradients(model, tokens_BS, mode):
    model.zero_grad()
    next_token_loss(wired_forward(model, tokens_BS, mode), tokens_BS).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def total_norm(tensors):
    return float(torch.sqrt(sum(tensor.double().pow(2).sum() for tensor in tensors)))


def hub_matrices(name, tensor):
    """The matrices that the hub keeps apart in a parameter or its gradient: experts, gate and up."""
    if tensor.dim() == 2:
        return [tensor]
    parts = [half for expert in tensor for half in (expert.chunk(2) if name.endswith("gate_up_proj") else [expert])]
    return parts


def orthogonalise(update):
    """Five quintic Newton-Schulz steps, as the authors of Muon state them."""
    x = update.T if update.shape[0] > update.shape[1] else update
    x = x / max(float(x.norm()), 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if update.shape[0] > update.shape[1] else x


class Muon:
    """Muon with Nesterov momentum 0.95 for the matrices between embedding and head, AdamW for the rest."""

    def __init__(self, model, rate):
        named = list(model.named_parameters())
        rest = ("embed_tokens", "lm_head", "mlp.gate.weight")
        self.rate = rate
        self.matrices = [(n, p) for n, p in named if p.dim() >= 2 and not any(part in n for part in rest)]
        chosen = {n for n, _ in self.matrices}
        self.momenta = {n: torch.zeros_like(p) for n, p in self.matrices}
        others = [p for n, p in named if n not in chosen]
        self.adamw = torch.optim.AdamW(
            [{"params": [p for p in others if p.dim() >= 2], "weight_decay": 0.1},
             {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.95), eps=1e-8)

    def zero_grad(self):
        self.adamw.zero_grad()
        for _, p in self.matrices:
            p.grad = None

    @torch.no_grad()
    def step(self):
        self.adamw.step()
        for name, p in self.matrices:
            momentum = self.momenta[name]
            momentum.mul_(0.95).add_(p.grad, alpha=0.05)
            ahead = 0.95 * momentum + 0.05 * p.grad
            p.mul_(1 - self.rate * 0.1)
            for weight, update in zip(hub_matrices(name, p), hub_matrices(name, ahead), strict=True):
                weight.sub_(self.rate * 0.2 * max(weight.shape) ** 0.5 * orthogonalise(update))


def train_curve(folder, mode, optimizer="adamw"):
    """Losses and gradient norms (before clipping) from model.safetensors on tokens.bin; sample i is the S + 1
    tokens from i S on. Decay only on tensors of rank 2 and more. Muon in double precision."""
    stream = torch.from_numpy(np.fromfile(folder / "tokens.bin", dtype=np.uint16).astype(np.int64))
    model = load_model(folder)
    if optimizer == "muon":
        model = model.double()
    parameters = list(model.parameters())
    groups = [{"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
              {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]
    rule = Muon(model, 1e-3) if optimizer == "muon" else torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for step in range(CURVE_STEPS):
        starts = [(step * CURVE_BATCH + row) * CURVE_SEQUENCE for row in range(CURVE_BATCH)]
        rows = torch.stack([stream[start:start + CURVE_SEQUENCE + 1] for start in starts])
        logits = wired_forward(model, rows[:, :-1], mode)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        rule.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, 1.0)))
        rule.step()
        losses.append(loss.item())
    return losses, norms


def write_token_file(prefix, tokens):
    """One document in the Megatron layout: PREFIX.bin (uint16) and PREFIX.idx."""
    tokens.astype(np.uint16).tofile(f"{prefix}.bin")
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1, 2)
    Path(f"{prefix}.idx").write_bytes(header + struct.pack("<iqqq", len(tokens), 0, 0, 1))


def make_learnable_tokens(count, vocab, generator):
    """A noisy walk over a random successor table, so that a loss curve has something to learn."""
    successors = generator.permutation(vocab)
    tokens = generator.integers(0, vocab, count)
    for i in range(1, count):
        if generator.random() < 0.7:
            tokens[i] = successors[tokens[i - 1]]
    return tokens


def make_model(variant, folder, seed):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    settings = dict(VARIANTS[variant])
    if is_instella(settings):
        model = instella.Model(settings)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    with torch.no_grad():  # norms away from one and biases from zero, so that a swapped or forgotten one shows
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() < 2 and not name.endswith("bias")
            torch.nn.init.normal_(parameter, float(is_norm), 0.2 if is_norm else 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.05)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokens = torch.randint(0, model.config.vocab_size, (2, 40), dtype=torch.int32)
    save_file({"tokens": tokens}, folder / "reference.safetensors")
    if variant in WITH_CURVES:
        count = CURVE_STEPS * CURVE_BATCH * CURVE_SEQUENCE + 1
        write_token_file(folder / "tokens",
                         make_learnable_tokens(count, model.config.vocab_size, np.random.default_rng(seed)))


def complete(folder, out):
    """Computes into `out` every value that it lacks; values that are there stay as they are."""
    out.mkdir(parents=True, exist_ok=True)
    values = load_file(folder / "reference.safetensors")
    facts_file = folder / "reference.json"
    facts = json.loads(facts_file.read_text()) if facts_file.exists() else {}
    facts.setdefault("family", folder.name)
    facts.setdefault("transformers", transformers.__version__)
    model = load_model(folder)
    tokens = values["tokens"].long()
    if isinstance(model, transformers.PreTrainedModel):
        with torch.no_grad():
            off = wired_forward(model, tokens, "off")
            facts.setdefault("off_vs_library", float((off - model(tokens).logits).abs().max()))
    for mode, logits in compute_logits(model, tokens, list_modes(len(model.model.layers))).items():
        values.setdefault(f"logits.{mode}", logits.contiguous())
        facts.setdefault(f"loss.{mode}", float(next_token_loss(logits, tokens)))
    for mode in GRADIENT_MODES:
        if (folder / f"grads.{mode}.safetensors").exists():
            continue
        gradients = compute_gradients(model, tokens, mode)
        save_file(gradients, out / f"grads.{mode}.safetensors")
        facts.setdefault(f"grad_norm.{mode}", total_norm(gradients.values()))
    if (folder / "tokens.bin").exists():
        for mode in CURVE_MODES:
            for rule in CURVE_RULES:
                if f"{rule}_losses.{mode}" not in facts:
                    facts[f"{rule}_losses.{mode}"], facts[f"{rule}_grad_norms.{mode}"] = train_curve(folder, mode, rule)
    facts.setdefault("keys", sorted(load_file(folder / "model.safetensors")))
    save_file(values, out / "reference.safetensors")
    (out / "reference.json").write_text(json.dumps(facts, indent=1) + "\n")


def check(folder):
    """Prints, per stored value, the largest absolute difference from a recomputation."""
    values = load_file(folder / "reference.safetensors")
    facts = json.loads((folder / "reference.json").read_text())
    model = load_model(folder)
    tokens = values["tokens"].long()
    differences = {}
    if isinstance(model, transformers.PreTrainedModel):
        with torch.no_grad():
            differences["library forward vs off"] = float(
                (wired_forward(model, tokens, "off") - model(tokens).logits).abs().max())
    modes = [name.removeprefix("logits.") for name in values if name.startswith("logits.")]
    for mode, logits in compute_logits(model, tokens, modes).items():
        differences[f"logits.{mode}"] = float((logits - values[f"logits.{mode}"]).abs().max())
        differences[f"loss.{mode}"] = abs(float(next_token_loss(logits, tokens)) - facts[f"loss.{mode}"])
    for path in sorted(folder.glob("grads.*.safetensors")):
        mode = path.name.split(".")[1]
        stored, gradients = load_file(path), compute_gradients(model, tokens, mode)
        if stored.keys() != gradients.keys():
            sys.exit(f"{path}: other names than the model's: {sorted(stored.keys() ^ gradients.keys())}")
        differences[f"grads.{mode}"] = max(float((gradients[k] - stored[k]).abs().max()) for k in stored)
        if f"grad_norm.{mode}" in facts:
            differences[f"grad_norm.{mode}"] = abs(total_norm(gradients.values()) - facts[f"grad_norm.{mode}"])
    for mode, rule in itertools.product(CURVE_MODES, CURVE_RULES):
        if f"{rule}_losses.{mode}" in facts:
            for name, curve in zip((f"{rule}_losses", f"{rule}_grad_norms"), train_curve(folder, mode, rule)):
                stored = facts[f"{name}.{mode}"]
                differences[f"{name}.{mode}"] = max(abs(a - b) for a, b in zip(curve, stored, strict=True))
    width = max(map(len, differences))
    print(f"{folder.name} (largest absolute differences)")
    for name, difference in differences.items():
        print(f"  {name:<{width}}  {difference:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make")
    make.add_argument("variant", choices=VARIANTS)
    make.add_argument("folder", type=Path)
    make.add_argument("--seed", type=int, default=1)
    add = commands.add_parser("complete")
    add.add_argument("folder", type=Path)
    add.add_argument("--out", type=Path, help="where new and completed files go; default: the folder itself")
    commands.add_parser("check").add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    if arguments.command == "make":
        make_model(arguments.variant, arguments.folder, arguments.seed)
        complete(arguments.folder, arguments.folder)
    elif arguments.command == "complete":
        complete(arguments.folder, arguments.out or arguments.folder)
    else:
        check(arguments.folder)


if __name__ == "__main__":
    main()
