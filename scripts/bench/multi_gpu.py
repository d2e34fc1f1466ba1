#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The parts of multi_gpu.sh. Needs nothing but the standard library, and the farskip binary.

checks: layouts against one rank, overlapped against blocking bit for bit, resuming on other ranks, a rank killed in a step.
small: four layers of DeepSeek-V2-Lite, eight experts a GPU, on 1, 2, 4, … GPUs, with NCCL and with a PyTorch peer.
models: DeepSeek-V2-Lite and Qwen3-30B-A3B whole, six layers of DeepSeek-V3's shape; two wirings, blocking and overlapped.
prefill: the time to the first token of Llama 4 Scout and DeepSeek-V2, matrices and experts over all GPUs.
conversion: a step of Llama 4 Scout's distillation, experts, shared experts, embedding and head frozen.

Exit code 1 if a result is wrong or a run failed.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PARTS = ("checks", "small", "models", "prefill", "conversion")
TINY = ["model.num_hidden_layers=3", "train.sequence_length=64", "train.micro_batch=1"]  # of a rehearsal
os.environ.update(NCCL_NVLS_ENABLE="0", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")


class Host:
    """Runs commands on the ranks of this host, and keeps count of what failed. Logs go to `out`."""

    def __init__(self, args):
        self.args, self.out, self.failed = args, args.out, 0
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = "cpu" if args.rehearse else "cuda"

    def command(self, ranks, words):
        words = [str(word) for word in words]
        launcher = ["mpirun", "--bind-to", "none", *(["--oversubscribe"] if self.args.rehearse else []), "-np", str(ranks)]
        return (launcher if ranks > 1 else []) + words

    def fail(self, name, why):
        self.failed += 1
        print(f"FAILED  {name}: {why}", flush=True)

    def check(self, name, good, figure=""):
        if good:
            print(f"ok      {name} {figure}", flush=True)
        else:
            self.fail(name, figure)

    def run(self, name, ranks, words, seconds=170, env=None):
        """The JSON lines of a run, none where it failed."""
        log = self.out / f"{name}.log"
        with open(log, "w") as errors:
            try:
                done = subprocess.run(self.command(ranks, words), stdout=subprocess.PIPE, stderr=errors, text=True, timeout=seconds,
                                      env={**os.environ, **(env or {})}, cwd=ROOT)
            except subprocess.TimeoutExpired:
                self.fail(name, f"not done after {seconds} s ({log})")
                return []
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        (self.out / f"{name}.json").write_text(done.stdout)
        if done.returncode != 0 or not rows:
            self.fail(name, f"exit code {done.returncode} ({log})")
            return []
        return rows

    def bench(self, name, ranks, kind, config, overrides, options=(), **more):
        words = [self.args.farskip, "bench", kind, config, *overrides, f"device={self.device}", *options, "--json", "--quiet"]
        rows = self.run(name, ranks, words, **more)
        return rows if kind in ("prefill", "decode") else rows[-1] if rows else None

    def plan(self, name, ranks, config, overrides, options=()):
        words = [self.args.farskip, "plan", config, *overrides, "--ranks", ranks, "--gpu", self.args.gpu, *options, "--json",
                 "--quiet"]
        rows = self.run(f"plan_{name}", 1, words)
        return rows if "--inference" in options else rows[-1] if rows else None


def table(title, header, rows):
    if rows:
        print(f"\n## {title}\n\n| {' | '.join(header)} |\n{'|---' * len(header)}|")
        for row in rows:
            print(f"| {' | '.join(map(str, row))} |", flush=True)


def milliseconds(row, key="step_seconds"):
    return f"{1e3 * row[key]:.1f}" if row else "-"


def ratio(row, other, key="step_seconds"):
    return f"{row[key] / other[key]:.3f}x" if row and other else "-"


# ---- checks ----

def layouts(ranks):
    """Each way in which expert, data and tensor ranks mix: name, overrides."""
    def of(expert, tensor, zero=1):
        return [f"parallel.expert={expert}", f"parallel.tensor={tensor}", f"parallel.zero={zero}"]
    found = {"data": of(1, 1), "expert": of(ranks, 1), "expert, ZeRO 0": of(ranks, 1, 0), "expert, ZeRO 2": of(ranks, 1, 2),
             "data, ZeRO 3": of(1, 1, 3), "tensor": of(ranks, ranks), "tensor, experts cut": of(1, ranks)}
    if ranks > 2:
        found |= {"expert x data": of(ranks // 2, 1), "tensor x data": of(2, 2), "tensor x data, experts cut": of(1, 2)}
    return found


def check_layouts(host, ranks):
    config = ROOT / "configs/bench/overlap.yaml"
    model = [f"model.n_routed_experts={max(8, ranks)}", "train.micro_batch=2", "train.global_batch=16",
             *(TINY[:2] if host.args.rehearse else [])]
    steps = ["--steps", 4, "--warmup", 0]
    words = [*model, "parallel.expert=1", "parallel.zero=0"]
    one = host.run("losses_cpu", 1, [host.args.farskip, "bench", "step", config, *words, "device=cpu", *steps, "--json", "--quiet"])
    want = one[-1]["losses"] if one else []
    for name, layout in {"one rank": ["parallel.expert=1"], **layouts(ranks)}.items():
        n, file = 1 if name == "one rank" else ranks, name.replace(",", "").replace(" ", "_")
        got = host.bench(f"losses_{file}", n, "step", config, [*model, *layout], steps)
        if got:
            worst = max((abs(a - b) / abs(a) for a, b in zip(want, got["losses"])), default=1)
            host.check(f"losses, {name}", len(want) >= 4 and worst < 1e-5, f"{worst:.1e} apart")
        if n > 1:
            for mode in ("off", "full"):
                both = host.bench(f"bits_{file}_{mode}", n, "overlap", config, [*model, *layout, f"farskip.mode={mode}"],
                                  ["--steps", 1, "--warmup", 1])
                if both:
                    host.check(f"overlapped and blocking, {name}, {mode}", both["identical"], "equal bits")


SMALL_RUN = """
farskip: {mode: full}
parallel: {zero: 1}
data: {tokens: [tests/fixtures/qwen3_moe/tokens]}
init: {from: tests/fixtures/qwen3_moe}
train:
  sequence_length: 64
  global_batch: 8
  micro_batch: 1
  learning_rate: {schedule: constant, peak: 1.0e-3}
checkpoint: {every: 4}
"""


def losses(folder):
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def children(pid):
    return [int(path.name) for path in pathlib.Path("/proc").iterdir() if path.name.isdigit()
            and f"PPid:\t{pid}\n" in (path / "status").read_text()]


def check_runs(host, ranks):
    config = host.out / "small.yaml"
    config.write_text(SMALL_RUN)

    def words(folder, *overrides):
        return [host.args.farskip, "train", config, f"run_dir={folder}", f"device={host.device}", *overrides]

    def train(n, folder, *overrides):
        with open(host.out / "train.log", "a") as log:
            return subprocess.run(host.command(n, words(folder, *overrides)), stdout=log, stderr=log, cwd=ROOT, timeout=170).returncode

    def compare(name, whole, part, steps, bound):
        want, got = losses(whole), losses(part)
        worst = max((abs(want[s] - got[s]) for s in want if s in got), default=1)
        host.check(name, len(want) == steps and want.keys() == got.keys() and worst < bound, f"{worst:.1e} apart")

    expert = ["parallel.expert=2"]
    others = {"one": (1, ["parallel.expert=1"]), "tensor ranks": (2, ["parallel.tensor=2", "parallel.expert=2"])}
    # In bf16 a rank has only its own rows of fp32 weights, and the others' are put together for the checkpoint.
    for precision, bound in [("fp32", 1e-5), ("bf16", 2e-3)]:
        if precision == "bf16" and host.args.rehearse:
            continue  # of GPUs
        whole = host.out / f"whole_{precision}"
        train(ranks, whole, *expert, f"precision={precision}", "train.steps=8")
        for name, (n, layout) in others.items():
            part = host.out / f"part_{n}_{precision}"
            train(ranks, part, *expert, f"precision={precision}", "train.steps=4")
            train(n, part, *layout, f"precision={precision}", "train.steps=8")
            compare(f"saved on {ranks}, resumed on {name}, {precision}", whole, part, 8, bound)

    folder, long = host.out / "killed", [*expert, "train.steps=100000", "checkpoint.every=10"]
    with open(host.out / "killed.log", "w") as log:
        job = subprocess.Popen(host.command(ranks, words(folder, *long)), stdout=log, stderr=log, cwd=ROOT)
        deadline = time.monotonic() + 90
        while max(losses(folder), default=0) < 20 and time.monotonic() < deadline and job.poll() is None:
            time.sleep(0.2)
        processes = sorted(children(job.pid))
        if len(processes) < ranks:
            host.fail("a rank killed", f"{len(processes)} ranks run")
            job.terminate()
            return
        os.kill(processes[-1], signal.SIGKILL)
        begin = time.monotonic()
        try:
            job.wait(timeout=30)
            host.check("a rank killed inside a step", job.returncode != 0, f"all gone after {time.monotonic() - begin:.1f} s")
        except subprocess.TimeoutExpired:
            host.fail("a rank killed inside a step", "the others are there after 30 s")
            job.kill()
    last = max(losses(folder), default=0) // 10 * 10
    host.check("resumed after it", train(ranks, folder, *expert, f"train.steps={last + 10}") == 0
               and max(losses(folder), default=0) == last + 10)


def checks(host, ranks):
    check_layouts(host, ranks)
    check_runs(host, ranks)
    tests = pathlib.Path(host.args.farskip).parent / "test_gpu"
    if not host.args.rehearse and tests.exists():
        with open(host.out / "test_gpu.log", "w") as log:
            host.check("test_gpu", subprocess.run([tests], stdout=log, stderr=log, cwd=ROOT).returncode == 0, "passed")


# ---- training steps ----

def wirings(host, name, ranks, config, overrides, steps):
    """Both wirings, blocking and overlapped: a row each, beside its prediction."""
    plan = host.plan(name, ranks, config, overrides)
    for mode, wiring in [("off", "standard"), ("full", "FarSkip")]:
        for overlap in ("false", "true"):
            key = f"step_seconds_{'farskip' if mode == 'full' else 'standard'}{'' if overlap == 'true' else '_blocking'}"
            step = None
            if not host.args.predict:
                step = host.bench(f"{name}_{mode}_{overlap}", ranks, "step", config,
                                  [*overrides, f"farskip.mode={mode}", f"schedule.overlap={overlap}"], ["--steps", steps])
            memory = step and max(step.get("device_used_bytes", 0), step.get("peak_memory_bytes", 0))
            yield [name, ranks, f"{wiring}, {'overlapped' if overlap == 'true' else 'blocking'}", milliseconds(step),
                   milliseconds(step, "step_seconds_p99"), milliseconds(plan, key),
                   f"{step['tokens_per_second'] / ranks:.0f}" if step else "-", f"{memory / 2**30:.1f}" if step else "-",
                   f"{plan['peak_memory_bytes'] / 2**30:.1f}" if plan else "-"]


STEP_HEADER = ["model", "GPUs", "step", "ms", "p99", "predicted", "tokens/s a GPU", "GiB", "planned"]


def hiding(host, name, ranks, config, overrides):
    """How much of its transports a step of two micro-batches hides, FarSkip and standard wiring."""
    for mode in ("off", "full"):
        r = host.bench(f"hiding_{name}_{mode}", ranks, "overlap", config, [*overrides, f"farskip.mode={mode}"],
                       ["--steps", 3, "--warmup", 1])
        if r:
            yield [name, ranks, mode, *(f"{r[d]['hidden_fraction']:.1%}" for d in ("forward", "backward", "total")),
                   *(f"{r[d]['eta']:.3f}" for d in ("forward", "backward")), milliseconds(r, "step_seconds_blocking"),
                   milliseconds(r, "step_seconds_overlapped"), f"{r['total']['sigma']:.3f}",
                   "same" if r["identical"] else "DIFFER"]
            if not r["identical"]:
                host.fail(name, "overlapped and blocking differ")


HIDING_HEADER = ["model", "GPUs", "wiring", "hidden forward", "backward", "all", "eta forward", "backward", "blocking ms",
                 "overlapped ms", "sigma", "bits"]


def peer(host, name, ranks, config, overrides):
    python = os.environ.get("PEER_PYTHON", "python3")
    if host.args.rehearse or subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode != 0:
        return None
    rows = host.run(f"peer_{name}", ranks, [python, "scripts/bench/torch_step_gpu.py", config, *overrides, "--steps", 10, "--json"])
    return rows[-1] if rows else None


def small(host, ranks):
    config, steps = ROOT / "configs/bench/gpu_v2_lite.yaml", 3 if host.args.rehearse else 10
    rows, hidden, scaling, first = [], [], [], None
    n = 1
    while n <= ranks:
        batch = 1 if host.args.rehearse else 4
        overrides = [f"parallel.expert={n}", f"model.n_routed_experts={8 * n}", f"train.global_batch={batch * n}",
                     "schedule.routed_rows_memory=9300MB"]
        if host.args.rehearse:
            overrides += [*TINY, "model.hidden_size=64", "model.intermediate_size=64", "model.moe_intermediate_size=32",
                          "model.vocab_size=512", "precision=fp32"]
        if n == ranks and n > 1:
            rows += wirings(host, "small", n, config, overrides, steps)
            if not host.args.predict:
                twice = [word for word in overrides if not word.startswith("train.global_batch")] + [f"train.global_batch={2 * batch * n}"]
                hidden += hiding(host, "small", n, config, twice)
                if not host.args.rehearse:
                    nccl = host.bench("small_nccl", n, "step", config, [*overrides, "farskip.mode=full", "parallel.gpu_transport=nccl"],
                                      ["--steps", steps])
                    theirs = peer(host, "small", n, config, [word for word in overrides if not word.startswith("schedule")])
                    for what, r in [("FarSkip, overlapped, NCCL", nccl), ("PyTorch, compiled", theirs)]:
                        rows.append(["small", n, what, milliseconds(r), milliseconds(r, "step_seconds_p99"), "-",
                                     f"{r['tokens_per_second'] / n:.0f}" if r else "-", "-", "-"])
        plan = host.plan(f"scaling_{n}", n, config, [*overrides, "farskip.mode=full"])
        step = None
        if not host.args.predict:
            step = host.bench(f"scaling_{n}", n, "step", config, [*overrides, "farskip.mode=full"], ["--steps", steps])
        first = first or (step, plan)
        scaling.append([n, milliseconds(step), milliseconds(plan, "step_seconds_farskip"), ratio(first[0], step),
                        ratio(first[1], plan, "step_seconds_farskip")])
        n *= 2
    table("Four layers of DeepSeek-V2-Lite, 8 experts and 4 x 4,096 tokens a GPU", STEP_HEADER, rows)
    table("The same, two micro-batches", HIDING_HEADER, hidden)
    table("Weak scaling of it (FarSkip, overlapped)", ["GPUs", "ms", "predicted", "one GPU's time over this", "predicted"], scaling)


def models(host, ranks):
    rows, hidden = [], []
    for name, more in [("deepseek_v2_lite", []), ("qwen3_30b_a3b", ["train.optimizer.moments=bf16"]),
                       ("v3_like_6_layers", ["train.optimizer.moments=bf16", "parallel.zero=2"])]:
        config = ROOT / f"configs/models/{name}.yaml"
        overrides = [f"parallel.expert={ranks}", f"train.global_batch={ranks}", "schedule.recompute=auto",
                     f"schedule.memory={host.args.memory}", *more]
        if host.args.rehearse:
            if name != "deepseek_v2_lite":
                continue  # the shapes differ, not the commands
            overrides = [f"parallel.expert={ranks}", f"train.global_batch={ranks}", *TINY, "precision=fp32", "model.vocab_size=512",
                         "model.hidden_size=64", "model.intermediate_size=64", "model.moe_intermediate_size=32"]
        rows += wirings(host, name, ranks, config, overrides, 3 if host.args.rehearse else 8)
        if not host.args.predict:
            twice = [word for word in overrides if not word.startswith("train.global_batch")] + [f"train.global_batch={2 * ranks}"]
            hidden += hiding(host, name, ranks, config, twice)
    table("Whole models, a sequence a GPU", STEP_HEADER, rows)
    table("The same, two micro-batches", HIDING_HEADER, hidden)


# ---- inference and conversion ----

def prefill(host, ranks):
    rows = []
    for name in ("llama4_scout", "deepseek_v2"):
        config = ROOT / f"configs/models/{name}.yaml"
        overrides = [f"parallel.tensor={ranks}", f"parallel.expert={ranks}", "parallel.zero=0", "train.global_batch=1024"]
        lengths, requests = ("64", "1") if host.args.rehearse else ("512,1024,2048", "1,16")
        if host.args.rehearse:
            if name != "deepseek_v2":
                continue
            overrides += ["model.num_hidden_layers=2", "model.vocab_size=512", "precision=fp32", "model.hidden_size=64",
                          "model.intermediate_size=64", "model.moe_intermediate_size=32", "model.q_lora_rank=32", "model.kv_lora_rank=32"]
        options = ["--requests", requests, "--lengths", lengths]
        key = lambda r: (r["length"], r["requests"], r["wiring"], r["schedule"])  # noqa: E731
        plan = host.plan(f"prefill_{name}", ranks, config, overrides, ["--inference", *options, "--batches", 1])
        predicted = {key(r): r for r in plan or [] if r["run"] == "prefill"}
        measured = {}
        if not host.args.predict:
            measured = {key(r): r for r in host.bench(f"prefill_{name}", ranks, "prefill", config, overrides,
                                                      [*options, "--repetitions", 5], seconds=300) or []}
            if not all(r["identical"] for r in measured.values()):
                host.fail(name, "logits of overlapped and blocking runs differ")
        for which, of in [("measured", measured), ("predicted", predicted)]:
            for length, texts in sorted({k[:2] for k in of}):
                blocking, standard, farskip = (of.get((length, texts, *kind)) for kind in
                                               [("off", "blocking"), ("off", "overlapped"), ("full", "overlapped")])
                rows.append([name, f"{texts} x {length}", which, *(milliseconds(r, "seconds") for r in (blocking, standard, farskip)),
                             f"{farskip['hidden_fraction']:.1%}", ratio(blocking, farskip, "seconds"),
                             ratio(standard, farskip, "seconds")])
    table(f"Time to the first token over {ranks} GPUs, ms", ["model", "texts", "", "standard, blocking", "standard, scheduled",
                                                           "FarSkip", "hidden", "over blocking", "over scheduled"], rows)


def hub_config(config, overrides):
    """The model section of a run configuration as a config.json: its keys are the hub's."""
    text, inside, found = (ROOT / config).read_text(), False, {}
    for line in text.splitlines():
        if not line.startswith(" "):
            inside = line.startswith("model:")
        elif inside:
            key, value = line.strip().split(": ", 1)
            if value.startswith("{"):
                pairs = (pair.split(": ") for pair in value.strip("{}").split(", "))
                found[key] = {k: json.loads(v) if v[0].isdigit() else v for k, v in pairs}
            else:
                found[key] = json.loads(value) if value[0].isdigit() or value in ("true", "false", "null") else value
    found |= dict(overrides)
    found["model_type"] = found.pop("family")
    return found


def conversion(host, ranks):
    config, teacher = ROOT / "configs/models/llama4_scout.yaml", host.out / "scout"
    shrunk = {"num_hidden_layers": 4, "hidden_size": 80, "intermediate_size": 64, "intermediate_size_mlp": 64, "vocab_size": 512,
              "head_dim": 16, "num_attention_heads": 8} if host.args.rehearse else {}
    teacher.mkdir(exist_ok=True)
    (teacher / "config.json").write_text(json.dumps(hub_config(config, shrunk), indent=1))
    overrides = [f"distill.teacher={teacher}", "distill.freeze=[experts, shared_experts, embedding, head]",
                 f"train.sequence_length={64 if host.args.rehearse else 4096}",
                 f"parallel.expert={ranks}", f"train.global_batch={ranks}", "train.optimizer.moments=bf16", "parallel.zero=1",
                 "schedule.recompute=full", *(f"model.{key}={value}" for key, value in shrunk.items())]
    if host.args.rehearse:
        overrides.append("precision=fp32")
    plan = host.plan("conversion", ranks, config, overrides)
    step = None if host.args.predict else host.bench("conversion", ranks, "step", config, overrides, ["--steps", 5, "--warmup", 1])
    memory = step and max(step.get("device_used_bytes", 0), step.get("peak_memory_bytes", 0))
    table("A step of Llama 4 Scout's conversion, experts frozen", ["GPUs", "ms", "predicted", "GiB", "planned", "losses"],
          [[ranks, milliseconds(step), milliseconds(plan, "step_seconds_farskip"), f"{memory / 2**30:.1f}" if step else "-",
            f"{plan['peak_memory_bytes'] / 2**30:.1f}" if plan else "-",
            ", ".join(f"{x:.3f}" for x in step["losses"]) if step else "-"]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, between commas")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/multi_gpu")
    parser.add_argument("--farskip", default=str(ROOT / "build/release/farskip"))
    parser.add_argument("--ranks", type=int, default=0, help="default: the GPUs of this host")
    parser.add_argument("--gpu", default="h200", help="whose rates predictions take")
    parser.add_argument("--memory", default="130GiB", help="of a GPU, for training")
    parser.add_argument("--predict", action="store_true", help="plans only")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes between CPU ranks")
    args = parser.parse_args()
    args.out = args.out.resolve()
    unknown = set(args.only.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--only names {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not args.predict and not args.rehearse and not args.ranks:
        listed = shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "--list-gpus"], stdout=subprocess.PIPE, text=True)
        args.ranks = len(listed.stdout.splitlines()) if listed else 0
        if args.ranks < 2:
            print(f"multi_gpu: {args.ranks} GPUs here; two or more are needed", file=sys.stderr)
            sys.exit(77)
    ranks = args.ranks or 8
    host = Host(args)
    for part in PARTS:
        if part in args.only.split(",") and not (part == "checks" and args.predict):
            print(f"\n== {part}", flush=True)
            globals()[part](host, ranks)
    sys.exit(1 if host.failed else 0)


if __name__ == "__main__":
    main()
