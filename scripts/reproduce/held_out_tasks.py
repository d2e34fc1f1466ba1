#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Multiple-choice tasks from held-out text, for `farskip eval --tasks`.

    farskip data decode PREFIX --tokenizer tokenizer.json --json > pages.jsonl
    held_out_tasks.py pages.jsonl --out DIR [--items 1000] [--seed 1]

PREFIX is a token file of text that the model has not learned from. DIR gets two tasks, whose wrong choices come from the same
page, so that its subject does not give the answer away:

    continuation.jsonl   which of four texts follows the first half of a paragraph?
    word.jsonl           which of four words fills the gap? A choice is the word and what follows it.

The same pages and seed give the same items.
"""
import argparse
import json
import pathlib
import random
import re

from tasks import write_lines

MOST_OF_A_PAGE = 8  # items
FEWEST_WORDS, CHOICE_WORDS, CONTEXT_WORDS = 28, 12, 60
WORD = re.compile(r"[a-z]{4,}")


def paragraphs_of(page):
    """Prose of a page as lists of words: long enough to be cut, and made of letters rather than of signs."""
    found = []
    for part in re.split(r"\n\s*\n", page):
        text = " ".join(part.split())
        letters = sum(c.isalpha() or c == " " for c in text)
        if len(text.split()) >= FEWEST_WORDS and letters >= 0.93 * len(text):
            found.append(text.split())
    return found


def shuffled(context, right, wrong, generator):
    choices = [right, *wrong]
    order = generator.sample(range(len(choices)), len(choices))
    return {"context": " ".join(context), "choices": [" " + " ".join(choices[i]) for i in order], "gold": order.index(0)}


def continuation(paragraphs, number, generator):
    words = paragraphs[number]
    half = len(words) // 2
    others = generator.sample([p for i, p in enumerate(paragraphs) if i != number], 3)
    tail = lambda p: p[len(p) // 2:][:CHOICE_WORDS]
    return shuffled(words[max(0, half - CONTEXT_WORDS):half], tail(words), [tail(p) for p in others], generator)


def gap(paragraphs, number, generator):
    words = paragraphs[number]
    at = [i for i in range(8, len(words) - 4) if WORD.fullmatch(words[i])]
    others = sorted({w for i, p in enumerate(paragraphs) if i != number for w in p if WORD.fullmatch(w)} - set(words))
    if not at or len(others) < 3:
        return None
    place = generator.choice(at)
    after = words[place + 1:][:CHOICE_WORDS]
    return shuffled(words[max(0, place - CONTEXT_WORDS):place], [words[place], *after],
                    [[w, *after] for w in generator.sample(others, 3)], generator)


def make_items(pages, make, count, generator):
    """At most MOST_OF_A_PAGE of each page, from the pages in turn."""
    items = []
    for page in pages:
        paragraphs = paragraphs_of(page)
        if len(paragraphs) < 4:
            continue
        chosen = generator.sample(range(len(paragraphs)), min(MOST_OF_A_PAGE, len(paragraphs)))
        items += filter(None, (make(paragraphs, number, generator) for number in chosen))
    return generator.sample(items, min(count, len(items)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--items", type=int, default=1000, help="at most, of each task")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    pages = [json.loads(line)["text"] for line in args.pages.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    for name, make in (("continuation", continuation), ("word", gap)):
        items = make_items(pages, make, args.items, random.Random(args.seed))
        if not items:
            raise SystemExit(f"{args.pages}: no page has four paragraphs of prose; give more text")
        write_lines(args.out / f"{name}.jsonl", items)
        print(f"{args.out / name}.jsonl: {len(items)} items")


if __name__ == "__main__":
    main()
