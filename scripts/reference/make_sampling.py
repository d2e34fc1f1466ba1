#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Probabilities of the next token by transformers' logits processors, which the op `sample` must have.

    make_sampling.py OUT.safetensors

Row r: logits [V], seen [V] (1: the id stands in the text), options {temperature, top_p, min_p, repetition_penalty,
top_k} and what transformers makes of them in f64, in the order of its generate().
"""
import itertools
import sys

import torch
from safetensors.torch import save_file
from transformers.generation import logits_process as lp

VOCAB = 37


def probabilities(logits, seen, temperature, top_p, min_p, penalty, top_k):
    ids = seen.nonzero().T
    processors = [lp.RepetitionPenaltyLogitsProcessor(penalty), lp.TemperatureLogitsWarper(temperature)]
    if top_k > 0:
        processors.append(lp.TopKLogitsWarper(top_k))
    processors.append(lp.TopPLogitsWarper(top_p))
    processors.append(lp.MinPLogitsWarper(min_p))
    scores = logits.double()[None]
    for processor in processors:
        scores = processor(ids, scores)
    return torch.softmax(scores, dim=-1)[0]


def main():
    torch.manual_seed(1)
    options = list(itertools.product([0.6, 1.0, 2.0], [0.5, 0.9, 1.0], [0.0, 0.1], [0.8, 1.0, 1.5], [0, 3, 20]))
    options = [options[i] for i in torch.randperm(len(options))[:40]]
    logits = 1.5 * torch.randn(len(options), VOCAB)
    seen = (torch.rand(len(options), VOCAB) < 0.3).int()
    rows = [probabilities(x, s, *o) for x, s, o in zip(logits, seen, options)]
    save_file({"logits": logits, "seen": seen, "options": torch.tensor(options, dtype=torch.float32),
               "probabilities": torch.stack(rows)}, sys.argv[1])


if __name__ == "__main__":
    main()
