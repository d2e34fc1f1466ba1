#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every reference of tests/fixtures against the program, on any device, as one table.

    references.py [--farskip FARSKIP] [--references FOLDER ...] [--device cpu|cuda] [--precision fp32|bf16] [--jobs N]

A reference is a folder as scripts/reference/README.md describes it; those of further folders of them join by --references.
A row is a model and a wiring: how far logits, loss and the worst parameter's gradient of `farskip forward [--grads]` lie from
the reference, and losses and gradient norms of 20 steps of `farskip train`, where the reference has them. Tensors differ by
the norm of the difference / the norm, numbers relatively. In fp32 the exit code is 1 if something lies beyond the tolerances of
docs/numerics.md; bf16 rounds, and may choose other experts, so that its differences are only shown. Needs nothing but the
standard library, and the farskip binary.
"""
import argparse
import array
import collections
import concurrent.futures
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from conversion import read_metrics, table

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures"
CURVES = ("adamw", "muon")
LIMITS = {"logits": 2e-5, "loss": 2e-6, "gradients": 1e-4, **dict.fromkeys(CURVES, 1e-4)}
MUON_ON_GPUS = 1e-3  # there its products are of bf16 values (docs/numerics.md)
# A hub's names for what the library, whose names the gradients of references have, calls mlp.experts.E.gate_proj and so on.
HUB_NAMES = {"mlp": "block_sparse_moe", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


class Tensors:
    """The float tensors of a safetensors file, each as flat numbers in the order of its dims."""

    def __init__(self, path):
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        self.infos = json.loads(content[8:header])
        self.infos.pop("__metadata__", None)
        self.data = memoryview(content)[header:]

    def __contains__(self, name):
        return name in self.infos

    def __getitem__(self, name):
        info = self.infos[name]
        if info["dtype"] != "F32":
            raise RuntimeError(f"{name} is {info['dtype']}; F32 is needed")
        begin, end = info["data_offsets"]
        values = array.array("f", bytes(self.data[begin:end]))
        if sys.byteorder == "big":
            values.byteswap()
        return values


def largest(differences):
    """Of one or more; what is no number is infinitely far."""
    return max(math.inf if math.isnan(d) else d for d in differences)


def distance(got, want):
    if len(got) != len(want):
        raise RuntimeError(f"{len(got)} numbers, and {len(want)} in the reference")
    return math.dist(got, want) / (math.hypot(*want) or 1)


def relative(got, want):
    return largest(abs(g / w - 1) for g, w in zip(got, want, strict=True))


def gradient(found, name):
    """The gradient of a parameter under the library's name; experts that the program writes apart are packed."""
    hub = lambda n: ".".join(HUB_NAMES.get(part, part) for part in n.split("."))
    for candidate in (name, hub(name)):
        if f"grad.{candidate}" in found:
            return found[f"grad.{candidate}"]
    experts, which = name.rsplit(".", 1)
    parts = [f"{part}_proj.weight" for part in which.removesuffix("_proj").split("_")]
    packed = array.array("f")
    for expert in range(len(found.infos)):
        for part in parts:
            piece = f"{experts}.{expert}.{part}"
            here = next((n for n in (piece, hub(piece)) if f"grad.{n}" in found), None)
            if here is None:
                return packed
            packed += found[f"grad.{here}"]
    return packed


