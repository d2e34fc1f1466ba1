# SPDX-License-Identifier: Apache-2.0
"""Runs `farskip bench step` and its PyTorch peer in turns and prints one table; see cpu_step.sh.

Both get the same cores and thread count. Memory is measured from outside in the same way for both: the peak
resident size of the process, less what the program holds before it builds a model (for the peer after its
imports, for farskip the peak of `farskip --version`).
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FARSKIP = "build/release/farskip"
LOSS_STEPS = 3
LOSS_TOLERANCE = 1e-4  # relative; the sums are taken in another order


def run(command, cores, environment):
    """(stdout, peak resident bytes) of a command pinned to `cores`; its stderr is shown if it fails."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(["taskset", "-c", cores, *command], stdout=out, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            sys.exit(f"{shlex.join(command)}: exit code {process.returncode}\n{errors.read().decode()}")
        return out.read().decode(), usage.ru_maxrss * 1024


def last_json(text):
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


class Bench:
    def __init__(self, arguments):
        self.config, self.cores = arguments.config, arguments.cores
        threads = str(len(arguments.cores.split(",")))
        self.steps = ["--steps", str(arguments.steps), "--warmup", str(arguments.warmup)]
        self.ours_environment = dict(os.environ, OMP_NUM_THREADS=threads)
        # An OPENBLAS_* or MKL_* setting of the machine must not hold the peer back.
        self.peer_environment = {key: value for key, value in self.ours_environment.items()
                                 if not key.startswith(("OPENBLAS_", "MKL_"))}
        # Large blocks go back to the system after every use otherwise, and are cleared again at the next.
        self.peer_environment |= {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
        self.peer = [arguments.peer_python, "scripts/bench/torch_step.py", self.config, "--json", "--threads",
                     threads, *shlex.split(arguments.peer_args)]
        self.startup = run([FARSKIP, "--version"], self.cores, self.ours_environment)[1]

    def run_ours(self):
        text, peak = run([FARSKIP, "bench", "step", self.config, "--json", *self.steps], self.cores,
                         self.ours_environment)
        return last_json(text)["step_seconds"], peak - self.startup

    def run_peer(self):
        text, peak = run([*self.peer, *self.steps], self.cores, self.peer_environment)
        result = last_json(text)
        return result["step_seconds"], peak - result["startup_memory_bytes"]

    def compare_losses(self):
        """Both take the same first steps from the same weights on the same tokens."""
        with tempfile.TemporaryDirectory() as folder:
            init, tokens, run_dir = f"{folder}/init", f"{folder}/tokens", f"{folder}/run"
            text, _ = run([*self.peer, "--steps", str(LOSS_STEPS), "--warmup", "0", "--write-init", init,
                           "--write-tokens", tokens], self.cores, self.peer_environment)
            theirs = last_json(text)["losses"]
            run([FARSKIP, "train", self.config, "model=null", f"init.from={init}", f"data.tokens=[{tokens}]",
                 "data.shuffle=false", f"train.steps={LOSS_STEPS}", f"run_dir={run_dir}"],
                self.cores, self.ours_environment)
            lines = Path(run_dir, "metrics.jsonl").read_text().splitlines()
            ours = [json.loads(line)["loss"] for line in lines]
        print("| step | farskip loss | torch loss | relative difference |\n|---|---|---|---|")
        worst = 0.0
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
            worst = max(worst, abs(a - b) / abs(b))
            print(f"| {step} | {a:.6f} | {b:.6f} | {abs(a - b) / abs(b):.1e} |")
        print(flush=True)
        if not worst <= LOSS_TOLERANCE:
            sys.exit(f"The losses differ by {worst:.1e}, more than {LOSS_TOLERANCE:.0e}: times mean nothing.")


def describe(values, unit, scale):
    values = [value / scale for value in values]
    return f"{statistics.median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/bench/cpu_moe.yaml")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each program")
    parser.add_argument("--cores", default=",".join(map(str, sorted(os.sched_getaffinity(0)))))
    parser.add_argument("--steps", type=int, default=3, help="timed steps in a run")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--peer-args", default="", help="further arguments of torch_step.py")
    parser.add_argument("--skip-losses", action="store_true")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    if not arguments.skip_losses:
        bench.compare_losses()
    ours, theirs = [], []
    for number in range(arguments.rounds):
        ours.append(bench.run_ours())
        theirs.append(bench.run_peer())
        print(f"round {number + 1}: farskip {ours[-1][0]:.3f} s, torch {theirs[-1][0]:.3f} s", file=sys.stderr)
    (our_seconds, our_bytes), (their_seconds, their_bytes) = zip(*ours), zip(*theirs)
    speed = statistics.median(their_seconds) / statistics.median(our_seconds)
    memory = statistics.median(our_bytes) / statistics.median(their_bytes)
    print(f"{arguments.config}, cores {arguments.cores}, {arguments.rounds} rounds, medians (smallest to largest)\n")
    print("| | farskip | torch | ratio |\n|---|---|---|---|")
    print(f"| step | {describe(our_seconds, 's', 1)} | {describe(their_seconds, 's', 1)} | {speed:.2f}x faster |")
    print(f"| peak memory above start-up | {describe(our_bytes, 'GB', 1e9)} | {describe(their_bytes, 'GB', 1e9)} "
          f"| {memory:.2f}x |")


if __name__ == "__main__":
    main()
