#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Held-out loss of FarSkip and of standard wiring, trained from scratch, in pairs of equal seeds."""
import argparse
import json
import pathlib
import subprocess
import sys

from conversion import number, table


def train(args, mode, seed):
    run_dir = pathlib.Path(args.out) / f"{mode}-seed{seed}"
    command = [*args.launcher.split(), args.farskip, "train", args.config, f"seed={seed}", f"run_dir={run_dir}",
               f"farskip.mode={mode}", *args.set]
    print(" ".join(command), file=sys.stderr)
    subprocess.run(command, check=True)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["validation_loss"] for line in lines if "validation_loss" in line][-1]


def losses_table(pairs):
    """Pairs {"off": loss, "full": loss}, one a seed, as a table with intervals."""
    rows = [["standard", number([p["off"] for p in pairs])], ["FarSkip", number([p["full"] for p in pairs])],
            ["FarSkip - standard", number([p["full"] - p["off"] for p in pairs])]]
    return table(["wiring", "held-out loss"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="configuration of farskip train, with data.validation")
    parser.add_argument("--out", required=True, help="folder for the runs, the table and its numbers")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], help="more key.path=value for farskip train")
    parser.add_argument("--farskip", default="build/release/farskip")
    parser.add_argument("--launcher", default="", help="for instance: mpirun -np 2")
    args = parser.parse_args()
    pairs = [{mode: train(args, mode, seed) for mode in ("off", "full")} for seed in args.seeds]
    text = losses_table(pairs)
    out = pathlib.Path(args.out)
    (out / "from_scratch.md").write_text(text + "\n")
    (out / "from_scratch.json").write_text(json.dumps(dict(zip(map(str, args.seeds), pairs)), indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
