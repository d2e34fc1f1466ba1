#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""'farskip eval --tasks' beside lm-evaluation-harness on the same items. tasks.sh runs all of it.

    tasks.py make OUT.jsonl [--items 240]             which of four texts follows? from docstrings of the standard library
    tasks.py compare FOLDER OUT.jsonl --out DIR       accuracies and standard errors of both: a table, exit code 1 if one differs
    tasks.py fixture DIR                              tests/fixtures/tasks: a tokenizer, a task, and what the harness makes of it

Needs torch, transformers and lm-eval, and for `compare` the farskip binary. Nothing is fetched.
"""
import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import sysconfig

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

from conversion import table
from documentation_text import keep_docstrings

ROOT = pathlib.Path(__file__).resolve().parents[2]


# Items ---------------------------------------------------------------------------------------------------------------


def paragraphs():
    """Paragraphs of docstrings of the standard library, long enough to be cut in two."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    found = {}
    for path in sorted(library.rglob("*.py")):
        if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.relative_to(library).parts):
            for paragraph in keep_docstrings(path.read_text(encoding="utf-8", errors="replace")).split("\n\n"):
                text = re.sub(r"\s+", " ", paragraph).strip()
                if len(text.split()) >= 16:
                    found[text] = None
    return list(found)


def make_items(texts, count, generator):
    """The last words of a paragraph, or those of another one, after its first. Some contexts end with spaces, which the
    harness gives to the choices; some choices begin within a word; one in fifty has no context."""
    items = []
    for number, text in enumerate(generator.sample(texts, count)):
        at = len(text) // 2
        while number % 7 and text[at] != " ":
            at += 1
        context, right = text[:at], text[at:][:generator.randint(20, 160)]
        if number % 5 == 0:
            moved = len(right) - len(right.lstrip(" "))
            context, right = context + right[:moved] + generator.choice(["", " ", "\n"]), right[moved:]
        if number % 50 == 1:
            context = ""
        choices = [right]
        while len(choices) < 4:
            other = generator.choice(texts)
            begin = other.index(" ", len(other) // 3)
            begin += not right.startswith(" ")
            choices.append(other[begin:][:generator.randint(20, 160)])
        order = generator.sample(range(4), 4)
        items.append({"context": context, "choices": [choices[i] for i in order], "gold": order.index(0)})
    return items


def write_lines(path, items):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def make(args):
    write_lines(args.out, make_items(paragraphs(), args.items, random.Random(args.seed)))


# The harness ---------------------------------------------------------------------------------------------------------


def write_task(path, name, lines):
    """A task of the harness over a local file, whose choices follow their contexts as they are."""
    path.write_text(f"""task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {lines.resolve()}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_target: gold
doc_to_choice: choices
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
""")


def run_harness(folder, tokenizer, lines, out, batch):
    """The harness' results, and the log-likelihoods of the choices of each item."""
    name = lines.stem
    out.mkdir(parents=True, exist_ok=True)
    write_task(out / "task.yaml", name, lines)
    os.environ["HF_DATASETS_CACHE"] = str((out / "datasets").resolve())
    import lm_eval
    from lm_eval.tasks import TaskManager
    results = lm_eval.simple_evaluate(
        model="hf", tasks=[name], task_manager=TaskManager(include_path=str(out), include_defaults=False),
        model_args={"pretrained": str(folder), "tokenizer": str(tokenizer), "dtype": "float32"}, device="cpu", batch_size=batch)
    samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
    likelihoods = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    return results["results"][name], likelihoods


METRICS = {"accuracy": "acc,none", "accuracy_stderr": "acc_stderr,none", "accuracy_norm": "acc_norm,none",
           "accuracy_norm_stderr": "acc_norm_stderr,none"}


def compare(args):
    folder, lines, out = map(pathlib.Path, (args.folder, args.lines, args.out))
    command = [args.farskip, "eval", "--model", folder, "--tasks", lines, "--batch", args.batch, "--json", "--quiet"]
    theirs, _ = run_harness(folder, folder, lines, out / "harness", args.batch)
    rows = [["harness", *(theirs[key] for key in METRICS.values()), len(lines.read_text(encoding="utf-8").splitlines())]]
    for ranks in args.ranks:
        launcher = ["mpirun", "--oversubscribe", "-np", ranks] if ranks > 1 else []
        done = subprocess.run([str(word) for word in launcher + command], check=True, stdout=subprocess.PIPE, text=True)
        ours = json.loads(done.stdout)["tasks"][0]
        rows.append([f"farskip, ranks: {ranks}", *(ours[key] for key in METRICS), ours["samples"]])
    differs = [row[1:] != rows[0][1:] for row in rows]
    text = table(["", *METRICS, "samples", ""],
                 [[*map(str, row), "DIFFERS" if d else "equal"] for row, d in zip(rows, differs)])
    (out / "table.md").write_text(text + "\n")
    print(text)
    return int(any(differs))


# A small task for the tests ------------------------------------------------------------------------------------------


def own_paragraphs():
    """Text of this project's pages, in letters that the small tokenizer has."""
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    text = [re.sub(r"\s+", " ", re.sub(r"[^a-zA-Z .,]", " ", part)) for page in pages for part in page.split("\n\n")]
    return [part.strip() for part in text if len(part.split()) >= 16]


def train_small_tokenizer(out):
    """Of 150 tokens, which the vocabulary of the models in tests/fixtures holds: letters, then words and spaces in them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text + " \u00e9t\u00e9\n  " for text in own_paragraphs()]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=150, initial_alphabet=[], special_tokens=["<|begin|>", "<|endoftext|>"], show_progress=False))
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False}) + "\n")


def small_items():
    """What splitting has to get right: spaces at the end, words cut in two, no context, one that is too long for 256
    positions, equal choices, choices of several lengths and numbers, letters of two bytes."""
    texts = own_paragraphs()
    items = make_items(texts, 12, random.Random(3))
    items += [
        {"context": "The end  ", "choices": ["of the list", " of the list"], "gold": 1},
        {"context": "The end\n\n", "choices": ["is here", "\nis here", "here"], "gold": 0},
        {"context": "the mapp i", "choices": ["ng the", "ng of", "n of the list"], "gold": 2},  # "ing" is a token
        {"context": "", "choices": ["The", " the", "<|begin|>the"], "gold": 1},
        {"context": "In the ", "choices": ["\u00e9t\u00e9", "ete", "\u00e9"], "gold": 0},
        {"context": "one", "choices": [" choice"], "gold": 0},
        {"context": "equal", "choices": [" choices", " choices", " other"], "gold": 0},
        {"context": " ".join(texts[:12])[:1500], "choices": [" and so on", " until the end of the list"], "gold": 1}]
    return items


def fixture(args):
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    train_small_tokenizer(out)
    write_lines(out / "small.jsonl", small_items())
    results = {}
    for model in ("llama", "qwen3_moe"):
        found, likelihoods = run_harness(ROOT / "tests/fixtures" / model, out, out / "small.jsonl", pathlib.Path(args.work) / model, 4)
        results[model] = {**{ours: found[theirs] for ours, theirs in METRICS.items()}, "log_likelihoods": likelihoods}
    import lm_eval
    (out / "harness.json").write_text(json.dumps({"lm_eval": lm_eval.__version__, **results}, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("make")
    command.add_argument("out")
    command.add_argument("--items", type=int, default=240)
    command.add_argument("--seed", type=int, default=1)
    command.set_defaults(run=make)
    command = commands.add_parser("compare")
    command.add_argument("folder")
    command.add_argument("lines")
    command.add_argument("--out", required=True, help="folder for the harness' task, and table.md")
    command.add_argument("--farskip", default=str(ROOT / "build/release/farskip"))
    command.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    command.add_argument("--batch", type=int, default=8)
    command.set_defaults(run=compare)
    command = commands.add_parser("fixture")
    command.add_argument("out")
    command.add_argument("--work", default="runs/tasks-fixture", help="folder for the harness")
    command.set_defaults(run=fixture)
    args = parser.parse_args()
    sys.exit(args.run(args))


if __name__ == "__main__":
    main()
