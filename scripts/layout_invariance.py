#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Shows that the numbers of a training run do not depend on how it is laid out over ranks.

    scripts/layout_invariance.py [--tolerance 1e-5] [--layouts 1x1,1x2,2x1,2x2,4x1] [--keep] ...

For each family, wiring and routing, the same 20 steps (seed, data, global batch) are trained under mpirun on
EP x DP ranks: experts over EP, data parallel over DP. Prints the largest relative difference of the loss and of the
gradient's norm (with its step) to one rank, and whether the same layout twice gives the same bits. Exit code: 0 all
within the tolerance and repeatable, 1 not, 64 wrong arguments, 70 a run failed (with its messages).

Sums over ranks are rounded differently, so a token between two experts may, once in a while, go to the other one:
a jump of that step alone. With model.num_experts_per_tok=8 (all of them) there is no choice, and no jump.
"""

import argparse
import array
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

VOCABULARY, SEQUENCE, BATCH = 512, 32, 16

FAMILIES = {
    "deepseek_v2": """family: deepseek_v2, num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 4,
  q_lora_rank: null, kv_lora_rank: 32, qk_nope_head_dim: 16, qk_rope_head_dim: 8, v_head_dim: 16, first_k_dense_replace: 1,
  n_routed_experts: 8, num_experts_per_tok: 3, n_shared_experts: 1, moe_intermediate_size: 32""",
    "qwen3_moe": """family: qwen3_moe, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16,
  num_experts: 8, num_experts_per_tok: 2, moe_intermediate_size: 32""",
}

CONFIG = """model: {{{model},
  hidden_size: 64, intermediate_size: 96, vocab_size: {vocabulary}, max_position_embeddings: 64, eos_token_id: 0}}
run_dir: {run_dir}
seed: 8
device: cpu
farskip: {{mode: {mode}}}
parallel: {{expert: {expert}}}
data: {{tokens: [{tokens}]}}
train:
  steps: {steps}
  sequence_length: {sequence}
  global_batch: {batch}
  micro_batch: 2
  learning_rate: {{schedule: constant, peak: 1.0e-3}}
  aux_loss: 0.001
checkpoint: {{every: 0, resume: never}}
"""


def write_tokens(prefix, skewed, count):
    """A token file (docs/data.md) of documents of odd lengths. Skewed: one token makes 95% of the text, so that nearly
    every row is routed to the same few experts."""
    rng = random.Random(11)
    tokens = array.array("H", (5 if skewed and rng.random() < 0.95 else rng.randrange(1, VOCABULARY) for _ in range(count)))
    lengths = []
    while sum(lengths) < count:
        lengths.append(min(rng.randrange(17, 900), count - sum(lengths)))
    starts = [2 * sum(lengths[:i]) for i in range(len(lengths))]
    if sys.byteorder == "big":
        tokens.byteswap()
    Path(f"{prefix}.bin").write_bytes(tokens.tobytes())
    n = len(lengths)
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, n, n + 1) + struct.pack(f"<{n}i", *lengths)
        + struct.pack(f"<{n}q", *starts) + struct.pack(f"<{n + 1}q", *range(n + 1)))


class RunFailed(Exception):
    pass


def train(arguments, folder, case, layout, turn):
    """One run of its own folder; the (loss, grad_norm) of every step, as the metrics file spells them."""
    family, mode, routing = case
    expert, data = layout
    name = f"{family}-{mode}-{routing}-{expert}x{data}-{turn}"
    config = folder / f"{name}.yaml"
    config.write_text(CONFIG.format(
        model=FAMILIES[family], vocabulary=VOCABULARY, run_dir=folder / name, mode=mode, expert=expert,
        tokens=folder / routing, steps=arguments.steps, sequence=SEQUENCE, batch=BATCH))
    ranks = expert * data
    environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    if ranks > len(os.sched_getaffinity(0)):
        environment |= {"OMP_NUM_THREADS": "1", "OMPI_MCA_mpi_yield_when_idle": "1"}
    command = [*arguments.mpirun.split(), "-np", str(ranks), arguments.farskip, "train", "--quiet", str(config),
               *arguments.override]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=arguments.timeout)
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{name}: not done after {arguments.timeout:g} s: {' '.join(command)}") from None
    except OSError as error:
        raise RunFailed(f"{name}: {error}") from None
    if done.returncode != 0:
        raise RunFailed(f"{name}: exit code {done.returncode}: {' '.join(command)}\n{done.stderr.strip()}")
    try:
        # Numbers stay text, so that equal means equal to the bit.
        lines = [json.loads(line, parse_float=str, parse_int=str)
                 for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        rows = [(str(line["loss"]), str(line["grad_norm"])) for line in lines]
    except (OSError, ValueError, KeyError) as error:
        raise RunFailed(f"{name}: metrics.jsonl: {error!r}") from None
    if len(rows) != arguments.steps:
        raise RunFailed(f"{name}: metrics.jsonl has {len(rows)} steps instead of {arguments.steps}\n{done.stderr.strip()}")
    return rows


def difference(rows, reference, column):
    """The largest relative difference over the steps and its step; what is not finite differs from everything."""
    largest, at = 0.0, 1
    for step, (row, other) in enumerate(zip(rows, reference), 1):
        a, b = float(row[column]), float(other[column])
        apart = abs(a - b) / max(abs(b), 1e-30)
        if not apart <= largest:
            largest, at = apart if apart == apart else float("inf"), step
    return largest, at


def check(arguments, folder, case):
    """Prints the case's part of the table; whether every layout agrees and repeats."""
    good = True
    reference = None
    for layout in arguments.layouts:
        rows = train(arguments, folder, case, layout, 1)
        again = train(arguments, folder, case, layout, 2)
        reference = reference or rows
        (loss, _), (norm, step) = difference(rows, reference, 0), difference(rows, reference, 1)
        repeats = rows == again
        fine = repeats and loss <= arguments.tolerance and norm <= arguments.tolerance
        good &= fine
        print("%-12s %-5s %-8s %dx%-5d %10.1e %10.1e %5d  %-9s%s" % (
            *case, *layout, loss, norm, step, "same bits" if repeats else "DIFFERS", "" if fine else "  FAILED"), flush=True)
    return good


