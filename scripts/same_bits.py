#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keeps the bits of small runs, and compares those of another build of farskip with them.

    scripts/same_bits.sh keep FOLDER      # before a change: one text file a case
    scripts/same_bits.sh compare FOLDER   # after it: runs the cases again; exit code 1 where a bit differs

A case is a family, a layout over ranks (experts x data) and a variant of the step. Its file holds the loss, gradient
norm, balance loss and validation losses of every step as the metrics spell them, and a hash of every tensor of the
last checkpoint, rows of shards put together. Plans of configs/bench are kept too: `farskip plan --json` with given
rates. Both builds have to run on the same processor with the same libraries.

Exit code: 0 kept, or nothing differs; 1 something differs; 64 wrong arguments; 70 a run failed (with its messages).
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from layout_invariance import BATCH, FAMILIES, SEQUENCE, VOCABULARY, RunFailed, write_tokens

ROOT = Path(__file__).resolve().parent.parent
STEPS = 4
LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2))  # experts over x data over
METRICS = ("step", "loss", "grad_norm", "aux_loss", "kl", "validation_loss", "validation_kl", "hidden_loss",
           "validation_accuracy", "load_max_over_mean")
DISTILL = ["distill.loss=kl", "distill.hidden_l2=0.1", "distill.router_agreement=0.1"]
# Name: (command, overrides). "resume" goes on from the checkpoint of "zero" on one rank, "distill" from its weights.
VARIANTS = {
    "plain": ("train", ["parallel.zero=0"]),
    "zero": ("train", ["parallel.zero=1"]),
    "resume": ("train", [f"train.steps={STEPS + 2}"]),
    "chunks": ("train", ["schedule.expert_chunks=2"]),
    "in_flight": ("train", ["schedule.micro_batches_in_flight=2"]),
    "recompute": ("train", ["schedule.recompute=full"]),
    "document_mask": ("train", ["data.document_mask=true", "farskip.mode=attention"]),
    "blocking": ("train", ["schedule.overlap=false", "farskip.mode=off"]),
    "distill": ("distill", DISTILL),
    "frozen": ("distill", ["distill.loss={kl: 0.9, sft: 0.1}", "distill.freeze=[embedding, head, experts]",
                           "distill.temperature=2"]),
    "kept": ("distill", ["distill.loss=kl", "distill.cache.path={folder}/cache", "distill.cache.top_k=8"]),
}
CONFIG = """model: {{{model},
  hidden_size: 64, intermediate_size: 96, vocab_size: {vocabulary}, max_position_embeddings: 64, eos_token_id: 0}}
"""
COMMON = """run_dir: {run_dir}
seed: 8
device: cpu
farskip: {{mode: full}}
parallel: {{expert: {expert}, zero: 1}}
data: {{tokens: [{tokens}], validation: [{tokens}-held-out]}}
train:
  steps: {steps}
  sequence_length: {sequence}
  global_batch: {batch}
  micro_batch: 2
  learning_rate: {{schedule: cosine, peak: 1.0e-3, final: 1.0e-4, warmup_steps: 2}}
  validate_every: 2
checkpoint: {{every: {steps}}}
"""
PLANS = ["configs/bench/overlap.yaml --ranks 2", "configs/bench/overlap.yaml --ranks 4 parallel.zero=1",
         "configs/bench/cpu_moe.yaml --ranks 8 parallel.expert=4 train.global_batch=32"]
RATES = ["--link", "1Gb/s", "--device-rate", "200GFLOP/s,20GB/s"]


def run(command, name):
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       OMPI_MCA_mpi_yield_when_idle="1", OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)
    if done.returncode != 0:
        raise RunFailed(f"{name}: exit code {done.returncode}: {' '.join(map(str, command))}\n{done.stderr.strip()}")
    return done.stdout


