#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Conversions of one teacher, trained in several ways and with several seeds, as a table.

Used by table1.sh, table2.sh, fig3.sh, recovery.sh, sweep.sh and gpu_study.py. Needs nothing but the standard library,
and the farskip binary.
"""
import argparse
import concurrent.futures
import json
import math
import pathlib
import shutil
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


def read_metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def last_of_each(overrides):
    """key.path=value of a command line, on which the program wants each key once: the last value of each counts."""
    return [f"{key}={value}" for key, value in dict(o.split("=", 1) for o in map(str, overrides)).items()]


class Study:
    def __init__(self, args):
        self.args = args
        self.out = pathlib.Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
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

    def at_once(self, work, items):
        """work(item) of each, in their order; --parallel of them at a time."""
        with concurrent.futures.ThreadPoolExecutor(self.args.parallel) as pool:
            return list(pool.map(work, items))

    def evaluate(self, model, wiring=()):
        """Loss, perplexity and top-1 on the held-out tokens; with --also the loss on these too, as "also"."""
        key = (str(model), *wiring)
        if key not in self.evaluated:
            result = self.run_eval(model, self.args.validation, wiring)
            if self.args.also:
                result["also"] = self.run_eval(model, self.args.also, wiring)["loss"]
            self.evaluated[key] = result
        return dict(self.evaluated[key])

    def run_eval(self, model, tokens, wiring):
        device = [f"--{key}={value}" for key, value in (("device", self.args.device),
                                                       ("precision", self.args.precision)) if value]
        return json.loads(self.farskip(
            "eval", "--model", model, "--data", tokens, "--sequence-length", self.args.sequence_length, "--batch",
            self.args.batch, "--max-sequences", self.args.max_sequences, "--json", "--quiet", *device, *wiring))

    def distill(self, name, seed, overrides, evaluated=True):
        """Trains one student and evaluates it, or takes the result of an earlier call."""
        run_dir = self.out / f"{name}-seed{seed}"
        kept = run_dir / "result.json"
        if kept.exists():
            return json.loads(kept.read_text())
        device = [f"{key}={value}" for key, value in (("device", self.args.device), ("precision", self.args.precision))
                  if value]
        settings = [f"seed={seed}", f"run_dir={run_dir}", f"distill.teacher={self.args.teacher}", *device, *self.args.set,
                    *overrides]
        command = [*self.args.launcher.split(), self.args.farskip, "distill", self.args.config, *last_of_each(settings)]
        print(" ".join(command), file=sys.stderr, flush=True)
        if self.args.parallel == 1:
            subprocess.run(command, check=True)
        else:  # their logs would mix
            run_dir.mkdir(parents=True, exist_ok=True)
            with open(self.out / f"{name}-seed{seed}.log", "w") as log:
                subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
        last = read_metrics(run_dir)[-1]
        result = self.evaluate(run_dir) if evaluated else {}
        result["tokens_trained"] = last["tokens"]
        result["kl"] = last.get("validation_kl", last["kl"])
        result["agreement"] = last.get("validation_agreement", last["agreement"])
        kept.write_text(json.dumps(result) + "\n")
        if self.args.discard:
            shutil.rmtree(run_dir / "checkpoints")
        return result

    def seeds(self, name, overrides):
        return self.at_once(lambda seed: self.distill(name, seed, overrides), self.args.seeds)

    def row(self, name, results, untrained):
        gap = untrained["loss"] - self.teacher["loss"]
        losses = [r["loss"] for r in results]
        cells = [name, number(losses), number([r["top1"] for r in results], 2, 100.0, "%"),
                 number([r["top1"] / self.teacher["top1"] for r in results], 2, 100.0, "%")]
        recovered = [(untrained["loss"] - loss) / gap for loss in losses]
        cells.append(number(recovered, 1, 100.0, "%") if abs(gap) > 1e-6 else "-")
        cells.append(number([r["kl"] for r in results]) if "kl" in results[0] else "-")
        cells.append(f"{results[0]['tokens_trained'] / 1e6:.2f}M" if "tokens_trained" in results[0] else "-")
        if self.args.also:
            also, gap = [r["also"] for r in results], untrained["also"] - self.teacher["also"]
            cells += [number(also), number([(untrained["also"] - loss) / gap for loss in also], 1, 100.0, "%")
                      if abs(gap) > 1e-6 else "-"]
        return cells

    def header(self):
        cells = ["model", "held-out loss", "top-1", "of the teacher's top-1", "gap recovered", "KL", "tokens"]
        return cells + (["loss on the other text", "gap recovered there"] if self.args.also else [])

    def save(self, name, text, results):
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"{name}.md").write_text(text + "\n")
        (self.out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
        print(text)


def table1(study):
    """Teacher, untrained conversion, SFT and self-distillation (Table 1 of the paper)."""
    untrained = study.convert("full")
    results = {"teacher": [study.teacher], "converted, untrained": [untrained],
               "SFT": study.seeds("sft", ["distill.loss=sft", *study.args.set_sft]), "FCSD (KL)": study.seeds("kl", ["distill.loss=kl"])}
    rows = [study.row(name, r, untrained) for name, r in results.items()]
    study.save("table1", table(study.header(), rows), results)


def table2(study):
    """Ablations (Table 2): losses, frozen tensors, batch size, how many of the last or first layers are converted."""
    layers = study.args.layers
    count = lambda share: max(1, round(layers * share))
    batch = study.args.global_batch
    untrained = study.convert("full")
    variants = [
        ("KL", "kl", ["distill.loss=kl"]),
        ("KL + L2", "kl-l2", ["distill.loss=kl", f"distill.hidden_l2={study.args.hidden_l2}"]),
        ("SFT", "sft", ["distill.loss=sft", *study.args.set_sft]),
        ("KL, embedding and head frozen", "frozen", ["distill.loss=kl", "distill.freeze=[embedding, head]"]),
        ("KL, 4x batch", "batch4", ["distill.loss=kl", f"train.global_batch={4 * batch}"]),
    ]
    if batch % 4 == 0 and batch // 4 >= study.args.smallest_batch:
        variants.append(("KL, 0.25x batch", "batch025", ["distill.loss=kl", f"train.global_batch={batch // 4}"]))
    if study.args.teacher_text:
        text = f"data.tokens=[{study.args.teacher_text}]"
        variants += [("KL, on the teacher's text", "kl-own", ["distill.loss=kl", text]),
                     ("KL + L2, on the teacher's text", "kl-l2-own",
                      ["distill.loss=kl", f"distill.hidden_l2={study.args.hidden_l2}", text])]
    results = {name: study.seeds(folder, overrides) for name, folder, overrides in variants}
    rows = [study.row(name, r, untrained) for name, r in results.items()]
    parts = [("last", share, f"{layers - count(share)}-{layers - 1}") for share in (0.5, 0.75, 0.9)]
    for side, share, selected in [*parts, ("first", 0.5, f"0-{count(0.5) - 1}")]:
        percent = round(100 * share)
        name = f"KL, {side} {percent}% of layers"
        results[name] = study.seeds(f"{side}{percent}", ["distill.loss=kl", f"farskip.layers={selected}"])
        rows.append(study.row(name, results[name], study.convert("full", selected)))
    study.save("table2", table(study.header(), rows), results)


def recipe(study):
    """What a fold before the first step and a normalised hidden loss bring, beside KL alone."""
    untrained, folded = study.convert("full"), study.out / "folded"
    if not (folded / "config.json").exists():
        device = ["--device", study.args.device] if study.args.device else []
        study.farskip("convert", study.args.teacher, folded, "--farskip", "full", "--fold", study.args.fold, "--fold-sequences",
                      study.args.fold_sequences, "--sequence-length", study.args.sequence_length, "--quiet", *device)
    fold, kl = [f"init.from={folded}"], ["distill.loss=kl"]
    hidden = ["distill.hidden_loss={kind: normalised, weight: 0.3, anneal: 0.33}"]
    variants = [("KL", "kl", kl), ("KL + normalised hidden loss", "kl-hidden", [*kl, *hidden]), ("fold, then KL", "fold-kl", [*fold, *kl]),
                ("fold, then KL + normalised hidden loss", "fold-kl-hidden", [*fold, *kl, *hidden])]
    if study.args.teacher_text:
        text = [f"data.tokens=[{study.args.teacher_text}]"]
        variants += [("KL, on the teacher's text", "kl-own", [*kl, *text]),
                     ("fold, then KL, on the teacher's text", "fold-kl-own", [*fold, *kl, *text]),
                     ("fold, then KL + normalised hidden loss, on the teacher's text", "fold-kl-hidden-own", [*fold, *kl, *hidden, *text])]
    results = {"teacher": [study.teacher], "converted, untrained": [untrained], "folded": [study.evaluate(folded)]}
    results.update({name: study.seeds(run, overrides) for name, run, overrides in variants})
    study.save("recipe", table(study.header(), [study.row(name, r, untrained) for name, r in results.items()]), results)


def recovery(study):
    """The share of the gap that is recovered, by tokens trained on, within longer runs of KL, KL + L2 and SFT."""
    rows, results = [], {}
    l2 = [f"distill.hidden_l2={study.args.hidden_l2}"]
    for name, folder, loss, more in (("KL", "long-kl", "kl", []), ("KL + L2", "long-kl-l2", "kl", l2),
                                     ("SFT", "long-sft", "sft", study.args.set_sft)):
        study.seeds(folder, [f"distill.loss={loss}", f"train.steps={study.args.long_steps}",
                             f"train.validate_every={max(1, study.args.long_steps // 8)}", *more])
        looks = {}
        for seed in study.args.seeds:
            for line in read_metrics(study.out / f"{folder}-seed{seed}"):
                if "recovered" in line:
                    looks.setdefault(line["tokens"], []).append(line)
        results[name] = {tokens: [line["recovered"] for line in lines] for tokens, lines in looks.items()}
        rows += [[name, f"{tokens / 1e6:.2f}M", number([line["recovered"] for line in lines], 1, 100.0, "%"),
                  number([line["validation_loss"] for line in lines]),
                  number([line["validation_kl"] for line in lines]) if "validation_kl" in lines[0] else "-"]
                 for tokens, lines in sorted(looks.items())]
    study.save("recovery", table(["loss", "tokens", "gap recovered", "held-out loss", "held-out KL"], rows), results)


def sweep(study):
    """The paper's choice of hyperparameters by training loss: first the batch, then the learning rate."""
    results, rows = {}, []

    def best(values, name, overrides):
        """The value whose runs end with the least training loss: mean of the last tenth of the steps."""
        def trained(value_and_seed):
            value, seed = value_and_seed
            study.distill(name(value), seed, overrides(value), evaluated=False)
            losses = [line["loss"] for line in read_metrics(study.out / f"{name(value)}-seed{seed}")]
            return statistics.fmean(losses[-max(1, len(losses) // 10):])

        pairs = [(value, seed) for value in values for seed in study.args.seeds]
        ends = dict(zip(pairs, study.at_once(trained, pairs)))
        for value in values:
            losses = results[name(value)] = [ends[value, seed] for seed in study.args.seeds]
            rows.append([name(value), " ".join(overrides(value)), number(losses)])
        return min(values, key=lambda value: statistics.fmean(results[name(value)]))

    batch = study.args.batches[0]
    if len(study.args.batches) > 1:
        batch = best(study.args.batches, lambda b: f"batch{b}", lambda b: [f"train.global_batch={b}"])
    rate = best(study.args.rates, lambda r: f"batch{batch}-rate{r}",
                lambda r: [f"train.global_batch={batch}", f"train.learning_rate.peak={r}"])
    text = table(["run", "overrides", "training loss"], rows)
    results["chosen"] = {"train.global_batch": batch, "train.learning_rate.peak": rate}
    study.save("sweep", f"{text}\n\nchosen: train.global_batch={batch} train.learning_rate.peak={rate}", results)


def fig3(study):
    """Conversion without training of the first N and of the last N layers (Fig. 3)."""
    layers, results, rows = study.args.layers, {}, []

    def converted(part):
        return study.convert("full", f"{part[0]}-{part[1]}") if part[1] >= part[0] else teacher

    teacher = study.teacher
    firsts = study.at_once(converted, [(0, n - 1) for n in range(0, layers + 1)])
    lasts = study.at_once(converted, [(layers - n, layers - 1) for n in range(0, layers + 1)])
    for n, (first, last) in enumerate(zip(firsts, lasts)):
        results[n] = {"first": first, "last": last}
        rows.append([str(n), f"{first['loss']:.4f}", f"{100 * first['top1']:.2f}%", f"{last['loss']:.4f}",
                     f"{100 * last['top1']:.2f}%"])
    header = ["layers converted", "first N: loss", "first N: top-1", "last N: loss", "last N: top-1"]
    study.save("fig3", table(header, rows), results)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["table1", "table2", "recipe", "fig3", "recovery", "sweep"])
    parser.add_argument("--teacher", required=True, help="model folder, checkpoint or run directory")
    parser.add_argument("--validation", required=True, help="held-out token file prefix")
    parser.add_argument("--config", help="configuration of farskip distill: data, steps, rates (not for fig3)")
    parser.add_argument("--out", required=True, help="folder for the runs, the table and its numbers")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], help="more key.path=value for farskip distill")
    parser.add_argument("--set-sft", nargs="*", default=[], help="more of them for its runs with SFT")
    parser.add_argument("--farskip", default="build/release/farskip")
    parser.add_argument("--launcher", default="", help="for instance: mpirun -np 2")
    parser.add_argument("--device", default="", help="cpu or cuda; default: the configuration's, and auto for eval")
    parser.add_argument("--precision", default="", help="fp32 or bf16; default: the configuration's, and fp32 for eval")
    parser.add_argument("--parallel", type=int, default=1, help="runs at once, whose logs then go to files in --out")
    parser.add_argument("--discard", action="store_true", help="remove the students' weights after their evaluation")
    parser.add_argument("--also", default="", help="another held-out token file prefix, for two more columns")
    parser.add_argument("--teacher-text", default="", help="token file prefix that the teacher has learnt from, for two more rows of table2")
    parser.add_argument("--teacher-wiring", default="", help="default: the teacher's own")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16, help="sequences at a time in evaluation")
    parser.add_argument("--max-sequences", type=int, default=0, help="held-out sequences; 0: all")
    parser.add_argument("--hidden-l2", type=float, default=1.0)
    parser.add_argument("--fold", default="", help="token file prefix to which recipe folds the teacher")
    parser.add_argument("--fold-sequences", type=int, default=256)
    parser.add_argument("--long-steps", type=int, default=1000, help="steps of the runs of recovery")
    parser.add_argument("--global-batch", type=int, default=16, help="of the configuration (table2 varies it)")
    parser.add_argument("--smallest-batch", type=int, default=1, help="micro_batch x ranks")
    parser.add_argument("--batches", type=lambda t: [int(b) for b in t.split(",")], default=[8, 16, 32], help="sweep")
    parser.add_argument("--rates", type=lambda t: t.split(","), default=["5e-4", "1e-3", "2e-3"], help="sweep")
    args = parser.parse_args()
    if args.what != "fig3" and not args.config:
        parser.error("--config is needed")
    if args.what == "recipe" and not args.fold:
        parser.error("--fold is needed")
    args.layers = find_layers(args.teacher)
    {"table1": table1, "table2": table2, "recipe": recipe, "fig3": fig3, "recovery": recovery, "sweep": sweep}[args.what](Study(args))


def find_layers(teacher):
    folder = pathlib.Path(teacher)
    newest = sorted(folder.glob("checkpoints/step-*/config.json"), key=lambda p: int(p.parent.name.split("-")[1]))
    for path in [folder / "config.json", *newest[-1:]]:
        if path.exists():
            return json.loads(path.read_text())["num_hidden_layers"]
    raise SystemExit(f"{teacher}: neither a model folder nor a run with checkpoints")


if __name__ == "__main__":
    main()
