#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The rate of farskip convert against dd (read, write, fsync) of the same files on the same disk: interleaved, with cold
caches, and the peak memory of each. Needs twice the model's size in FOLDER and only the standard library.

    scripts/bench/convert.py FOLDER --gigabytes 20 --repetitions 3
"""
import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CONFIG = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=32000, hidden_size=4096, intermediate_size=14336,
    num_attention_heads=32, num_key_value_heads=8, rms_norm_eps=1e-5, tie_word_embeddings=False)
SHARD_BYTES = 5_000_000_000


def tensors(layers):
    """Names and shapes of the model's tensors."""
    hidden, inner, keys = CONFIG["hidden_size"], CONFIG["intermediate_size"], 1024
    yield "model.embed_tokens.weight", (CONFIG["vocab_size"], hidden)
    for layer in range(layers):
        parts = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "mlp.gate_proj": (inner, hidden),
                 "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner), "self_attn.q_proj": (hidden, hidden),
                 "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, hidden)}
        for part, shape in parts.items():
            yield f"model.layers.{layer}.{part}.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (CONFIG["vocab_size"], hidden)


def num_bytes(shape):
    return 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)


def write_shard(path, part, block):
    offset, header = 0, {}
    for name, shape in part:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + num_bytes(shape)]}
        offset += num_bytes(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, offset, len(block)):
            file.write(block[:min(len(block), offset - begin)])
        os.fsync(file.fileno())


def make_model(folder, gigabytes):
    """Random bf16 weights below one: the upper byte keeps an exponent that is finite."""
    layers = max(1, round(gigabytes * 1e9 / sum(num_bytes(s) for n, s in tensors(1) if ".layers." in n)))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    block = bytearray(random.Random(1).randbytes(64 << 20))
    block[1::2] = block[1::2].translate(bytes(0x3c + i % 4 | (i & 0x80) for i in range(256)))
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


def drop_cache(folder):
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(source, target, run):
    """Seconds from cold caches, and the peak memory of the largest process in MB."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    drop_cache(source)
    start = time.monotonic()
    memory = run(source, target)
    return time.monotonic() - start, memory


def wait_for(command):
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(map(str, command))}: {error.decode()}")
    return usage.ru_maxrss / 1e3


def copy(source, target):
    target.mkdir()
    return max(wait_for(["dd", f"if={path}", f"of={target / path.name}", "bs=16M", "conv=fsync"])
               for path in sorted(source.iterdir()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--farskip", type=pathlib.Path, default=ROOT / "build/release/farskip")
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    source, target = args.folder / "model", args.folder / "out"
    if not source.exists():
        make_model(source, args.gigabytes)
    size = sum(path.stat().st_size for path in source.iterdir()) / 1e9
    convert = lambda a, b: wait_for([args.farskip, "convert", "--quiet", "--dtype", "bf16", a, b])
    seconds = {"dd": [], "farskip convert": []}
    for _ in range(args.repetitions):
        for name, run in (("dd", copy), ("farskip convert", convert)):
            time_taken, memory = measure(source, target, run)
            seconds[name].append(time_taken)
            print(f"{name}: {time_taken:.1f} s, {size / time_taken:.2f} GB/s of {size:.1f} GB, {memory:.0f} MB", flush=True)
    shutil.rmtree(target)
    ratios = [a / b for a, b in zip(seconds["dd"], seconds["farskip convert"])]
    print(f"rate of farskip convert over that of dd: median {statistics.median(ratios):.2f} "
          f"({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()
