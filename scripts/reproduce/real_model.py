#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Conversion of a real pretrained model of experts: untrained, folded, distilled. real_model.sh runs all of it.

    real_model.py --data DATA --out runs/real_model [--results RESULTS] [--seconds 480] [--run long] [--seeds 1] [--parallel 2]

DATA holds the folder model (dense, in hub layout), the token files tokens and tokens-validation, and *.jsonl tasks. The model
becomes one of experts, which training makes differ: the teacher. Students in wiring full are measured on D, held-out pages, and
G, text sampled from the teacher. Each call ends within its seconds and goes on where an earlier one has stopped; --results gets
tables and metrics as soon as there is a new row. `--small` shows on two CPU cores in minutes that all of it works; its numbers
mean nothing.
"""
import argparse
import array
import json
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from conversion import last_of_each, number, table
from gpu_study import STARTED, TimeIsUp, collect, run

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs" / "real_model"
NORMALISED = "distill.hidden_loss={kind: normalised, weight: 0.3, anneal: 0.33}"
MUON = "train.optimizer.name=muon"
rate = lambda peak: f"train.learning_rate.peak={peak}"


class Size:
    """Steps of batch x length tokens; sequences and texts."""
    full = dict(upcycle="8,2", noise=0.2, batch=8, length=1024, teacher=1024, short=598, long=3418, longest=12208, fold=256, held_out=0, G=256,
                sampled=4800, text=512, items=0, device="cuda", precision="bf16", at_once=1024)
    small = dict(upcycle="2,1", noise=0.2, batch=1, length=64, teacher=4, short=4, long=8, longest=12, fold=16, held_out=8, G=4, sampled=8, text=48, items=4,
                 device="cpu", precision="fp32", at_once=4)


# Name, folder, which run it is (short, long, longest: 4.9M, 28M, 100M tokens), the wired layers, whether it starts from folded weights, its settings; the most telling
# rows first.
ROWS = [
    ("fold, then KL, AdamW 5e-4", "fold-adamw", "short", "all", True, [rate("5e-4")]),
    ("fold, then KL, Muon 5e-4", "fold-muon", "short", "all", True, [rate("5e-4"), MUON]),
    ("KL, AdamW 1e-3", "kl", "short", "all", False, [rate("1e-3")]),
    ("KL + normalised hidden loss, AdamW 1e-3", "kl-hidden", "short", "all", False, [rate("1e-3"), NORMALISED]),
    ("fold, then KL, Muon 5e-4, half of the text the teacher's", "fold-muon-half", "short", "all", True, [rate("5e-4"), MUON, "half"]),
    ("KL, AdamW 1e-3, first two layers standard", "kl-2", "short", "2-29", False, [rate("1e-3")]),
    ("fold, then KL, Muon 5e-4, first two layers standard", "fold-muon-2", "short", "2-29", True, [rate("5e-4"), MUON]),
    ("fold, then KL + normalised hidden loss, Muon 7e-4", "fold-muon-hidden", "short", "all", True, [rate("7e-4"), MUON, NORMALISED]),
    ("fold, then KL, AdamW 5e-4, balance loss 1e-3", "fold-balance", "short", "all", True, [rate("5e-4"), "train.aux_loss=0.001"]),
    ("fold, then KL + router agreement 0.01, AdamW 5e-4", "fold-routers", "short", "all", True, [rate("5e-4"), "distill.router_agreement=0.01"]),
    ("KL + raw hidden L2, AdamW 1e-3", "kl-l2", "short", "all", False, [rate("1e-3"), "distill.hidden_l2=1"]),
    ("fold, then KL, Muon 7e-4", "long-fold-muon", "long", "all", True, [rate("7e-4"), MUON]),
    ("KL + normalised hidden loss, AdamW 1e-3, half and half", "long-kl-hidden", "long", "all", False, [rate("1e-3"), NORMALISED, "half"]),
    ("fold, then KL, Muon 7e-4, half and half", "long-fold-muon-half", "long", "all", True, [rate("7e-4"), MUON, "half"]),
    ("fold, then KL, AdamW 5e-4", "longest-fold-adamw", "longest", "all", True, [rate("5e-4")]),
    ("fold, then KL, Muon 7e-4", "longest-fold-muon", "longest", "all", True, [rate("7e-4"), MUON]),
]


class RealModel:
    def __init__(self, args):
        self.args, self.out, self.data = args, args.out, args.data
        self.size = Size.small if args.small else Size.full
        self.results = {}
        self.lock = threading.RLock()  # of what all rows need: the first one makes it

    # Models and text -------------------------------------------------------------------------------------------------

    def farskip(self, log, *arguments):
        run(self.args, [self.args.farskip, *arguments], self.out / f"{log}.log")

    def device(self):
        return ["--device", self.size["device"], "--precision", self.size["precision"]]

    def teacher(self):
        """The dense model with experts in place of its MLPs, trained until they differ."""
        folder, start, trained = self.out / "teacher", self.out / "upcycled", self.out / "teacher-run"
        if not folder.exists():
            if not start.exists():
                self.farskip("upcycle", "convert", self.data / "model", start, "--upcycle", self.size["upcycle"],
                             "--upcycle-noise", self.size["noise"])
            self.train("train", "teacher", trained, self.size["teacher"], [f"init.from={start}"])
            self.farskip("teacher", "convert", trained, folder)
            shutil.rmtree(trained / "checkpoints")
            shutil.rmtree(start)
        return folder

    def folded(self, layers="all"):
        name = "folded" if layers == "all" else f"folded-{layers}"
        kept = self.out / f"{name}.json"
        with self.lock:
            if not kept.exists():
                command = [self.args.farskip, "convert", self.teacher(), self.out / name, "--farskip", "full", "--layers", layers,
                           "--fold", self.data / "tokens", "--fold-sequences", self.size["fold"], "--sequence-length",
                           self.size["length"], "--device", self.size["device"], "--json"]
                shutil.rmtree(self.out / name, ignore_errors=True)
                run(self.args, ["sh", "-c", '"$@" > "$0"', self.out / f"{name}.tmp", *command], self.out / f"{name}.log")
                (self.out / f"{name}.tmp").rename(kept)
        return self.out / name

    def swapped(self):
        """The teacher with experts 0 and 1 in each other's place: the same tensors under each other's names."""
        folder = self.out / "swapped"
        if not folder.exists():
            shutil.copytree(self.out / "teacher", folder, ignore=shutil.ignore_patterns("*.manifest.json"))  # of other bytes
            for path in folder.glob("*.safetensors"):
                swap_experts(path)
        return folder

    def sampled(self, name, texts, seed):
        """A token file of what the teacher says at temperature 1: conversations, free text, continuations of pages."""
        prefix = self.out / name
        with self.lock:
            if not prefix.with_suffix(".idx").exists():
                pages = "tokens-validation" if name == "G" else "tokens"
                prompts = make_prompts(self.data / f"{pages}.bin", texts, random.Random(seed))
                (self.out / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
                self.farskip(name, "generate", "--model", self.teacher(), "--prompts", self.out / f"{name}.jsonl", "--out-tokens",
                             prefix, "--max-tokens", self.size["text"], "--temperature", 1, "--batch", self.size["at_once"], "--seed",
                             seed, *self.device())
        return prefix

    def train(self, command, config, run_dir, steps, overrides):
        size = self.size
        settings = [f"run_dir={run_dir}", f"device={size['device']}", f"precision={size['precision']}", f"data.tokens=[{self.data}/tokens]",
                    f"train.steps={steps}", f"train.sequence_length={size['length']}", f"train.global_batch={size['batch']}",
                    f"train.micro_batch={size['batch']}", f"train.learning_rate.warmup_steps={min(20, steps // 2)}", *overrides]
        self.farskip(run_dir.name, command, CONFIGS / f"{config}.yaml", *last_of_each(settings))

    # Rows of the table -----------------------------------------------------------------------------------------------

    def measure(self, key, name, model, wiring=(), tokens=0):
        kept = self.out / f"{key}.result.json"
        if not kept.exists():
            folder = model()
            common = ["--model", folder, "--teacher", self.teacher(), "--batch", self.size["batch"], "--sequence-length",
                      self.size["length"], "--max-sequences", self.size["held_out"], *self.device(), *wiring, "--json", "--quiet"]
            evaluate = lambda *more: json.loads(subprocess.run([str(word) for word in [self.args.farskip, "eval", *common, *more]],
                                                               check=True, stdout=subprocess.PIPE, text=True).stdout)
            tasks = [path for path in sorted(self.tasks().glob("*.jsonl"))]
            result = {"name": name, "tokens": tokens, "D": evaluate("--data", self.data / "tokens-validation", "--tasks", *tasks),
                      "G": evaluate("--data", self.sampled("G", self.size["G"], 1))}
            if (folder / "metrics.jsonl").exists():
                result["load"] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["load_max_over_mean"]
            kept.write_text(json.dumps(result) + "\n")
        with self.lock:
            self.results.setdefault(name, []).append(json.loads(kept.read_text()))
            self.write_table()
            collect(self.args)

    def tasks(self):
        """All items, or the first ones."""
        if self.size["items"] == 0:
            return self.data / "tasks"
        few = self.out / "tasks"
        few.mkdir(exist_ok=True)
        for path in (self.data / "tasks").glob("*.jsonl"):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            (few / path.name).write_text("".join(lines[:self.size["items"]]), encoding="utf-8")
        return few

    def student(self, row, seed):
        name, folder, which, layers, is_folded, overrides = row
        if time.monotonic() - STARTED > self.args.seconds:
            raise TimeIsUp
        size, run_dir = self.size, self.out / f"{folder}-seed{seed}"
        steps = size[which]
        begin = self.folded(layers) if is_folded else self.teacher()
        settings = [f"seed={seed}", f"distill.teacher={self.teacher()}", f"init.from={begin}",
                    f"farskip={{mode: full, layers: {layers}}}",
                    f"train.learning_rate.decay_steps={steps - min(20, steps // 2)}", *overrides]
        if "half" in settings:
            settings.remove("half")
            text = self.sampled(f"sampled-{which}", size["sampled"] * (1 if which == "short" else 3), 1000)
            settings += [f"data.tokens=[{self.data}/tokens, {text}]", "data.weights=[0.5, 0.5]"]

        def trained():
            self.train("distill", "student", run_dir, steps, settings)
            return run_dir

        self.measure(run_dir.name, name, trained, tokens=steps * size["batch"] * size["length"])
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)

    def run(self):
        self.measure("teacher", "teacher", self.teacher)
        self.measure("swapped", "teacher, experts 0 and 1 swapped", self.swapped)
        shutil.rmtree(self.out / "swapped", ignore_errors=True)
        self.measure("untrained", "rewired, untrained", self.teacher, ["--farskip", "full"])
        self.measure("folded", "folded, no gradient step", self.folded)
        wanted = [row for row in ROWS if row[2] == self.args.run and (not self.args.only or row[1] in self.args.only)]
        with ThreadPoolExecutor(self.args.parallel) as pool:
            for row in [pool.submit(self.student, row, seed) for seed in self.args.seeds for row in wanted]:
                row.result()
        runs = [path.parent for path in sorted(self.out.glob("*-seed*/metrics.jsonl"))]
        self.farskip("report", "report", *runs, "--out", self.out / "report.html")

    def write_table(self):
        teacher, untrained = (self.results.get(name, [None])[0] for name in ("teacher", "rewired, untrained"))
        rows = [row_of(name, results, teacher, untrained) for name, results in self.results.items()]
        header = ["what", "tokens", "D: loss", "excess", "gap recovered", "KL", "agreement", "G: KL", "agreement"]
        header += [task["name"] for task in teacher["D"]["tasks"]] + ["busiest expert"]
        (self.out / "table.md").write_text(table(header, rows) + "\n")


def row_of(name, results, teacher, untrained):
    of = lambda text, key: [r[text][key] for r in results]
    start = teacher["D"]["loss"]
    gap = untrained["D"]["loss"] - start if untrained else 0
    cells = [name, f"{results[0]['tokens'] / 1e6:.1f}M", number(of("D", "loss")), number([x - start for x in of("D", "loss")])]
    cells.append(number([1 - (x - start) / gap for x in of("D", "loss")], 1, 100.0, "%") if gap else "-")
    for text in ("D", "G"):
        cells += [number(of(text, "kl")), number(of(text, "agreement"), 1, 100.0, "%")]
    for i, task in enumerate(teacher["D"]["tasks"]):
        accuracies = [r["D"]["tasks"][i]["accuracy"] for r in results]
        cells.append(number(accuracies, 1, 100.0, "%") + f" (± {100 * (task['accuracy_stderr'] or 0):.1f})")
    loads = [r["load"] for r in results if "load" in r]
    return cells + [number(loads, 1) + " x mean" if loads else "-"]


def make_prompts(tokens, count, generator):
    """A third each: the user's part of a conversation, free text, the first words of something from the pages."""
    with open(tokens, "rb") as stream:
        ids = array.array("H", stream.read())
    prompts = []
    for i in range(count):
        at = generator.randrange(len(ids) - 16)
        prompts.append(["<|im_start|>user\n", "<|endoftext|>", list(ids[at:at + 16])][i % 3])
    return prompts


