#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How much of the communication of a step runs under computation: measured on the ranks at hand, predicted beyond.

Used by table3.sh, fig5.sh (training), fig4.sh, fig6.sh and fig7.sh (inference). Needs nothing but the standard library, and the farskip binary.
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


def inference_rows(args, name, config, ranks, link, kind, texts):
    """The rows of a table: standard wiring blocking, scheduled and in two halves, FarSkip scheduled, of each length."""
    which = ["--requests", texts, "--batches", "1"] if kind == "prefill" else ["--requests", "1", "--batches", texts]
    result = subprocess.run([str(part) for part in [
        args.farskip, "plan", ROOT / "configs/models" / config, f"parallel.tensor={ranks}", f"parallel.expert={ranks}",
        "parallel.zero=0", "train.global_batch=1024", "--inference", "--ranks", ranks, "--gpu", args.gpu, "--lengths",
        args.lengths, *which, *(["--link", link] if link else []), "--json", "--quiet"]], stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    for length in map(int, args.lengths.split(",")):
        of = {(r["wiring"], r["schedule"]): r for r in rows if r["run"] == kind and r["length"] == length}
        blocking, standard, farskip = of["off", "blocking"], of["off", "overlapped"], of["full", "overlapped"]
        halves = of.get(("off", "halves"))  # one text has none
        yield [f"{name}, {ranks} GPUs, {link or 'NVLink'}", str(texts), str(length),
               *(f"{1e3 * r['seconds']:.1f} ms" if r else "-" for r in (blocking, standard, halves, farskip)),
               f"{100 * blocking['all_reduce_seconds'] / blocking['seconds']:.0f}%", f"{100 * farskip['hidden_fraction']:.1f}%",
               *(f"{r['seconds'] / farskip['seconds']:.3f}x" if r else "-" for r in (blocking, standard, halves))]


INFERENCE_HEADER = ["what", "texts", "length", "standard, blocking", "standard, scheduled", "standard, two halves",
                    "FarSkip, scheduled", "all-reduces of blocking", "hidden", "over blocking", "over scheduled", "over halves"]


def prefill(args, models):
    rows = []
    for name, config in models:
        for texts in (1, 16):
            rows += inference_rows(args, name, config, 8, None, "prefill", texts)
    print(table(INFERENCE_HEADER, rows))


def fig4(args):
    prefill(args, [("Llama 4 Scout", "llama4_scout.yaml")])


def fig6(args):
    prefill(args, [("DeepSeek-V2", "deepseek_v2.yaml"), ("DeepSeek-V3", "deepseek_v3.yaml")])


def fig7(args):
    rows = []
    for name, config in (("DeepSeek-V2", "deepseek_v2.yaml"), ("DeepSeek-V3", "deepseek_v3.yaml")):
        rows += inference_rows(args, name, config, 16, "400Gb/s", "decode", 1024)
    print(table(INFERENCE_HEADER, rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("table3", "fig4", "fig5", "fig6", "fig7"))
    parser.add_argument("--farskip", default=str(ROOT / "build/release/farskip"))
    parser.add_argument("--device-rate", default="400TFLOP/s,3TB/s", help="of each rank that is not here")
    parser.add_argument("--gpu", default="h200", help="of each rank, for inference")
    parser.add_argument("--lengths", default="512,1024,2048", help="tokens of a text, for inference")
    parser.add_argument("--predicted-only", action="store_true", help="measure nothing")
    parser.add_argument("--shared-memory", action="store_true", help="measure without a shaped link")
    parser.add_argument("--rate", default="100mbit", help="of the shaped link")
    parser.add_argument("--hidden", default="48", help="hidden size of the measured model")
    parser.add_argument("--steps", default="5")
    args = parser.parse_args()
    {"table3": table3, "fig4": fig4, "fig5": fig5, "fig6": fig6, "fig7": fig7}[args.what](args)


if __name__ == "__main__":
    main()
