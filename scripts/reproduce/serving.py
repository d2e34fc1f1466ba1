#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""'farskip serve' measured by its clients. serving.sh runs all of it.

    serving.py MODEL ITEMS.jsonl --out DIR [--only accuracy | load] [--clients 64] [--requests 256] [--new 64] [more]

accuracy: lm-evaluation-harness (local-completions) against the server, beside `farskip eval --tasks` on the same items.
load: tokens/s of clients that stream, beside `farskip generate --prompts` on the same work, in turns, medians; for clients
also the time to the first token and between tokens. Exits with 1 if an accuracy differs, or a text.
"""
import argparse
import json
import os
import pathlib
import queue
import re
import statistics
import subprocess
import sys
import threading
import time

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/serve"))

from conversion import table  # noqa: E402
from server import Server  # noqa: E402
from tasks import METRICS, write_task  # noqa: E402


def compare_accuracies(args):
    lines, out = pathlib.Path(args.lines), args.out / "harness"
    out.mkdir(parents=True, exist_ok=True)
    write_task(out / "task.yaml", lines.stem, lines)
    os.environ["HF_DATASETS_CACHE"] = str((out / "datasets").resolve())
    with Server(args.farskip, args.model, *args.options) as server:
        import lm_eval
        from lm_eval.tasks import TaskManager
        theirs = lm_eval.simple_evaluate(
            model="local-completions", tasks=[lines.stem],
            task_manager=TaskManager(include_path=str(out), include_defaults=False),
            model_args={"model": server.model, "base_url": f"http://127.0.0.1:{server.port}/v1/completions",
                        "tokenizer_backend": "huggingface", "tokenizer": str(args.model), "max_length": args.max_length,
                        "num_concurrent": 4}, batch_size=4)["results"][lines.stem]
    done = subprocess.run([args.farskip, "eval", "--model", args.model, "--tasks", lines, "--json", "--quiet"],
                          check=True, stdout=subprocess.PIPE, text=True)
    ours = json.loads(done.stdout)["tasks"][0]
    rows = [["harness over HTTP", *(theirs[key] for key in METRICS.values())],
            ["farskip eval --tasks", *(ours[key] for key in METRICS)]]
    differs = rows[0][1:] != rows[1][1:]
    return table(["", *METRICS, ""], [[*map(str, row), "DIFFERS" if differs else "equal"] for row in rows]), differs


def load_requests(args):
    """Beginnings of the items, of mixed lengths; every text has `new` tokens."""
    contexts = [json.loads(line)["context"] for line in pathlib.Path(args.lines).read_text().splitlines()]
    contexts = [context for context in contexts if len(context) > 20]
    return [{"prompt": contexts[i % len(contexts)][:40 + i * 37 % 300], "max_tokens": args.new, "seed": i,
             "temperature": 0.0} for i in range(args.requests)]


def run_offline(args, requests):
    path = args.out / "requests.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    done = subprocess.run([args.farskip, "generate", "--model", args.model, "--prompts", path, "--ignore-eos", "--batch",
                           str(args.clients), *args.options], check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True)
    seconds = float(re.search(r"in ([0-9.]+) s", done.stderr).group(1))  # without loading the model
    return [json.loads(line)["text"] for line in done.stdout.splitlines()], seconds


def run_clients(args, server, requests):
    """Texts, seconds, and for each text the times of its events."""
    waiting, texts, times = queue.Queue(), [None] * len(requests), [None] * len(requests)
    for i in range(len(requests)):
        waiting.put(i)

    def client():
        while True:
            try:
                i = waiting.get_nowait()
            except queue.Empty:
                return
            times[i], text = [time.monotonic()], ""
            for event in server.stream(**requests[i]):
                if event != "[DONE]":
                    times[i].append(time.monotonic())
                    text += json.loads(event)["choices"][0]["text"]
            texts[i] = text

    threads = [threading.Thread(target=client) for _ in range(args.clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return texts, time.monotonic() - start, times


def percentiles(values):
    values = sorted(values)
    return [1e3 * values[min(len(values) - 1, int(share * len(values)))] for share in (0.5, 0.99)]


def measure_load(args):
    requests, offline, served, firsts, betweens, differs = load_requests(args), [], [], [], [], False
    options = ["--batch", args.clients, "--ignore-eos", *args.options]
    with Server(args.farskip, args.model, *options) as server:
        run_clients(args, server, requests[:args.clients])  # makes plans
        for _ in range(args.rounds):
            expected, seconds = run_offline(args, requests)
            offline.append(seconds)
            texts, seconds, times = run_clients(args, server, requests)
            served.append(seconds)
            differs |= texts != expected
            firsts += [t[1] - t[0] for t in times]
            betweens += [later - earlier for t in times for earlier, later in zip(t[1:], t[2:])]
    tokens = args.requests * args.new
    rates = [tokens / statistics.median(seconds) for seconds in (offline, served)]
    ratio = statistics.median(o / s for o, s in zip(offline, served))
    rows = [[args.clients, args.requests, args.new, f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{ratio:.3f}",
             *(f"{value:.0f}" for value in percentiles(firsts) + percentiles(betweens)), "DIFFERS" if differs else "equal"]]
    return table(["clients", "texts", "new tokens", "generate, tokens/s", "served", "ratio", "first token, ms", "p99",
                  "between, ms", "p99", "texts"], [[str(x) for x in row] for row in rows]), differs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("lines")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--farskip", default=str(ROOT / "build/release/farskip"))
    parser.add_argument("--only", choices=["accuracy", "load"])
    parser.add_argument("--max-length", type=int, default=8192, help="the model's max_position_embeddings")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args, args.options = parser.parse_known_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for name, measure in (("accuracy", compare_accuracies), ("load", measure_load)):
        if args.only in (None, name):
            text, differs = measure(args)
            (args.out / f"{name}.md").write_text(text + "\n")
            print(text)
            failed |= differs
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