def swap_experts(path):
    """In a file of safetensors: names of experts 0 stand for the bytes of experts 1, and the reverse."""
    with open(path, "r+b") as stream:
        size = struct.unpack("<Q", stream.read(8))[0]
        header = json.loads(stream.read(size))
        for name in [n for n in header if ".experts.0." in n]:
            other = header[name.replace(".experts.0.", ".experts.1.")]
            header[name]["data_offsets"], other["data_offsets"] = other["data_offsets"], header[name]["data_offsets"]
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(text) == size, f"{path}: the header would grow"
        stream.seek(8)
        stream.write(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/real_model"))
    parser.add_argument("--results", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=480, help="this call takes no longer")
    parser.add_argument("--farskip", default="build/release/farskip")
    parser.add_argument("--seeds", type=lambda text: text.split(","), default=["1"])
    parser.add_argument("--run", choices=["short", "long", "longest"], default="short", help="the rows of 4.9M, 28M or 100M tokens")
    parser.add_argument("--parallel", type=int, default=1, help="students at once")
    parser.add_argument("--only", nargs="*", help="folders of the rows that are wanted")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        RealModel(args).run()
    except TimeIsUp:
        print(f"the {args.seconds:.0f} s are up; the same command goes on from here", flush=True)
    finally:
        collect(args)
    print((args.out / "table.md").read_text() if (args.out / "table.md").exists() else "no row yet")
    print(f"took {time.monotonic() - STARTED:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
