# SPDX-License-Identifier: Apache-2.0
"""Runs `farskip generate --prompts` and transformers' generate on the same prompts in turns; prints a table.

    python scripts/bench/generate_peer.py MODEL [--batches 1,8,64] [--prompt 64] [--new 64] [--device cpu|cuda]

Prompts are random tokens, all texts have the same length, end tokens are passed over, and the choice is greedy. Both programs
load the model first and are timed from the first prompt to the last token. On a GPU the peer has a static cache and is compiled,
on a CPU it has its dynamic cache (a static one is slower there); its first round, which compiles, is not timed.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers


def ours(arguments, prompts):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
        result = subprocess.run(
            [arguments.farskip, "generate", "--model", arguments.model, "--prompts", file, "--max-tokens", str(arguments.new),
             "--ignore-eos", "--batch", str(len(prompts)), "--device", arguments.device, "--precision", arguments.precision],
            capture_output=True, text=True, check=False)
        if result.returncode != 0:
            sys.exit(result.stderr)
        texts = [json.loads(line)["ids"] for line in result.stdout.splitlines()]
        return float(re.search(r"in ([\d.]+) s,", result.stderr)[1]), texts


class Peer:
    def __init__(self, arguments):
        self.new, self.device = arguments.new, arguments.device
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.precision]
        self.model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).to(self.device).eval()
        self.warm = set()

    def generate(self, prompts):
        given = torch.tensor(prompts, device=self.device)
        static = {"cache_implementation": "static"} if self.device == "cuda" else {}
        with torch.no_grad():
            made = self.model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=self.new,
                                       min_new_tokens=self.new, eos_token_id=None, pad_token_id=0, **static)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return made[:, given.shape[1]:].tolist()

    def run(self, prompts):
        if self.device == "cuda" and len(prompts) not in self.warm:
            self.generate(prompts)
            self.warm.add(len(prompts))
        start = time.perf_counter()
        texts = self.generate(prompts)
        return time.perf_counter() - start, texts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--farskip", default="build/release/farskip")
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    peer = Peer(arguments)
    vocabulary = peer.model.config.vocab_size
    print(f"{'batch':>6} {'farskip tokens/s':>17} {'transformers':>13} {'ratio':>6} {'same texts':>11}")
    for batch in map(int, arguments.batches.split(",")):
        generator = random.Random(batch)
        prompts = [[generator.randrange(vocabulary) for _ in range(arguments.prompt)] for _ in range(batch)]
        rates = ([], [])
        for _ in range(arguments.rounds):
            seconds, mine = ours(arguments, prompts)
            rates[0].append(batch * arguments.new / seconds)
            seconds, theirs = peer.run(prompts)
            rates[1].append(batch * arguments.new / seconds)
        mine_rate, peer_rate = (sorted(r)[len(r) // 2] for r in rates)
        same = sum(a == b for a, b in zip(mine, theirs, strict=True))
        print(f"{batch:6} {mine_rate:17.1f} {peer_rate:13.1f} {mine_rate / peer_rate:6.2f} {same:7}/{batch}", flush=True)


if __name__ == "__main__":
    main()
