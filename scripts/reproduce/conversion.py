#!/usr/bin/env python3
"""Conversions of one teacher, trained in several ways and with several seeds, as a table.

Used by table1.sh, table2.sh, fig3.sh and sweep.sh. Needs nothing but the standard library, and the farskip binary.
"""
import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys

# Two-sided 95% points of Student's t for 1 to 9 degrees of freedom.
T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


def interval(values):
    """(mean, half of the 95% interval or None for one value)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    point = T95[min(len(values) - 2, len(T95) - 1)]
    return mean, point * statistics.stdev(values) / math.sqrt(len(values))


def number(values, digits=4, scale=1.0, unit=""):
    mean, half = interval([v * scale for v in values])
    return f"{mean:.{digits}f}{unit}" + ("" if half is None else f" ± {half:.{digits}f}")


def table(header, rows):
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    line = lambda row: "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths)) + " |"
    return "\n".join([line(header), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)])


class Study:
    def __init__(self, args):
        self.args = args
        self.out = pathlib.Path(args.out)
        self.evaluated = {}

    @property
    def teacher(self):
        return self.convert(self.args.teacher_wiring)

    def convert(self, mode="", layers=""):
        """The teacher in another wiring, untrained."""
        wiring = (["--farskip", mode] if mode else []) + (["--layers", layers] if layers else [])
        return self.evaluate(self.args.teacher, wiring)

    def farskip(self, *arguments):
        return subprocess.run([self.args.farskip, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True).stdout

    def evaluate(self, model, wiring=()):
        """Loss, perplexity and top-1 on the held-out tokens."""
        key = (str(model), *wiring)
        if key not in self.evaluated:
            self.evaluated[key] = self.run_eval(model, wiring)
        return dict(self.evaluated[key])

    def run_eval(self, model, wiring):
        text = self.farskip("eval", "--model", model, "--data", self.args.validation, "--sequence-length",
                            self.args.sequence_length, "--batch", self.args.batch, "--max-sequences",
                            self.args.max_sequences, "--json", "--quiet", *wiring)
        return json.loads(text)

    def train(self, name, seed, overrides):
        """Trains one student (or takes the finished one of an earlier call): its folder and metrics."""
        run_dir = self.out / f"{name}-seed{seed}"
        command = [*self.args.launcher.split(), self.args.farskip, "distill", self.args.config, f"seed={seed}",
                   f"run_dir={run_dir}", f"distill.teacher={self.args.teacher}", *overrides, *self.args.set]
        print(" ".join(command), file=sys.stderr)
        subprocess.run(command, check=True)
        return run_dir, [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]

    def distill(self, name, seed, overrides):
        """Trains and evaluates one student."""
        run_dir, lines = self.train(name, seed, overrides)
        result = self.evaluate(run_dir)
        result["tokens_trained"] = lines[-1]["tokens"]
        result["kl"] = lines[-1].get("validation_kl", lines[-1]["kl"])
        result["agreement"] = lines[-1].get("validation_agreement", lines[-1]["agreement"])
        return result

    def seeds(self, name, overrides):
        return [self.distill(name, seed, overrides) for seed in self.args.seeds]

    def row(self, name, results, untrained):
        gap = untrained["loss"] - self.teacher["loss"]
        losses = [r["loss"] for r in results]
        cells = [name, number(losses), number([r["top1"] for r in results], 2, 100.0, "%"),
                 number([r["top1"] / self.teacher["top1"] for r in results], 2, 100.0, "%")]
        recovered = [(untrained["loss"] - loss) / gap for loss in losses]
        cells.append(number(recovered, 1, 100.0, "%") if abs(gap) > 1e-6 else "-")
        cells.append(number([r["kl"] for r in results]) if "kl" in results[0] else "-")
        return cells

    HEADER = ["model", "held-out loss", "top-1", "of the teacher's top-1", "gap recovered", "KL"]

    def save(self, name, text, results):
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"{name}.md").write_text(text + "\n")
        (self.out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
        print(text)


def table1(study):
    """Teacher, untrained conversion, SFT and self-distillation (Table 1 of the paper)."""
    untrained = study.convert("full")
    results = {"teacher": [study.teacher], "converted, untrained": [untrained],
               "SFT": study.seeds("sft", ["distill.loss=sft"]), "FCSD (KL)": study.seeds("kl", ["distill.loss=kl"])}
    rows = [study.row(name, r, untrained) for name, r in results.items()]
    study.save("table1", table(Study.HEADER, rows), results)


def table2(study):
    """Ablations (Table 2): losses, frozen tensors, batch size, how many of the last layers are converted."""
    layers = study.args.layers
    last = lambda share: f"{layers - max(1, round(layers * share))}-{layers - 1}"
    batch = study.args.global_batch
    untrained = study.convert("full")
    variants = [
        ("KL", "kl", ["distill.loss=kl"]),
        ("KL + L2", "kl-l2", ["distill.loss=kl", f"distill.hidden_l2={study.args.hidden_l2}"]),
        ("SFT", "sft", ["distill.loss=sft"]),
        ("KL, embedding and head frozen", "frozen", ["distill.loss=kl", "distill.freeze=[embedding, head]"]),
        ("KL, 4x batch", "batch4", ["distill.loss=kl", f"train.global_batch={4 * batch}"]),
    ]
    if batch % 4 == 0 and batch // 4 >= study.args.smallest_batch:
        variants.append(("KL, 0.25x batch", "batch025", ["distill.loss=kl", f"train.global_batch={batch // 4}"]))
    results = {name: study.seeds(folder, overrides) for name, folder, overrides in variants}
    rows = [study.row(name, r, untrained) for name, r in results.items()]
    for share in (0.5, 0.75, 0.9):
        selected = last(share)
        name = f"KL, last {round(100 * share)}% of layers"
        results[name] = study.seeds(f"last{round(100 * share)}", ["distill.loss=kl", f"farskip.layers={selected}"])
        rows.append(study.row(name, results[name], study.convert("full", selected)))
    study.save("table2", table(Study.HEADER, rows), results)


def sweep(study):
    """The paper's choice of hyperparameters by training loss: first the batch, then the learning rate."""
    results, rows = {}, []

    def trained(name, overrides):
        """KL at the end of training: mean of the last tenth of the steps."""
        values = []
        for seed in study.args.seeds:
            losses = [line["loss"] for line in study.train(name, seed, overrides)[1]]
            values.append(statistics.fmean(losses[-max(1, len(losses) // 10):]))
        results[name] = values
        rows.append([name, " ".join(overrides), number(values)])
        return statistics.fmean(values)

    batch = min(study.args.batches, key=lambda b: trained(f"batch{b}", [f"train.global_batch={b}"]))
    rate = min(study.args.rates, key=lambda r: trained(
        f"batch{batch}-rate{r}", [f"train.global_batch={batch}", f"train.learning_rate.peak={r}"]))
    text = table(["run", "overrides", "training loss"], rows)
    study.save("sweep", f"{text}\n\nchosen: train.global_batch={batch} train.learning_rate.peak={rate}", results)


def fig3(study):
    """Conversion without training of the first N and of the last N layers (Fig. 3)."""
    layers, results, rows = study.args.layers, {}, []
    for n in range(0, layers + 1):
        first = study.convert("full", f"0-{n - 1}") if n else study.teacher
        last = study.convert("full", f"{layers - n}-{layers - 1}") if n else study.teacher
        results[n] = {"first": first, "last": last}
        rows.append([str(n), f"{first['loss']:.4f}", f"{100 * first['top1']:.2f}%", f"{last['loss']:.4f}",
                     f"{100 * last['top1']:.2f}%"])
    header = ["layers converted", "first N: loss", "first N: top-1", "last N: loss", "last N: top-1"]
    study.save("fig3", table(header, rows), results)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["table1", "table2", "fig3", "sweep"])
    parser.add_argument("--teacher", required=True, help="model folder, checkpoint or run directory")
    parser.add_argument("--validation", required=True, help="held-out token file prefix")
    parser.add_argument("--config", help="configuration of farskip distill: data, steps, rates (not for fig3)")
    parser.add_argument("--out", required=True, help="folder for the runs, the table and its numbers")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], help="more key.path=value for farskip distill")
    parser.add_argument("--farskip", default="build/release/farskip")
    parser.add_argument("--launcher", default="", help="for instance: mpirun -np 2")
    parser.add_argument("--teacher-wiring", default="", help="default: the teacher's own")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16, help="sequences at a time in evaluation")
    parser.add_argument("--max-sequences", type=int, default=0, help="held-out sequences; 0: all")
    parser.add_argument("--hidden-l2", type=float, default=1.0)
    parser.add_argument("--global-batch", type=int, default=16, help="of the configuration (table2 varies it)")
    parser.add_argument("--smallest-batch", type=int, default=1, help="micro_batch x ranks")
    parser.add_argument("--batches", type=lambda t: [int(b) for b in t.split(",")], default=[8, 16, 32], help="sweep")
    parser.add_argument("--rates", type=lambda t: t.split(","), default=["5e-4", "1e-3", "2e-3"], help="sweep")
    args = parser.parse_args()
    if args.what != "fig3" and not args.config:
        parser.error("--config is needed")
    args.layers = find_layers(args.teacher)
    {"table1": table1, "table2": table2, "fig3": fig3, "sweep": sweep}[args.what](Study(args))


def find_layers(teacher):
    folder = pathlib.Path(teacher)
    newest = sorted(folder.glob("checkpoints/step-*/config.json"), key=lambda p: int(p.parent.name.split("-")[1]))
    for path in [folder / "config.json", *newest[-1:]]:
        if path.exists():
            return json.loads(path.read_text())["num_hidden_layers"]
    raise SystemExit(f"{teacher}: neither a model folder nor a run with checkpoints")


if __name__ == "__main__":
    main()
