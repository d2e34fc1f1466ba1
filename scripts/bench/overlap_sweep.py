#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Overlap over the ratio of transport to window (C/W), as a table for docs/results.md.

  scripts/bench/overlap_sweep.py [--rate 100mbit] [--hidden 32,64,96,160] [--modes full,off] [--in-flight 1,2]
                                 [--chunks 1] [--steps 5] [--config FILE] [key=value ...]
      between two network namespaces, over a shaped link; transport grows with hidden_size. Needs root and a quiet
      machine; about a minute a case
  scripts/bench/overlap_sweep.py --emulate 8 [--payload 0.1,0.25,0.5,1] [...]
      rank 0 of so many on one GPU, whose link is the bus to the host: an instrument, no network. Transport grows with
      the payload, how often each byte crosses

Each case is a `farskip bench overlap` (blocking and overlapped in turns, bits compared). Exit code 1 if any pair of
runs differed in a bit, 70 if a run failed.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
COLUMNS = ("mode", "in flight", "chunks", "case", "C/W", "eta fwd", "eta bwd", "planned fwd", "planned bwd", "hidden fwd", "hidden bwd", "sigma",
           "blocking s", "overlapped s", "predicted s", "MiB", "bits")


def measure(options, mode, in_flight, chunks, size):
    bench = [ROOT / "build/release/farskip", "bench", "overlap", options.config, f"farskip.mode={mode}",
             f"schedule.micro_batches_in_flight={in_flight}", f"schedule.expert_chunks={chunks}", "--steps", options.steps, "--json", "--quiet"]
    if options.emulate:
        command = bench + ["--device", "cuda", "--emulate", options.emulate, "--payload", size]
    else:
        command = [ROOT / "scripts/netns.sh", "--rate", options.rate, "-np", "2", "--", *bench, f"model.hidden_size={size}"]
    run = subprocess.run([str(part) for part in command + options.overrides], capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.stderr.write(run.stdout + run.stderr)
        print(f"The run with mode {mode}, case {size} failed with exit code {run.returncode}.", file=sys.stderr)
        sys.exit(run.returncode if run.returncode == 77 else 70)
    return json.loads(lines[-1])


def row(mode, in_flight, chunks, size, r):
    forward, backward, total = r["forward"], r["backward"], r["total"]
    return (mode, in_flight, chunks, size, f"{forward['transport_seconds'] / forward['window_seconds']:.2f}"
            if forward["window_seconds"] > 0 else "-",
            f"{forward['eta']:.3f}", f"{backward['eta']:.3f}",
            f"{forward['planned_eta']:.3f}", f"{backward['planned_eta']:.3f}", f"{forward['hidden_fraction']:.1%}",
            f"{backward['hidden_fraction']:.1%}", f"{total['sigma']:.3f}", f"{r['step_seconds_blocking']:.4g}",
            f"{r['step_seconds_overlapped']:.4g}", f"{r['predicted_step_seconds_overlapped']:.4g}",
            r["arena_bytes_overlapped"] >> 20, "same" if r["identical"] else "DIFFER")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--hidden", default="32,64,96,160")
    parser.add_argument("--emulate", type=int, default=0)
    parser.add_argument("--payload", default="0.1,0.25,0.5,1")
    parser.add_argument("--modes", default="full,off")
    parser.add_argument("--in-flight", default="1,2")
    parser.add_argument("--chunks", default="1", help="the blocking run is cut as the overlapped one: compare with that of 1")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--config")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    options.config = options.config or ROOT / f"configs/bench/{'overlap_gpu' if options.emulate else 'overlap'}.yaml"
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    identical = True
    for mode in options.modes.split(","):
        sizes = (options.payload if options.emulate else options.hidden).split(",")
        for case in itertools.product(options.in_flight.split(","), options.chunks.split(","), sizes):
            result = measure(options, mode, *case)
            identical = identical and result["identical"]
            print("| " + " | ".join(str(cell) for cell in row(mode, *case, result)) + " |", flush=True)
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