def tensor_hashes(checkpoint):
    """(name, shape, hash of the bytes) of every tensor of a checkpoint, however its rows are spread over shards."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    headers = {}

    def read(file, name):
        if file not in headers:
            with (checkpoint / file).open("rb") as stream:
                length = struct.unpack("<Q", stream.read(8))[0]
                headers[file] = (json.loads(stream.read(length)), 8 + length)
        header, base = headers[file]
        begin, end = header[name]["data_offsets"]
        with (checkpoint / file).open("rb") as stream:
            stream.seek(base + begin)
            return stream.read(end - begin)

    for name, tensor in sorted(manifest["tensors"].items()):
        digest = hashlib.sha256()
        for piece in tensor["pieces"]:
            digest.update(read(piece["file"], piece["name"]))
        yield name, tensor["shape"], digest.hexdigest()[:32]


def bits_of(run_dir):
    lines = []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line, parse_float=str, parse_int=str)
        lines.append(" ".join(f"{key}={metrics[key]}" for key in METRICS if key in metrics))
    newest = max((run_dir / "checkpoints").glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    lines += [f"{newest.name} {name} {shape} {digest}" for name, shape, digest in tensor_hashes(newest)]
    return "\n".join(lines) + "\n"


def run_case(farskip, folder, family, layout, variant):
    expert, data = layout
    command, overrides = VARIANTS[variant]
    base = f"{family}-{expert}x{data}"
    name = f"{base}-{variant}"
    run_dir = folder / name
    common = COMMON.format(run_dir=run_dir, expert=expert, tokens=folder / "tokens", steps=STEPS, sequence=SEQUENCE,
                           batch=BATCH)
    model = CONFIG.format(model=FAMILIES[family], vocabulary=VOCABULARY)
    ranks = expert * data
    if variant == "resume":
        shutil.copytree(folder / f"{base}-zero", run_dir)
        ranks, overrides = 1, [*overrides, "parallel.expert=1"]
    if command == "distill":
        model = ""
        overrides = [*overrides, f"distill.teacher={folder / f'{family}-1x1-plain'}"]
    config = folder / f"{name}.yaml"
    config.write_text(model + common)
    overrides = [text.replace("{folder}", str(run_dir)) for text in overrides]
    launcher = [] if ranks == 1 else ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)]
    run([*launcher, farskip, command, "--quiet", config, *overrides], name)
    return name, bits_of(run_dir)


def all_cases(farskip, folder):
    write_tokens(folder / "tokens", False, BATCH * SEQUENCE * 8 + 1)
    write_tokens(folder / "tokens-held-out", False, SEQUENCE * 5 + 1)
    for family, layout, variant in itertools.product(FAMILIES, LAYOUTS, VARIANTS):
        yield run_case(farskip, folder, family, layout, variant)
    for arguments in PLANS:
        plan = run([farskip, "plan", *arguments.split(), *RATES, "--json", "--quiet"], arguments)
        yield "plan-" + "-".join(arguments.replace("/", "_").split()), re.sub(r'"planning_seconds":[^,}]*', "", plan)


def first_difference(kept, now):
    for a, b in itertools.zip_longest(kept.splitlines(), now.splitlines(), fillvalue="(nothing)"):
        if a != b:
            return f"  kept: {a[:300]}\n  now:  {b[:300]}"
    return None


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(64, f"{self.prog}: {message}\n")


def main():
    parser = Parser(prog="same_bits.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("keep", "compare"))
    parser.add_argument("folder", type=Path, help="where the bits are kept")
    parser.add_argument("--farskip", default=str(ROOT / "build/release/farskip"))
    arguments = parser.parse_args()
    if arguments.action == "keep":
        arguments.folder.mkdir(parents=True, exist_ok=True)
    elif not arguments.folder.is_dir():
        parser.error(f"{arguments.folder}: no such folder; `keep` makes it")

    work = Path(tempfile.mkdtemp(prefix="farskip-bits-"))
    different = count = 0
    try:
        for name, bits in all_cases(arguments.farskip, work):
            count += 1
            kept = arguments.folder / f"{name}.txt"
            if arguments.action == "keep":
                kept.write_text(bits)
            elif (found := first_difference(kept.read_text() if kept.exists() else "", bits)) is not None:
                different += 1
                print(f"{name} DIFFERS\n{found}", flush=True)
    except RunFailed as failure:
        print(f"same_bits: {failure}", file=sys.stderr)
        return 70
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{count} cases kept." if arguments.action == "keep" else f"{count} cases, {different} differ.")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
