#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How much of the communication of a training step runs under computation: measured on the ranks at hand, predicted beyond.

Used by table3.sh and fig5.sh. Needs nothing but the standard library, and the farskip binary.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

from conversion import table

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LINKS = ("400Gb/s", "450GB/s")  # a network card a GPU; NVLink 4 of one host, each way


def run(command):
    print(" ".join(map(str, command)), file=sys.stderr)
    result = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(f"this run failed with exit code {result.returncode}: {' '.join(map(str, command))}")
    return json.loads(lines[-1])


def plan(args, config, ranks, link, in_flight=1):
    """A prediction by the rates of a device; `ranks` share the experts."""
    return run([args.farskip, "plan", ROOT / "configs/models" / config, f"parallel.expert={ranks}",
                f"train.global_batch={2 * ranks}", f"schedule.micro_batches_in_flight={in_flight}", "--ranks", ranks, "--link",
                link, "--device-rate", args.device_rate, "--json", "--quiet"])


def hidden(directions):
    """Shares of the forward's, of the backward's and of both's transports that are hidden (gradient sums included)."""
    parts = [directions[d] for d in ("forward", "backward")]
    share = lambda d: 1 - sum(x["exposed_seconds"] for x in d) / max(1e-12, sum(x["transport_seconds"] for x in d))
    return [f"{100 * share(d):.1f}%" for d in ([parts[0]], [parts[1]], parts)]


def predicted_rows(args, name, config, ranks):
    for link in LINKS:
        for in_flight in (1, 2):
            r = plan(args, config, ranks, link, in_flight)
            blocking = r["step_seconds_standard_blocking"]
            for wiring in ("standard", "farskip"):
                step = r[f"step_seconds_{wiring}"]
                yield [f"{name}, EP{ranks}, {link}", wiring, str(in_flight), *hidden(r[wiring]),
                       f"{blocking * 1e3:.0f} ms", f"{step * 1e3:.0f} ms", f"{blocking / step:.3f}x",
                       f"{r['step_seconds_standard'] / step:.3f}x"]


def measured_rows(args):
    """Two ranks over a shaped link where this may make network namespaces, else over shared memory."""
    shaped = os.geteuid() == 0 and not args.shared_memory
    launcher = ([ROOT / "scripts/netns.sh", "--rate", args.rate, "-np", "2", "--"] if shaped else
                ["mpirun", "-np", "2", "--bind-to", "none"])
    for mode in ("off", "full"):
        r = run([*launcher, args.farskip, "bench", "overlap", ROOT / "configs/bench/overlap.yaml",
                 f"model.hidden_size={args.hidden}", f"farskip.mode={mode}", "--steps", args.steps, "--json", "--quiet"])
        if not r["identical"]:
            sys.exit("the overlapped run differs from the blocking one")
        shares = [f"{100 * r[d]['hidden_fraction']:.1f}%" for d in ("forward", "backward", "total")]
        blocking, step = r["step_seconds_blocking"], r["step_seconds_overlapped"]
        yield [f"overlap.yaml, EP2, {args.rate if shaped else 'shared memory'}, measured",
               "standard" if mode == "off" else "farskip", "1", *shares, f"{blocking * 1e3:.0f} ms", f"{step * 1e3:.0f} ms",
               f"{blocking / step:.3f}x", "-"]


HEADER = ["what", "wiring", "in flight", "hidden forward", "backward", "both", "blocking standard", "step", "over blocking",
          "over scheduled standard"]


def table3(args):
    rows = [] if args.predicted_only else list(measured_rows(args))
    rows += predicted_rows(args, "DeepSeek-V2-Lite (16B)", "deepseek_v2_lite.yaml", 8)
    rows += predicted_rows(args, "V3 shape, 6 layers", "v3_like_6_layers.yaml", 8)
    print(table(HEADER, rows))


def fig5(args):
    rows = []
    for ranks in (8, 16, 32, 64):
        for link in LINKS:
            r = plan(args, "deepseek_v2_lite.yaml", ranks, link)
            blocking, standard, farskip = (r[f"step_seconds_{k}"] for k in ("standard_blocking", "standard", "farskip"))
            rows.append([f"EP{ranks}", link, f"{blocking * 1e3:.0f} ms", f"{standard * 1e3:.0f} ms", f"{farskip * 1e3:.0f} ms",
                         f"{blocking / farskip:.3f}x", f"{standard / farskip:.3f}x"])
    print(table(["experts over", "link", "standard, blocking", "standard, scheduled", "FarSkip, scheduled", "over blocking",
                 "over scheduled"], rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("table3", "fig5"))
    parser.add_argument("--farskip", default=str(ROOT / "build/release/farskip"))
    parser.add_argument("--device-rate", default="400TFLOP/s,3TB/s", help="of each rank that is not here")
    parser.add_argument("--predicted-only", action="store_true", help="measure nothing")
    parser.add_argument("--shared-memory", action="store_true", help="measure without a shaped link")
    parser.add_argument("--rate", default="100mbit", help="of the shaped link")
    parser.add_argument("--hidden", default="48", help="hidden size of the measured model")
    parser.add_argument("--steps", default="5")
    args = parser.parse_args()
    {"table3": table3, "fig5": fig5}[args.what](args)


if __name__ == "__main__":
    main()
