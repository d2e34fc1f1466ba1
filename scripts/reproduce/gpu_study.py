#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Conversion of a teacher that is trained here, on one GPU: Tables 1 and 2, Fig. 3 and recovery by tokens.

    scripts/reproduce/gpu_study.py teacher    --data DATA --out runs/gpu_study --results RESULTS --seconds 480
    scripts/reproduce/gpu_study.py conversion --data DATA --out runs/gpu_study --results RESULTS --seconds 500
    scripts/reproduce/gpu_study.py scratch    --data DATA --out runs/scratch --results RESULTS --seconds 500
    scripts/reproduce/gpu_study.py recipe     --data DATA --out runs/scratch --results RESULTS --seconds 500

scratch trains standard and FarSkip wiring from scratch in pairs of equal seeds; its first standard run may serve as the teacher.
recipe is conversion by the newer means: the fold, a normalised hidden loss.

Each command ends within its seconds and goes on where an earlier call of it has stopped. DATA holds the token files
pretrain, pretrain-validation, distill and distill-validation, and tokenizer.json (docs/distillation.md says how they are
made). --out keeps weights and runs; --results gets what is worth keeping: tables, their numbers, and the runs' metrics
in one archive. `--device cpu --precision fp32` with small overrides (--set-teacher, --set) tries it out without a GPU.
"""
import argparse
import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import time

from conversion import last_of_each, read_metrics, table
from from_scratch import losses_table

HERE = pathlib.Path(__file__).resolve().parent
CONFIGS = HERE.parent.parent / "configs" / "gpu_study"
STARTED = time.monotonic()


class TimeIsUp(Exception):
    pass


def run(args, command, log=None):
    """Ends the command, and what it has started, when the time is up."""
    print("+", " ".join(map(str, command)), file=sys.stderr, flush=True)
    with open(log, "a") if log else open(os.devnull) as stream:
        process = subprocess.Popen([str(c) for c in command], start_new_session=True,
                                   stdout=stream if log else None, stderr=subprocess.STDOUT if log else None)
        try:
            code = process.wait(max(1.0, args.seconds - (time.monotonic() - STARTED)))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # training saves a checkpoint first
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            raise TimeIsUp from None
    if code != 0:
        if log:
            print("".join(pathlib.Path(log).read_text(errors="replace").splitlines(keepends=True)[-30:]), file=sys.stderr)
        raise SystemExit(f"{command[0]} {command[1]}: exit code {code}")


def data_overrides(args, kind):
    return [f"data.tokens=[{args.data}/{kind}]", f"data.validation=[{args.data}/pretrain-validation]",
            f"data.tokenizer={args.data}/tokenizer.json", f"device={args.device}", f"precision={args.precision}"]


def train_teacher(args):
    """As many steps as fit into the time, by the rate of a few; at most --passes over the tokens."""
    def train(log, *overrides):
        settings = last_of_each([*data_overrides(args, "pretrain"), *args.set_teacher, *overrides])
        run(args, [args.farskip, "train", CONFIGS / "teacher.yaml", *settings], args.out / log)

    plan = args.out / "plan.json"
    if not plan.exists():
        probe = args.out / "probe"
        train("probe.log", f"run_dir={probe}", f"train.steps={args.probe_steps}", "train.validate_every=0",
              "checkpoint.every=0")
        steps = read_metrics(probe)
        seconds = statistics.median(m["step_seconds"] for m in steps[len(steps) // 2:])
        per_step = steps[-1]["tokens"] // len(steps)
        info = json.loads(subprocess.run([args.farskip, "data", "info", f"{args.data}/pretrain", "--json"], check=True,
                                         stdout=subprocess.PIPE, text=True).stdout)
        left = args.seconds - (time.monotonic() - STARTED)
        most = int(args.passes * info["tokens"] / per_step)
        # A tenth is for validation; starting, saving and the evaluations after it take part of the rest.
        fits = int(0.9 * (left - args.reserve) / seconds)
        plan.write_text(json.dumps({"steps": max(args.probe_steps, min(most, fits)), "tokens_a_step": per_step,
                                    "distinct_tokens": info["tokens"], "probe_step_seconds": seconds}) + "\n")
        shutil.rmtree(probe)
    steps = json.loads(plan.read_text())["steps"]
    print(plan.read_text(), flush=True)
    teacher = args.out / "teacher"
    train("teacher.log", f"run_dir={teacher}", f"train.steps={steps}")
    rows = [m for m in read_metrics(teacher) if "validation_loss" in m]
    lines = [f"teacher: {steps} steps, {rows[-1]['tokens'] / 1e6:.1f}M tokens, "
             f"{json.loads(plan.read_text())['distinct_tokens'] / 1e6:.1f}M of them distinct", "",
             "| tokens | held-out loss |", "|---|---|"]
    lines += [f"| {m['tokens'] / 1e6:.1f}M | {m['validation_loss']:.4f} |" for m in rows]
    (args.out / "teacher.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def train_pairs(args):
    """Both wirings of each seed, --parallel runs at once; the first standard run is the teacher of what follows."""
    def train(name, mode, seed):
        settings = last_of_each([*data_overrides(args, "pretrain"), f"train.steps={args.steps}", *args.set_teacher, f"seed={seed}",
                                 f"farskip.mode={mode}", f"run_dir={args.out / name}"])
        run(args, [args.farskip, "train", CONFIGS / "teacher.yaml", *settings], args.out / f"{name}.log")

    seeds = [int(seed) for seed in args.seeds.split(",")]
    runs = [(f"{mode}-seed{seed}", mode, seed) for seed in seeds for mode in ("off", "full")]
    with concurrent.futures.ThreadPoolExecutor(args.parallel) as pool:
        for done in [pool.submit(train, *each) for each in runs]:
            done.result()
    rows = {name: [m for m in read_metrics(args.out / name) if "validation_loss" in m] for name, _, _ in runs}
    pairs = [{mode: rows[f"{mode}-seed{seed}"][-1]["validation_loss"] for mode in ("off", "full")} for seed in seeds]
    steps = read_metrics(args.out / runs[0][0])
    text = f"{len(steps)} steps, {steps[-1]['tokens'] / 1e6:.1f}M tokens\n\n{losses_table(pairs)}\n\n"
    looks = [m["tokens"] for m in rows[runs[0][0]]]
    curves = [[f"{tokens / 1e6:.1f}M", *(f"{rows[name][i]['validation_loss']:.4f}" for name, _, _ in runs)]
              for i, tokens in enumerate(looks)]
    text += table(["tokens", *rows], curves)
    (args.out / "from_scratch.md").write_text(text + "\n")
    print(text, flush=True)
    if not (args.out / "teacher").exists():
        (args.out / "teacher").symlink_to(runs[0][0])
        (args.out / "plan.json").write_text(json.dumps({"steps": len(steps), "tokens_a_step": steps[-1]["tokens"] // len(steps)}) + "\n")


def convert(args):
    plan = json.loads((args.out / "plan.json").read_text())
    batch = args.batch
    steps = max(4, round(args.share * plan["steps"] * plan["tokens_a_step"] / (batch * args.sequence_length)))
    base = ["--teacher", args.out / "teacher", "--validation", f"{args.data}/pretrain-validation",
            "--farskip", args.farskip, "--device", args.device, "--precision", args.precision, "--parallel",
            args.parallel, "--sequence-length", args.sequence_length, "--batch", batch]

    def distills(out, *more, overrides=()):
        settings = [*data_overrides(args, "distill"), f"train.steps={steps}", f"train.global_batch={batch}",
                    f"train.micro_batch={batch}", f"train.validate_every={max(1, steps // 4)}", *args.set, *overrides]
        return [*base, "--config", CONFIGS / "distill.yaml", "--discard", "--out", args.out / out, *more,
                "--global-batch", batch, "--smallest-batch", batch, "--set", *settings]

    def make(what, *arguments):
        run(args, [sys.executable, HERE / "conversion.py", what, *arguments])
        collect(args)

    def rate_of(loss):
        make("sweep", *distills(f"sweep-{loss}", "--batches", batch, "--rates", args.rates, "--seeds", 1,
                                 overrides=[f"distill.loss={loss}"]))
        chosen = json.loads((args.out / f"sweep-{loss}" / "sweep.json").read_text())["chosen"]
        return f"train.learning_rate.peak={chosen['train.learning_rate.peak']}"

    if args.what == "recipe":
        make("recipe", *distills("recipe", "--seeds", args.seeds, "--also", f"{args.data}/distill-validation", "--teacher-text",
                                  f"{args.data}/pretrain", "--fold", f"{args.data}/pretrain", "--fold-sequences", args.fold_sequences,
                                  overrides=[rate_of("kl")]))
        return
    if not (args.out / "fig3" / "fig3.json").exists():
        make("fig3", *base, "--out", args.out / "fig3")
    rates = {loss: rate_of(loss) for loss in ("kl", "sft")}
    tables = ["--also", f"{args.data}/distill-validation", "--teacher-text", f"{args.data}/pretrain", "--seeds", args.seeds, "--hidden-l2", args.hidden_l2,
              "--long-steps", args.long_factor * steps, "--set-sft", rates["sft"]]
    for what in ("table1", "recovery", "table2"):
        make(what, *distills("students", *tables, overrides=[rates["kl"]]))


def collect(args):
    """Tables and numbers as files, and the metrics of all runs in one archive."""
    if not args.results:
        return
    args.results.mkdir(parents=True, exist_ok=True)
    with tarfile.open(args.results / "study.tar.gz", "w:gz") as archive:
        for path in sorted(args.out.rglob("*")):
            small = path.suffix in (".md", ".json", ".jsonl", ".log") or path.name == "config.yaml"
            if path.is_file() and small and "checkpoints" not in path.parts and "best" not in path.parts:
                with contextlib.suppress(FileNotFoundError):  # another student that runs has renamed it
                    archive.add(path, path.relative_to(args.out))
    with open(args.results / "tables.md", "w") as out:
        for path in sorted(args.out.rglob("*.md")):
            if "checkpoints" not in path.parts:
                out.write(f"## {path.relative_to(args.out)}\n\n{path.read_text()}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["teacher", "conversion", "scratch", "recipe"])
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/gpu_study"))
    parser.add_argument("--results", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=480, help="this call takes no longer")
    parser.add_argument("--farskip", default="build/release/farskip")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--steps", type=int, default=2750, help="of each run from scratch: 90M tokens")
    parser.add_argument("--fold-sequences", type=int, default=512)
    parser.add_argument("--passes", type=float, default=4, help="over the teacher's tokens, at most")
    parser.add_argument("--probe-steps", type=int, default=40)
    parser.add_argument("--reserve", type=float, default=45, help="seconds of a call that are not for training steps")
    parser.add_argument("--share", type=float, default=0.01, help="of the teacher's tokens, for distillation")
    parser.add_argument("--long-factor", type=int, default=3, help="how much longer the runs of recovery are")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--rates", default="2.5e-4,5e-4,1e-3,2e-3", help="learning rates of the sweeps")
    parser.add_argument("--hidden-l2", type=float, default=1.0)
    parser.add_argument("--parallel", type=int, default=3, help="students at once")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a step of distillation")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--set-teacher", nargs="*", default=[], help="more key.path=value for farskip train")
    parser.add_argument("--set", nargs="*", default=[], help="more key.path=value for farskip distill")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        {"teacher": train_teacher, "conversion": convert, "scratch": train_pairs, "recipe": convert}[args.what](args)
    except TimeIsUp:
        print(f"the {args.seconds:.0f} s are up; the same command goes on from here", flush=True)
    finally:
        collect(args)
    print(f"took {time.monotonic() - STARTED:.0f} s", flush=True)


if __name__ == "__main__":
    main()
