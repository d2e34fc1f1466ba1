#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Steps of AdamW whose moments are bf16, rounded at random by a counter, which the op `adamw` must have.

    make_low_moments.py OUT.safetensors

In NumPy alone, from the formulas of docs/numerics.md: p [N], gradients [STEPS, N], and after each step p [STEPS, N]
and the bits of both moments [STEPS, N] (I32, of which the lower 16 are the bf16 number).
"""
import sys

import numpy as np
from safetensors.numpy import save_file

STEPS, N = 20, 203
SEED, STREAM, FIRST = 0x1234_5678_9ABC, 0xDEAD_BEEF, 13
BETA1, BETA2, EPS, DECAY, RATE = 0.9, 0.95, 1e-8, 0.1, 1e-2


def philox(counter, key):
    """Philox4x32-10 of Salmon et al. (SC 2011): four words of 32 bits."""
    c, k = [int(x) for x in counter], [int(x) for x in key]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def random_words(step):
    words = []
    for position in range(FIRST, FIRST + N):
        block = philox([position // 4, (position // 4) >> 32, STREAM, step], [SEED & 0xFFFFFFFF, SEED >> 32])
        words.append(block[position % 4])
    return np.array(words, np.uint32)


def round_at_random(x, random16):
    return (x.astype(np.float32).view(np.uint32) + random16) >> 16


def widen(low):
    return (low << 16).astype(np.uint32).view(np.float32)


def main():
    rng = np.random.default_rng(1)
    start = rng.standard_normal(N).astype(np.float32)
    gradients = (rng.standard_normal((STEPS, N)) * 10.0 ** rng.uniform(-6, 1, N)).astype(np.float32)
    p = start.astype(np.float64)
    m = v = np.zeros(N, np.uint32)
    after = {"p": [], "m": [], "v": []}
    for step in range(1, STEPS + 1):
        g = gradients[step - 1].astype(np.float64)
        new_m = BETA1 * widen(m).astype(np.float64) + (1 - BETA1) * g
        new_v = BETA2 * widen(v).astype(np.float64) + (1 - BETA2) * g * g
        c1, c2 = 1 - BETA1**step, 1 - BETA2**step
        p = p * (1 - RATE * DECAY) - RATE * (new_m / c1) / (np.sqrt(new_v / c2) + EPS)
        words = random_words(step)
        m, v = round_at_random(new_m, words & 0xFFFF), round_at_random(new_v, words >> 16)
        for name, value in (("p", p.astype(np.float32)), ("m", m.astype(np.int32)), ("v", v.astype(np.int32))):
            after[name].append(value)
    save_file({"start": start, "gradients": gradients, **{k: np.stack(x) for k, x in after.items()}}, sys.argv[1])


if __name__ == "__main__":
    main()