class Runner:
    def __init__(self, args, scratch):
        self.args, self.scratch = args, scratch

    def path(self, folder, *names):
        return self.scratch / "-".join([*folder.resolve().parts[1:], *names])

    def farskip(self, *arguments):
        done = subprocess.run([self.args.farskip, *map(str, arguments), "--quiet"], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"farskip {' '.join(map(str, arguments))}: {done.stderr.strip()}")

    def forward(self, folder, wiring):
        """{column: difference} of logits, loss and, where the reference has them, gradients."""
        mode, _, layers = wiring.partition("_")
        out = self.path(folder, wiring, "forward.safetensors")
        gradients = folder / f"grads.{wiring}.safetensors"
        reference = folder / "reference.safetensors"
        self.farskip("forward", "--model", folder, "--tokens", reference, "--out", out, "--farskip", mode,
                     *(["--layers", layers.replace("_", "-")] if layers else []), *(["--grads"] if gradients.exists() else []),
                     "--device", self.args.device, "--precision", self.args.precision)
        found, want = Tensors(out), Tensors(reference)
        numbers = json.loads((folder / "reference.json").read_text())
        result = {"logits": largest([distance(found["logits"], want[f"logits.{wiring}"])]),
                  "loss": relative(found["loss"], [numbers[f"loss.{wiring}"]])}
        if gradients.exists():
            want = Tensors(gradients)
            result["gradients"] = largest(distance(gradient(found, name), want[name]) for name in want.infos)
        out.unlink()
        return result

    def train(self, folder, wiring, rule):
        """{column: difference} of the losses and gradient norms of 20 steps."""
        run_dir = self.path(folder, wiring, rule)
        self.farskip("train", ROOT / "configs/parity/adamw.yaml", f"init.from={folder}", f"data.tokens=[{folder / 'tokens'}]",
                     f"farskip.mode={wiring}", f"train.optimizer.name={rule}", f"run_dir={run_dir}",
                     f"device={self.args.device}", f"precision={self.args.precision}")
        numbers, rows = json.loads((folder / "reference.json").read_text()), read_metrics(run_dir)
        return {rule: largest(relative([row[key] for row in rows], numbers[f"{rule}_{plural}.{wiring}"])
                          for key, plural in (("loss", "losses"), ("grad_norm", "grad_norms")))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--farskip", default=ROOT / "build/release/farskip")
    parser.add_argument("--references", type=pathlib.Path, nargs="+", default=[], metavar="FOLDER", help="folders of more references")
    parser.add_argument("--only", default="", metavar="REGEX", help="models whose names match")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--jobs", type=int, default=min(4, len(os.sched_getaffinity(0))), help="programs that run at once")
    args = parser.parse_args()
    folders = [file.parent for where in [FIXTURES, *args.references]
               for file in sorted(where.glob("*/reference.json")) if re.search(args.only, file.parent.name)]
    if not folders:
        sys.exit("no reference there")

    with tempfile.TemporaryDirectory() as scratch, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        runner, rows = Runner(args, pathlib.Path(scratch)), collections.defaultdict(list)
        for folder in folders:
            numbers = json.loads((folder / "reference.json").read_text())
            for wiring in (key.removeprefix("loss.") for key in numbers if key.startswith("loss.")):
                rows[folder, wiring].append(pool.submit(runner.forward, folder, wiring))
                rows[folder, wiring] += [pool.submit(runner.train, folder, wiring, rule)
                                         for rule in CURVES if f"{rule}_losses.{wiring}" in numbers]
        cells, worst, failures = [], dict.fromkeys(LIMITS, 0.0), []
        for (folder, wiring), jobs in rows.items():
            found = {}
            for job in jobs:
                try:
                    found |= job.result()
                except RuntimeError as error:
                    failures.append(str(error))
            worst = {column: max(worst[column], found.get(column, 0.0)) for column in LIMITS}
            cells.append([str(folder.relative_to(FIXTURES) if folder.is_relative_to(FIXTURES) else folder), wiring, *(f"{found[c]:.1e}" if c in found else "" for c in LIMITS)])
    limits = LIMITS | ({"muon": MUON_ON_GPUS} if args.device == "cuda" else {})
    cells.append(["largest", "", *(f"{worst[c]:.1e}" for c in LIMITS)])
    if args.precision == "fp32":
        cells.append(["tolerance", "", *(f"{limits[c]:.0e}" for c in LIMITS)])
        failures += [f"{c}: {worst[c]:.1e} is more than {limits[c]:.0e}" for c in LIMITS if worst[c] > limits[c]]
    print(f"{len(folders)} references, {args.device}, {args.precision}\n")
    print(table(["model", "wiring", *LIMITS], cells))
    for failure in failures:
        print(failure, file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
