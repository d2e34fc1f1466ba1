#!/usr/bin/env python3
"""Overlap over a shaped link between two network namespaces, over the ratio of transport to window (C/W).

  scripts/bench/overlap_sweep.py [--rate 100mbit] [--hidden 32,64,96,160] [--modes full,off] [--in-flight 1,2]
                                 [--steps 5] [--config configs/bench/overlap.yaml]

Runs `farskip bench overlap` (blocking and overlapped in turns, bits compared) under scripts/netns.sh for each
case and prints a table for docs/results.md. Needs root and a quiet machine; about a minute a case. Exit code 1 if
any pair of runs differed in a bit, 70 if a run failed.
"""

import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
COLUMNS = ("mode", "in flight", "hidden", "C/W", "eta fwd", "eta bwd", "planned fwd", "planned bwd", "hidden fwd", "hidden bwd", "sigma",
           "blocking s", "overlapped s", "predicted s", "MiB", "bits")


def measure(options, mode, in_flight, hidden):
    command = [ROOT / "scripts/netns.sh", "--rate", options.rate, "-np", "2", "--", ROOT / "build/release/farskip",
               "bench", "overlap", options.config, f"model.hidden_size={hidden}", f"farskip.mode={mode}",
               f"schedule.micro_batches_in_flight={in_flight}", "--steps", str(options.steps), "--json", "--quiet"]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.stderr.write(run.stdout + run.stderr)
        print(f"The run with mode {mode}, hidden size {hidden} failed with exit code {run.returncode}.", file=sys.stderr)
        sys.exit(run.returncode if run.returncode == 77 else 70)
    return json.loads(lines[-1])


def row(mode, in_flight, hidden, r):
    forward, backward, total = r["forward"], r["backward"], r["total"]
    return (mode, in_flight, hidden, f"{forward['transport_seconds'] / forward['window_seconds']:.2f}"
            if forward["window_seconds"] > 0 else "-",
            f"{forward['eta']:.3f}", f"{backward['eta']:.3f}",
            f"{forward['planned_eta']:.3f}", f"{backward['planned_eta']:.3f}", f"{forward['hidden_fraction']:.1%}",
            f"{backward['hidden_fraction']:.1%}", f"{total['sigma']:.3f}", f"{r['step_seconds_blocking']:.2f}",
            f"{r['step_seconds_overlapped']:.2f}", f"{r['predicted_step_seconds_overlapped']:.2f}",
            r["arena_bytes_overlapped"] >> 20, "same" if r["identical"] else "DIFFER")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--hidden", default="32,64,96,160")
    parser.add_argument("--modes", default="full,off")
    parser.add_argument("--in-flight", default="1,2")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--config", default=str(ROOT / "configs/bench/overlap.yaml"))
    options = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    identical = True
    for mode in options.modes.split(","):
        for in_flight in options.in_flight.split(","):
            for hidden in options.hidden.split(","):
                result = measure(options, mode, in_flight, hidden)
                identical = identical and result["identical"]
                print("| " + " | ".join(str(cell) for cell in row(mode, in_flight, hidden, result)) + " |", flush=True)
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
