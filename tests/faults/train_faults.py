#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What becomes of training on two ranks when something fails, and of the run that goes on afterwards.

    train_faults.py --mpirun MPIRUN --farskip FARSKIP --fixtures FOLDER CASE

Runs one case (the functions named case_*) with the real program, as job_faults.py does with its probe.
"""

import argparse
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from job_faults import Job, expect, wait_until

STEPS = 40
EVERY = 5  # steps between checkpoints


class Run:
    """A run directory and the command that trains in it, the same every time."""

    def __init__(self, programs, folder, name, **changes):
        self.programs = programs
        self.dir = Path(folder) / name
        self.tokens = programs.fixtures / "qwen3_moe" / "tokens"
        self.keys = {"run_dir": self.dir, "init.from": programs.fixtures / "qwen3_moe", **changes}

    def start(self, environment=(), **changes):
        config = self.dir.with_suffix(".yaml")
        config.write_text(f"""
device: cpu
farskip: {{mode: full}}
parallel: {{expert: 2, zero: 1}}
data: {{tokens: [{self.tokens}]}}
train:
  steps: {STEPS}
  sequence_length: 128
  global_batch: 4
  micro_batch: 2
  learning_rate: {{schedule: constant, peak: 1.0e-3}}
checkpoint: {{every: {EVERY}, keep: 100}}
""")
        keys = {**self.keys, **{key.replace("__", "."): value for key, value in changes.items()}}
        job = Job(self.programs, 2, self.programs.farskip,
                  ["train", config] + [f"{key}={value}" for key, value in keys.items()], environment)
        job.tag = f"run_dir={self.dir}"
        return job

    def finish(self, **changes):
        with self.start(**changes) as job:
            job.expect_end(60, 0)
            expect(not job.errors(), f"{job.errors()}")

    def metrics(self):
        """What each step computed: step -> (loss, gradient norm)."""
        try:
            lines = (self.dir / "metrics.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return {}
        steps = [json.loads(line) for line in lines if line.endswith("\n")]
        return {step["step"]: (step["loss"], step["grad_norm"]) for step in steps}

    def wait_for_step(self, step):
        wait_until(lambda: len(self.metrics()) >= step, 60, f"step {step}")

    def wait_for_checkpoint(self, step):
        wait_until(lambda: self.checkpoints()[-1:] >= [step], 60, f"a checkpoint of step {step}")

    def checkpoints(self):
        return sorted(int(path.name[5:]) for path in (self.dir / "checkpoints").glob("step-*")
                      if path.name[5:].isdigit())

    def checkpoint_files(self, step):
        folder = self.dir / "checkpoints" / f"step-{step}"
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def expect_same_training(run, whole):
    expect(list(run.metrics()) == list(range(1, STEPS + 1)), f"steps {list(run.metrics())}")
    for step, numbers in whole.metrics().items():
        expect(run.metrics()[step] == numbers, f"step {step}: {run.metrics()[step]}, not {numbers}")
    ours, theirs = run.checkpoint_files(STEPS), whole.checkpoint_files(STEPS)
    expect(ours.keys() == theirs.keys(), f"{ours.keys()} and {theirs.keys()}")
    for name, content in theirs.items():
        expect(ours[name] == content, f"{name} of the last checkpoint differs")


def whole_run(programs, folder, **changes):
    run = Run(programs, folder, "whole", **changes)
    run.finish()
    expect(len(run.metrics()) == STEPS, "a line for each step")
    return run


def case_killed_and_repeated(programs, folder):
    """Each of the ranks is killed, after a checkpoint; the same command goes on to the bit."""
    whole = whole_run(programs, folder)
    run = Run(programs, folder, "killed")
    for rank, step in ((1, EVERY), (0, 4 * EVERY)):
        with run.start() as job:
            run.wait_for_checkpoint(step)
            os.kill(job.ranks()[rank], signal.SIGKILL)
            job.expect_end(10)
            expect(job.status() != 0, "a status other than 0")
        expect(run.checkpoints()[-1] < STEPS, f"checkpoints {run.checkpoints()}")
    run.finish()
    expect_same_training(run, whole)


def case_stopped_on_request(programs, folder):
    """SIGUSR1 at the launcher, as a batch system sends it: all ranks save the same step."""
    more = {"train.global_batch": 16}  # so that a fast machine is not done before the signal reaches it
    whole = whole_run(programs, folder, **more)
    run = Run(programs, folder, "stopped", **more)
    with run.start() as job:
        run.wait_for_step(2)
        job.mpirun.send_signal(signal.SIGUSR1)
        job.expect_end(30, 75)
        expect(not job.errors(), f"{job.errors()}")
    end = json.loads((run.dir / "exit.json").read_text())
    step = end["step"]
    expect(end["resumable"] is True and 2 <= step < STEPS, f"{end}")
    expect(run.checkpoints()[-1] == step == max(run.metrics()), f"checkpoints {run.checkpoints()}, step {step}")
    manifest = (run.dir / "checkpoints" / f"step-{step}" / "manifest.json").read_text()
    expect(manifest.count("-of-00002.safetensors") >= 4, "shards of both ranks")
    run.finish()
    expect(json.loads((run.dir / "exit.json").read_text())["resumable"] is False, "done")
    expect_same_training(run, whole)


def case_save_fails_on_one_rank(programs, folder):
    """One message; what was saved before is whole, and the next run goes on from there."""
    run = Run(programs, folder, "full-disk")
    run.finish(train__steps=20, checkpoint__every=10)
    with run.start({"FARSKIP_FAULT": "ckpt.shard:1:error"}, train__steps=40, checkpoint__every=10) as job:
        job.expect_end(30, 74)
        job.expect_one_error("rank 1: failure at ckpt.shard")
    expect(run.checkpoints() == [10, 20], f"checkpoints {run.checkpoints()}")
    expect(not list((run.dir / "checkpoints").glob("*.tmp*")), "no half a checkpoint")
    with run.start(train__steps=40, checkpoint__every=10) as job:
        job.expect_end(30, 0)
        expect("resumed at step 20" in job.err.read_text(), "it goes on from step 20")
    expect(run.checkpoints() == [10, 20, 30, 40], f"checkpoints {run.checkpoints()}")


def case_metrics_cannot_be_written(programs, folder):
    """Only rank 0 writes them; the next step runs meanwhile, all ranks save it, and the next run goes on
    from there."""
    whole = whole_run(programs, folder)
    run = Run(programs, folder, "no-metrics")
    with run.start({"FARSKIP_FAULT": "metrics.append:error"}) as job:
        job.expect_end(30, 74)
        job.expect_one_error("rank 0: failure at metrics.append", "the state of step 2 is saved")
    expect(run.checkpoints() == [2], f"checkpoints {run.checkpoints()}")
    run.finish()
    expect(run.metrics() == {step: numbers for step, numbers in whole.metrics().items() if step > 2}, "the other steps")


def case_stopped_in_a_save(programs, folder):
    """Whichever rank it is, and whatever of a checkpoint it is at."""
    for point, rank, wait in (("ckpt.shard", 1, "the files of a checkpoint"), ("ckpt.begin", 0, "all_gather"),
                              ("ckpt.rename", 0, "the end of a checkpoint")):
        run = Run(programs, folder, f"stopped-{point}")
        with run.start({"FARSKIP_FAULT": f"{point}:{rank}:stop"}, parallel__timeout=3, checkpoint__async="false") as job:
            job.expect_end(20, 75)
            job.expect_one_error(f"rank {1 - rank}, step ", "no progress for ", f"waiting in {wait}", "resumed")
        # The launcher lets a stopped rank go on for a moment before it kills it: the rename may still happen.
        expect(run.checkpoints() in ([], [EVERY] if point == "ckpt.rename" else []), f"checkpoints {run.checkpoints()}")


SHAPE = ("{family: qwen3_moe, vocab_size: 300, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
         "num_key_value_heads: 1, num_experts: 2, num_experts_per_tok: 1, moe_intermediate_size: 16}")


def make_long_text(programs, folder):
    """Text that takes a while to tokenize, and a tokenizer for models of SHAPE."""
    text, tokenizer = Path(folder) / "text.txt", Path(folder) / "tokenizer.json"
    text.write_text("".join(f"{n} bottles of beer, {n * n} on the wall\n" for n in range(1_000_000)))
    (Path(folder) / "few.txt").write_text("99 bottles of beer\n" * 100)
    subprocess.run([programs.farskip, "data", "train-tokenizer", Path(folder) / "few.txt", "--vocab-size", "257", "--out",
                    tokenizer], check=True, capture_output=True)
    return text, tokenizer


def wait_until_tokenizing(run):
    wait_until(lambda: list((run.dir.parent / "cache").glob("*.tmp-*")), 60, "the cache that is being written")


def case_stopped_before_the_first_step(programs, folder):
    """While text is tokenized: by each signal, on one rank and on two, training and distilling."""
    text, tokenizer = make_long_text(programs, folder)
    (Path(folder) / "teacher.yaml").write_text(
        f"device: cpu\nmodel: {SHAPE}\ndata: {{text: [{folder}/few.txt], tokenizer: {tokenizer}}}\n"
        f"run_dir: {folder}/teacher\ntrain: {{steps: 1, sequence_length: 16, global_batch: 1}}\n")
    subprocess.run([programs.farskip, "train", Path(folder) / "teacher.yaml"], check=True, capture_output=True)
    for name, ranks, asked in (("train", 1, signal.SIGTERM), ("train", 1, signal.SIGUSR1), ("train", 2, signal.SIGUSR1),
                               ("train", 1, signal.SIGINT),
                               ("distill", 1, signal.SIGTERM), ("distill", 2, signal.SIGUSR1)):
        run = Run(programs, folder, f"{name}-{ranks}-{asked.name}/run")
        run.dir.mkdir(parents=True)
        (run.dir / "exit.json").write_text('{"reason":"done","step":3,"resumable":false}')
        config = run.dir / "c.yaml"
        source = f"model: {SHAPE}" if name == "train" else f"distill: {{teacher: {folder}/teacher}}"
        config.write_text(f"device: cpu\n{source}\ndata: {{text: [{text}], tokenizer: {tokenizer}}}\n")
        launcher = None if ranks > 1 else ["env"]
        job = Job(programs, ranks, programs.farskip, [name, config, f"run_dir={run.dir}", "train.micro_batch=1"],
                  launcher=launcher)
        with job:
            wait_until_tokenizing(run)
            job.mpirun.send_signal(asked)
            job.expect_end(10, 75)
            job.expect_one_error("stopped on request before the first step")
        end = json.loads((run.dir / "exit.json").read_text())
        expect(end == {"reason": "stopped on request", "step": 0, "resumable": True}, f"{end}")
        expect(not list((run.dir.parent / "cache").iterdir()), "no half a cache")


def case_stopped_while_preparing(programs, folder):
    """A rank stops while rank 0 tokenizes: the other one notices after the usual time, not after that of a start."""
    text, tokenizer = make_long_text(programs, folder)
    for rank in (0, 1):
        run = Run(programs, folder, f"stopped-{rank}/run")
        run.dir.mkdir(parents=True)
        config = run.dir / "c.yaml"
        config.write_text(f"device: cpu\nmodel: {SHAPE}\ndata: {{text: [{text}], tokenizer: {tokenizer}}}\n"
                          f"run_dir: {run.dir}\nparallel: {{timeout: 2}}\n")
        with Job(programs, 2, programs.farskip, ["train", config]) as job:
            job.tag = str(config)
            wait_until_tokenizing(run)
            os.kill(job.ranks()[rank], signal.SIGSTOP)
            job.expect_end(12, 75)
            # The launcher ends a stopped rank by SIGTERM, which it may still hear as a request to stop.
            errors = [error for error in job.errors() if "stopped on request" not in error]
            expect(len(errors) == 1 and errors[0].startswith(f"rank {1 - rank}: no progress for ") and
                   "waiting in files that rank 0 prepares" in errors[0], f"{job.errors()}")


def copy_model_with_nan(source, target, tensor_part):
    """A copy of a model folder whose first tensor with `tensor_part` in its name holds a NaN."""
    target.mkdir()
    shutil.copy(source / "config.json", target)
    data = bytearray((source / "model.safetensors").read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    name = sorted(key for key in header if tensor_part in key)[0]
    expect(header[name]["dtype"] == "F32", f"{name} is f32")
    begin = 8 + length + header[name]["data_offsets"][0]
    data[begin:begin + 4] = struct.pack("<f", float("nan"))
    (target / "model.safetensors").write_bytes(data)
    return name


def case_nan_in_one_expert(programs, folder):
    """Only one rank computes with it; all stop at the step, with one message, and nothing is saved."""
    model = Path(folder) / "broken"
    broken = copy_model_with_nan(programs.fixtures / "qwen3_moe", model, ".2.mlp.experts.7")
    run = Run(programs, folder, "nan", **{"init.from": model})
    with run.start() as job:
        job.expect_end(30, 65)
        job.expect_one_error("step 1: the loss is not finite", "samples 0 to 1 of rank 0",
                             f"parameter {broken} (and ", " of rank 1; no update was made", "no step was done")
    expect(run.checkpoints() == [] and run.metrics() == {}, "nothing is left of it")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("mpirun", "farskip"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--fixtures", required=True, type=Path)
    parser.add_argument("case", choices=[n[5:] for n in sorted(globals()) if n.startswith("case_")])
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # started with SIGINT ignored, runs would ignore it too
    try:
        with tempfile.TemporaryDirectory() as folder:
            globals()["case_" + arguments.case](arguments, folder)
    except AssertionError as failed:
        sys.exit(f"FAILED: {failed}")


if __name__ == "__main__":
    main()
