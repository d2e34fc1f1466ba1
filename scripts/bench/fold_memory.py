#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of a process that folds a synthetic model of experts (qwen3_moe, random weights in bf16) that is larger
than it. Needs three times the model's size in FOLDER, and only the standard library.

    scripts/bench/fold_memory.py FOLDER --gigabytes 20
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import struct
import time

from convert import ROOT, SHARD_BYTES, num_bytes, wait_for, write_shard

CONFIG = dict(
    model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], vocab_size=8192, hidden_size=2048, intermediate_size=6144,
    num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=64, num_experts_per_tok=8, moe_intermediate_size=768,
    norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], max_position_embeddings=4096, rms_norm_eps=1e-6,
    rope_theta=1e6, tie_word_embeddings=False)
TOKENS_MAGIC, U16 = b"MMIDIDX\0\0", 8  # Megatron-LM's indexed format, docs/data.md


def tensors(layers):
    hidden, inner = CONFIG["hidden_size"], CONFIG["moe_intermediate_size"]
    queries, keys = (CONFIG[n] * CONFIG["head_dim"] for n in ("num_attention_heads", "num_key_value_heads"))
    yield "model.embed_tokens.weight", (CONFIG["vocab_size"], hidden)
    for layer in range(layers):
        parts = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "self_attn.q_proj": (queries, hidden),
                 "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, queries),
                 "self_attn.q_norm": (CONFIG["head_dim"],), "self_attn.k_norm": (CONFIG["head_dim"],),
                 "mlp.gate": (CONFIG["num_experts"], hidden)}
        for expert in range(CONFIG["num_experts"]):
            parts |= {f"mlp.experts.{expert}.gate_proj": (inner, hidden), f"mlp.experts.{expert}.up_proj": (inner, hidden),
                      f"mlp.experts.{expert}.down_proj": (hidden, inner)}
        for part, shape in parts.items():
            yield f"model.layers.{layer}.{part}.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (CONFIG["vocab_size"], hidden)


def make_model(folder, gigabytes):
    """Weights of either sign between 2^-7 and 2^-5; norms, too, so that activations stay small."""
    layers = max(1, round(gigabytes * 1e9 / sum(num_bytes(s) for n, s in tensors(1) if ".layers." in n)))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    block = bytearray(random.Random(1).randbytes((64 << 20) + 2 * 4099))  # no divisor of a matrix: experts differ
    block[1::2] = block[1::2].translate(bytes(0x3c | (i & 0x80) for i in range(256)))
    parts, size = [[]], 0
    for name, shape in tensors(layers):
        if size + num_bytes(shape) > SHARD_BYTES:
            parts.append([])
            size = 0
        parts[-1].append((name, shape))
        size += num_bytes(shape)
    names = [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    for name, part in zip(names, parts):
        write_shard(folder / name, part, block)
    index = {"metadata": {}, "weight_map": {t: name for name, part in zip(names, parts) for t, _ in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def make_tokens(prefix, count):
    ids = random.Random(2).choices(range(CONFIG["vocab_size"]), k=count)
    prefix.with_suffix(".bin").write_bytes(struct.pack(f"<{count}H", *ids))
    prefix.with_suffix(".idx").write_bytes(
        TOKENS_MAGIC + struct.pack("<QBQQ", 1, U16, 1, 2) + struct.pack("<i", count) + struct.pack("<q", 0)
        + struct.pack("<qq", 0, 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--farskip", type=pathlib.Path, default=ROOT / "build/release/farskip")
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the sequences")
    args = parser.parse_args()
    model, target, tokens = (args.folder / name for name in ("model", "folded", "tokens"))
    if not model.exists():
        make_model(model, args.gigabytes)
    make_tokens(tokens, args.sequences * args.sequence_length + 1)
    shutil.rmtree(target, ignore_errors=True)
    launcher = ["mpirun", "--oversubscribe", "-np", args.ranks] if args.ranks > 1 else []
    size = sum(path.stat().st_size for path in model.iterdir()) / 1e9
    start = time.monotonic()
    memory = wait_for([*launcher, args.farskip, "convert", model, target, "--farskip", "full", "--dtype", "bf16", "--quiet",
                       "--device", "cpu", "--fold", tokens, "--fold-sequences", args.sequences,
                       "--sequence-length", args.sequence_length])
    print(f"{size:.1f} GB, {args.sequences} sequences of {args.sequence_length} tokens, {args.ranks} processes: "
          f"{time.monotonic() - start:.0f} s, at most {memory / 1e3:.2f} GB in a process", flush=True)
    shutil.rmtree(target)


if __name__ == "__main__":
    main()