def parse_layouts(text):
    try:
        layouts = [tuple(int(part) for part in item.split("x")) for item in text.split(",")]
        if any(min(expert, data) < 1 or 8 % expert or BATCH % (2 * expert * data) for expert, data in layouts):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: allowed are EPxDP,... with EP dividing 8 and EP*DP dividing {BATCH // 2}, such as 1x1,2x2") from None
    return [(1, 1)] + [layout for layout in layouts if layout != (1, 1)]


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(64, f"{self.prog}: {message}\n")


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--farskip", default=str(Path(__file__).resolve().parent.parent / "build/release/farskip"))
    parser.add_argument("--mpirun", default="mpirun --oversubscribe --bind-to none", help="launcher and its options")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest relative difference (default: 1e-5)")
    parser.add_argument("--layouts", type=parse_layouts, default="1x1,1x2,2x1,2x2,4x1", metavar="EPxDP,...")
    parser.add_argument("--families", default=",".join(FAMILIES), help="some of: %(default)s")
    parser.add_argument("--modes", default="full,off", help="wirings (default: %(default)s)")
    parser.add_argument("--routings", default="natural,skewed", help="some of: %(default)s")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one run (default: 300)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with every run")
    parser.add_argument("override", nargs="*", help="key.path=value for every run")
    arguments = parser.parse_args()
    cases = [(family, mode, routing) for family in arguments.families.split(",")
             for routing in arguments.routings.split(",") for mode in arguments.modes.split(",")]
    for family, _, routing in cases:
        if family not in FAMILIES or routing not in ("natural", "skewed"):
            parser.error(f"no family {family!r} or routing {routing!r}; see --help")

    folder = Path(tempfile.mkdtemp(prefix="farskip-layouts-"))
    try:
        for routing in ("natural", "skewed"):
            write_tokens(folder / routing, routing == "skewed", BATCH * SEQUENCE * 15 + 1)
        print("%-12s %-5s %-8s %-7s %10s %10s %5s  %s" % (
            "family", "mode", "routing", "EPxDP", "loss", "grad_norm", "step", "twice"))
        good = all([check(arguments, folder, case) for case in cases])
    except RunFailed as failure:
        print(f"layout_invariance: {failure}", file=sys.stderr)
        return 70
    finally:
        if arguments.keep:
            print(f"Kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print("Every layout agrees." if good else "Some layouts do NOT agree.", f"Tolerance {arguments.tolerance:g}.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
