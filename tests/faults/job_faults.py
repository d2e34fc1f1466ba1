#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What becomes of a job of ranks when something fails: one message, the documented exit code, no process left.

    job_faults.py --mpirun MPIRUN --probe FARSKIP_PROBE --farskip FARSKIP --fixtures FOLDER CASE

Runs one case (the functions named case_*), prints what the job printed, exits 1 if a claim does not hold.
Finds the ranks by a tag in their command lines and signals only those and the mpirun it has started.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ERROR = "farskip: error: "


class Job:
    """One mpirun. Use it in a with block, which leaves no process behind."""

    def __init__(self, programs, num_ranks, program, arguments, environment=(), launcher=None):
        self.tag = f"tag-{uuid.uuid4().hex}"
        self.program = str(program)
        self.folder = tempfile.TemporaryDirectory()
        self.out, self.err = (Path(self.folder.name) / name for name in ("out", "err"))
        line = launcher or [programs.mpirun, "--oversubscribe", "-np", str(num_ranks)]
        line += [self.program] + [self.tag if argument == "TAG" else str(argument) for argument in arguments]
        variables = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                     "OMPI_MCA_mpi_yield_when_idle": "1", **dict(environment)}
        with open(self.out, "w") as out, open(self.err, "w") as err:
            self.mpirun = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                           env={**os.environ, **variables})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in [self.mpirun.pid] * (self.mpirun.poll() is None) + list(self.ranks().values()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.mpirun.wait()
        print(f"--- stdout\n{self.out.read_text()}--- stderr\n{self.err.read_text()}--- status {self.status()}")
        self.folder.cleanup()

    def status(self):
        code = self.mpirun.returncode
        return 128 - code if code is not None and code < 0 else code

    def ranks(self):
        """Rank -> process id of what lives (a stopped process does, a zombie does not)."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.tag.encode() in (folder / "cmdline").read_bytes() and \
                        os.path.samefile(folder / "exe", self.program):
                    variables = (folder / "environ").read_bytes().split(b"\0")
                    rank = [v for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK=")][0]
                    found[int(rank.split(b"=")[1])] = int(folder.name)
            except (OSError, IndexError):
                continue  # it has ended meanwhile
        return found

    def wait_for_step(self, step):
        wait_until(lambda: f"step {step}\n" in self.out.read_text(), 30, f"step {step}")

    def expect_end(self, seconds, status=None):
        """The launcher and all ranks are gone within `seconds`."""
        start = time.monotonic()
        wait_until(lambda: self.mpirun.poll() is not None, seconds, "the end of mpirun")
        wait_until(lambda: not self.ranks(), seconds - (time.monotonic() - start), "the end of the ranks")
        print(f"ended after {time.monotonic() - start:.1f} s")
        if status is not None:
            expect(self.status() == status, f"status {self.status()}, not {status}")

    def errors(self):
        return [line[line.index(ERROR) + len(ERROR):] for line in self.err.read_text().splitlines()
                if ERROR in line]

    def expect_one_error(self, *parts):
        expect(len(self.errors()) == 1, f"{len(self.errors())} errors: {self.errors()}")
        for part in parts:
            expect(part in self.errors()[0], f"'{self.errors()[0]}' does not say '{part}'")


def expect(holds, claim):
    if not holds:
        raise AssertionError(claim)


def wait_until(holds, seconds, what):
    end = time.monotonic() + seconds
    while not holds():
        expect(time.monotonic() < end, f"waited {seconds:.1f} s in vain for {what}")
        time.sleep(0.02)


def start_probe(programs, num_ranks, *, steps=100_000, timeout=0, fail=(), environment=()):
    return Job(programs, num_ranks, programs.probe, ["TAG", steps, timeout, *fail], environment)


def case_good(programs):
    """A job that ends well; what its ranks log; threads."""
    cores = len(os.sched_getaffinity(0))
    unbound = {"OMPI_MCA_hwloc_base_binding_policy": "none",   # Open MPI 4
               "PRTE_MCA_hwloc_default_binding_policy": "none"}  # Open MPI 5
    with start_probe(programs, 3, steps=5, timeout=30, environment=unbound) as job:
        job.expect_end(30, 0)
        out, lines = job.out.read_text(), job.err.read_text().splitlines()
        for rank in range(3):
            expect(f"rank {rank} computes in {max(1, cores // 3)} threads" in out, f"threads of rank {rank}")
        expect(sum("information" in line for line in lines) == 1, "only rank 0 logs information")
        for rank in (1, 2):
            own = [line for line in lines if line.startswith(f"rank {rank}: ")]
            expect(len(own) == 2 and "warning" in own[0] and own[1] == f"rank {rank}: of two lines",
                   f"log of rank {rank}: {own}")
    with start_probe(programs, 2, steps=1, environment={"OMP_NUM_THREADS": "3", **unbound}) as job:
        job.expect_end(30, 0)
        expect("rank 1 computes in 3 threads" in job.out.read_text(), "OMP_NUM_THREADS is kept")


def case_one_rank_throws(programs):
    for rank in (0, 2):
        with start_probe(programs, 3, fail=(rank, 7)) as job:
            job.wait_for_step(6)
            job.expect_end(5, 65)
            job.expect_one_error(f"rank {rank}, step 7: broken on purpose")


def case_all_ranks_throw(programs):
    for how in ("all", "together"):
        with start_probe(programs, 3, fail=(how, 4)) as job:
            job.expect_end(15, 65)
            job.expect_one_error("rank 0, step 4: broken on purpose")


def case_rank_killed(programs):
    with start_probe(programs, 3, timeout=30) as job:
        job.wait_for_step(10)
        os.kill(job.ranks()[1], signal.SIGKILL)
        job.expect_end(10)
        expect(job.status() != 0, "a status other than 0")


def case_launcher_killed(programs):
    """Under a launcher that Open MPI has no connection to (and would not miss), too."""
    with start_probe(programs, 2) as job:
        job.wait_for_step(10)
        os.kill(job.mpirun.pid, signal.SIGKILL)
        job.expect_end(5)
    other = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}
    with Job(programs, 1, programs.probe, ["TAG", 100_000, 0], other, launcher=["sh", "-c", '"$@"; true', "sh"]) as job:
        job.wait_for_step(10)
        os.kill(job.mpirun.pid, signal.SIGKILL)
        job.expect_end(5)


def case_rank_stopped(programs):
    """The others must notice, whichever rank it is; the stopped one goes too."""
    for rank in (0, 1):
        with start_probe(programs, 2, timeout=3) as job:
            job.wait_for_step(10)
            os.kill(job.ranks()[rank], signal.SIGSTOP)
            job.expect_end(12, 75)
            job.expect_one_error(f"rank {1 - rank}, step ", "no progress for ", "waiting in world.all_reduce",
                                 "resumed")


def case_job_suspended(programs):
    """A job that was stopped as a whole for longer than the timeout goes on, even if not all at once."""
    with start_probe(programs, 2, steps=150, timeout=3) as job:
        job.wait_for_step(10)
        ranks = job.ranks()
        for pid in ranks.values():
            os.kill(pid, signal.SIGSTOP)
        time.sleep(5)
        os.kill(ranks[0], signal.SIGCONT)
        time.sleep(1)
        os.kill(ranks[1], signal.SIGCONT)
        job.expect_end(30, 0)
        expect(not job.errors(), f"{job.errors()}")


def case_refused_before_mpi(programs):
    """What every rank finds wrong before MPI starts is said once."""
    with tempfile.TemporaryDirectory() as folder:
        bad = Path(folder) / "bad.yaml"
        bad.write_text("trian: {steps: 3}\n")
        refused = [
            (["train", bad], 64, "trian: unknown key"),
            (["train", bad.with_name("none.yaml")], 66, "none.yaml"),
            (["trian"], 64, "see 'farskip --help'"),
            (["inspect", "x"], 64, "commands for many ranks: train, distill, forward, eval, generate, serve, convert, bench"),
            (["data", "info", "x"], 64, "data info runs in one process, but the launcher started 3"),
        ]
        for arguments, status, message in refused:
            with Job(programs, 3, programs.farskip, arguments) as job:
                job.expect_end(15, status)
                expect(job.err.read_text().count(message) == 1, f"'{message}', once")
                expect(len(job.errors()) == 1, f"{job.errors()}")
        with Job(programs, 3, programs.farskip, ["--version"]) as job:
            job.expect_end(15, 0)
            expect(job.out.read_text().count("farskip 0.") == 1, "the version, once")


def case_foreign_launcher(programs):
    """A launcher that MPI does not know of starts processes which each believe to be alone."""
    places = {"PMI_RANK": "0", "PMI_SIZE": "3"}
    with Job(programs, 1, programs.probe, ["TAG", 5, 1], places, launcher=["env"]) as job:
        job.expect_end(15, 64)
        job.expect_one_error("rank 0: the launcher started 3 processes", "connected 1")


    # One that starts processes without any MPI. Each has the same error, and its first process says it.
    others = [
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, "srun started 4 processes", "--mpi="),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "torchrun started 2 processes", "mpirun"),
    ]
    for places, message, cure in others:
        for arguments in (["train", "none.yaml"], ["eval", "--model", "x", "--data", "y"]):
            with Job(programs, 1, programs.farskip, arguments, places, launcher=["env"]) as job:
                job.expect_end(15, 64)
                job.expect_one_error(message, cure)
    # A batch script with several tasks is one process, and a job that mpirun starts in it is one of MPI's.
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
    with Job(programs, 1, programs.farskip, ["train", "none.yaml"], batch, launcher=["env"]) as job:
        job.expect_end(15, 66)
    with start_probe(programs, 2, steps=2, environment={**batch, "SLURM_STEP_NUM_TASKS": "4"}) as job:
        job.expect_end(30, 0)


def start_differently(programs, folder, first, second):
    """Two ranks with arguments of their own. (Debian 13's mpirun 5.0.7 dies of the syntax for it, "A : B".)"""
    script = Path(folder) / "differently.sh"
    lines = [shlex.join(map(str, [programs.farskip, *arguments])) for arguments in (first, second)]
    script.write_text(f"if [ \"$OMPI_COMM_WORLD_RANK\" = 0 ]; then exec {lines[0]}; else exec {lines[1]}; fi\n")
    return Job(programs, 2, "/bin/sh", [script])


def case_different_requests(programs):
    """Ranks that are asked for different things say what, before they do anything."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "run.yaml"
        config.write_text(f"init: {{from: {programs.fixtures}/qwen3_moe}}\n"
                          f"data: {{tokens: [{programs.fixtures}/qwen3_moe/tokens]}}\nrun_dir: {folder}/run\n"
                          "train: {steps: 2, sequence_length: 32, global_batch: 2, micro_batch: 1}\n")
        train, step = ["train", config], ["bench", "step", config, "--warmup", "0"]
        different = [
            (train, train + ["train.learning_rate.peak=1e-2"],
             "train.learning_rate.peak is 0.001 on rank 0 and 0.01 on rank 1"),
            (train + ["parallel.zero=1"], train, "parallel.zero is 1 on rank 0 and 0 on rank 1"),
            (train, train + ["farskip.mode=mlp"], "farskip.mode is off on rank 0 and mlp on rank 1"),
            (train, train + [f"init.from={programs.fixtures}/qwen3_moe_tied"], "init.from is"),
            (train, step, "command is \"train\" on rank 0 and \"bench step\" on rank 1"),
            (step + ["--steps", "1"], step + ["--steps", "2"], "--steps is 1 on rank 0 and 2 on rank 1"),
        ]
        for first, second, message in different:
            with start_differently(programs, folder, first, second) as job:
                job.expect_end(15, 64)
                job.expect_one_error("rank 0: the ranks of a job have to do the same", message)
        expect(not (Path(folder) / "run").exists(), "nothing was begun")
        # What is wrong on one rank alone is said as well.
        with start_differently(programs, folder, train, train + ["trian=1"]) as job:
            job.expect_end(15, 64)
            job.expect_one_error("rank 1: command line: trian=1: trian: unknown key")


def case_own_exit_code_on_one_rank(programs):
    """Under mpirun -np 1 as without it."""
    with start_probe(programs, 1, fail=(0, 3)) as job:
        job.expect_end(15, 65)
        job.expect_one_error("broken on purpose")
    alone = subprocess.run([programs.probe, "alone", "5", "1", "0", "3"], capture_output=True, text=True)
    expect(alone.returncode == 65 and alone.stderr.count(ERROR + "broken on purpose") == 1, f"{alone}")


def case_eval_on_ranks(programs):
    """Held-out loss and accuracies are those of one process, wherever the experts are; a mistake is said once."""
    model = programs.fixtures / "deepseek_v2"
    tasks = programs.fixtures / "tasks"
    command = ["eval", "--model", model, "--data", model / "tokens", "--sequence-length", "33", "--json", "--quiet",
               "--tasks", tasks / "small.jsonl", "--tokenizer", tasks / "tokenizer.json"]
    alone = subprocess.run([programs.farskip, *map(str, command)], capture_output=True, text=True, check=True)
    wanted = json.loads(alone.stdout)
    for ranks, experts in ((2, 1), (2, 2), (4, 2)):
        with Job(programs, ranks, programs.farskip, [*command, "--expert", experts]) as job:
            job.expect_end(60, 0)
            got = json.loads(job.out.read_text())
            expect(got["tokens"] == wanted["tokens"] and abs(got["loss"] - wanted["loss"]) < 1e-6, f"{got}, {wanted}")
            expect(got["tasks"] == wanted["tasks"], f"{got}, {wanted}")
    with Job(programs, 2, programs.farskip, [*command, "--expert", 3]) as job:
        job.expect_end(30, 64)
        job.expect_one_error("expert is 3")
    with Job(programs, 2, programs.farskip, command[:-2]) as job:
        job.expect_end(30, 66)
        job.expect_one_error("holds no tokenizer.json")
    command[2] = programs.fixtures / "nothing"
    with Job(programs, 2, programs.farskip, command) as job:
        job.expect_end(30, 66)
        job.expect_one_error("nothing: no such folder")


def case_fold_on_ranks(programs):
    """A fold on ranks says what one process says, and one of them writes the model; a mistake is said once."""
    model = programs.fixtures / "deepseek_v2"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)

        def command(name, *more):
            return ["convert", model, out / name, "--farskip", "full", "--fold", model / "tokens", "--fold-sequences", 64,
                    "--sequence-length", 32, "--dtype", "bf16", "--json", "--quiet", *more]

        alone = subprocess.run([programs.farskip, *map(str, command("alone"))], capture_output=True, text=True, check=True)
        wanted = json.loads(alone.stdout)
        with Job(programs, 2, programs.farskip, command("ranks")) as job:
            job.expect_end(60, 0)
            got = json.loads(job.out.read_text())
        expect(len(got["edges"]) == len(wanted["edges"]) and got["tensors"] == wanted["tensors"], f"{got}, {wanted}")
        for key in ("loss_teacher", "loss_before", "loss_after"):
            expect(abs(got[key] - wanted[key]) < 1e-4 * wanted[key], f"{key}: {got[key]}, {wanted[key]}")
        check = subprocess.run([programs.farskip, "inspect", "--verify", str(out / "ranks")], capture_output=True, text=True)
        expect(check.returncode == 0, f"{check}")
        expect(sorted(os.listdir(out / "ranks")) == sorted(os.listdir(out / "alone")), f"{os.listdir(out / 'ranks')}")
        expect(sorted(os.listdir(out)) == ["alone", "ranks"], f"{os.listdir(out)}")
        with Job(programs, 2, programs.farskip, command("alone")) as job:
            job.expect_end(30, 64)
            job.expect_one_error("holds a model already")
        with Job(programs, 2, programs.farskip, [1 if part == 64 else part for part in command("few")]) as job:
            job.expect_end(30, 65)
            job.expect_one_error("1 sequences of 32 tokens for 2 ranks")
        with Job(programs, 2, programs.farskip, ["convert", model, out / "plain"]) as job:
            job.expect_end(30, 64)
            job.expect_one_error("convert without --fold runs in one process")
        expect(sorted(os.listdir(out)) == ["alone", "ranks"], f"{os.listdir(out)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("mpirun", "probe", "farskip"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--fixtures", required=True, type=Path)
    parser.add_argument("case", choices=[n[5:] for n in sorted(globals()) if n.startswith("case_")])
    arguments = parser.parse_args()
    try:
        globals()["case_" + arguments.case](arguments)
    except AssertionError as failed:
        sys.exit(f"FAILED: {failed}")


if __name__ == "__main__":
    main()
