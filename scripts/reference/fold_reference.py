#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The weights that the closed-form fold gives a tiny model in the wiring "full", by NumPy in double.

    fold_reference.py MODEL TOKENS OUT [--sequences 64] [--sequence-length 32]

MODEL is a fixture of the family llama or deepseek_v2, TOKENS the prefix of its token file. Models, wiring and fit are written
here from their equations (docs/distillation.md, "Fold"); nothing is shared with the program. OUT gets each tensor that
changes, under its hub name, in f32.
"""
import argparse
import json
import pathlib

import numpy as np
from safetensors.numpy import load_file, save_file

INPUT_RIDGE, ROWS_OF_COLUMN, HELD_OUT_OF = 1e-6, 3, 16


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


class Model:
    """Sub-blocks on x [B, S, H]; each gives what its last matrix reads and what it adds to the stream."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}

    def norm(self, x, weight, eps=None):
        eps = self.config["rms_norm_eps"] if eps is None else eps
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight

    def layer(self, k, name):
        return self.weights[f"model.layers.{k}.{name}.weight"]

    def rotate(self, x, interleaved):
        """x [B, S, A, D]."""
        half = x.shape[-1] // 2
        frequency = self.config["rope_parameters"]["rope_theta"] ** (-np.arange(half) / half)
        angle = np.arange(x.shape[1])[:, None, None] * frequency
        a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
        out = np.empty_like(x)
        first, second = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
        if interleaved:
            out[..., 0::2], out[..., 1::2] = first, second
        else:
            out[..., :half], out[..., half:] = first, second
        return out

    def heads(self, q, k, v):
        """q, k, v [B, S, A, D]."""
        scores = np.einsum("bsad,btad->bast", q, k) / np.sqrt(q.shape[-1])
        scores[:, :, np.triu(np.ones(scores.shape[-2:], bool), 1)] = -np.inf
        return np.einsum("bast,btad->bsad", softmax(scores), v).reshape(*q.shape[:2], -1)

    def attention(self, k, z):
        c, batch = self.config, z.shape[:2]
        project = lambda name: z @ self.layer(k, f"self_attn.{name}").T
        count = c["num_attention_heads"]
        if "kv_lora_rank" in c:
            rope, nope = c["qk_rope_head_dim"], c["qk_nope_head_dim"]
            q = project("q_proj").reshape(*batch, count, nope + rope)
            q = np.concatenate([q[..., :nope], self.rotate(q[..., nope:], True)], -1)
            latent = project("kv_a_proj_with_mqa")
            shared = self.rotate(latent[..., None, c["kv_lora_rank"]:], True)
            normed = self.norm(latent[..., :c["kv_lora_rank"]], self.layer(k, "self_attn.kv_a_layernorm"), 1e-6)
            kv = (normed @ self.layer(k, "self_attn.kv_b_proj").T).reshape(*batch, count, -1)
            key = np.concatenate([kv[..., :nope], np.repeat(shared, count, 2)], -1)
            inner = self.heads(q, key, kv[..., nope:])
        else:
            split = lambda name: project(name).reshape(*batch, -1, c["head_dim"])
            repeat = lambda x: np.repeat(x, count // c["num_key_value_heads"], 2)
            inner = self.heads(self.rotate(split("q_proj"), False), repeat(self.rotate(split("k_proj"), False)),
                               repeat(split("v_proj")))
        return inner, inner @ self.layer(k, "self_attn.o_proj").T

    def mlp(self, k, z, module="mlp"):
        inner = silu(z @ self.layer(k, f"{module}.gate_proj").T) * (z @ self.layer(k, f"{module}.up_proj").T)
        return inner, inner @ self.layer(k, f"{module}.down_proj").T

    def routed(self, k, z):
        """What experts read is a dict: expert to (mask [B, S], weighted activations, share among the token's experts)."""
        scores = softmax(z @ self.layer(k, "mlp.gate").T)
        chosen = np.argsort(-scores, -1, kind="stable")[..., :self.config["num_experts_per_tok"]]
        total, inner, out = np.take_along_axis(scores, chosen, -1).sum(-1), {}, np.zeros_like(z)
        for e in range(scores.shape[-1]):
            mask = (chosen == e).any(-1)
            activations = self.mlp(k, z[mask], f"mlp.experts.{e}")[0] * scores[mask][:, e:e + 1]
            inner[e] = mask, activations, scores[mask][:, e] / total[mask]
            out[mask] += activations @ self.layer(k, f"mlp.experts.{e}.down_proj").T
        return inner, out


def solve(x, r, ridge):
    gram = x.T @ x
    return np.linalg.solve(gram + ridge * gram.diagonal().mean() * np.eye(len(gram)), x.T @ r)


class Fold:
    """Teacher and student side by side; `full` and `part` as the wiring has them, of the teacher only the stream."""

    def __init__(self, folder):
        self.teacher, self.student = Model(folder), Model(folder)
        self.c, self.changed = self.teacher.config, set()
        self.experts = self.c.get("n_routed_experts", 0)

    def change(self, k, name, change):
        key = f"model.layers.{k}.{name}.weight"
        self.student.weights[key] = self.student.weights[key] + change
        self.changed.add(key)

    def fold_input(self, z_student, z_teacher, k, names):
        rows = lambda z: z[:, 1:].reshape(-1, z.shape[-1])
        d = solve(rows(z_student), rows(z_teacher - z_student), INPUT_RIDGE)
        for name in names:
            self.change(k, name, self.student.layer(k, name) @ d.T)

    def fold_output(self, k, name, inner, out, target, missing):
        """`target`: the teacher's stream; `missing`: that less the student's, without this block."""
        weight = 1 / np.sqrt((target ** 2).mean(-1))
        weight[:, 0] = 0
        rest = (missing - out) * weight[..., None]
        fits = inner if isinstance(inner, dict) else {None: (np.ones(rest.shape[:2], bool), inner, None)}
        for e, (mask, activations, share) in fits.items():
            x = activations.reshape(mask.sum(), -1) * weight[mask][:, None]
            r = rest[mask] if share is None else rest[mask] * share[:, None]
            self.change(k, name if e is None else name.format(e), solve(x, r, ROWS_OF_COLUMN * x.shape[1] / max(len(x), 1)).T)

    def run(self, tokens):
        teacher, student = self.teacher, self.student
        t = part = full = teacher.weights["model.embed_tokens.weight"][tokens]
        rewired = False  # the student's stream is the teacher's so far
        for k in range(self.c["num_hidden_layers"]):
            # Attention reads the stream without the routed output before it.
            norms = [teacher.layer(k, name) for name in ("input_layernorm", "post_attention_layernorm")]
            z_t, z = teacher.norm(t, norms[0]), student.norm(part, norms[0])
            stale = part is not full
            if stale:
                attention = ("q_proj", "k_proj", "v_proj", "kv_a_proj_with_mqa")
                self.fold_input(z, z_t, k, [f"self_attn.{n}" for n in attention
                                            if f"model.layers.{k}.self_attn.{n}.weight" in student.weights])
            rewired |= stale
            h = t + teacher.attention(k, z_t)[1]
            if rewired:
                self.fold_output(k, "self_attn.o_proj", *student.attention(k, z), h, h - full)
            after = full + student.attention(k, z)[1]
            # The MLP reads the stream without this attention.
            is_moe = f"model.layers.{k}.mlp.gate.weight" in student.weights
            z_t, z = teacher.norm(h, norms[1]), student.norm(full, norms[1])
            shared = is_moe and self.c.get("n_shared_experts")
            modules = ["mlp"] if not is_moe else ["mlp.shared_experts"] * bool(shared) + [
                f"mlp.experts.{e}" for e in range(self.experts)]
            self.fold_input(z, z_t, k, ["mlp.gate"] * is_moe + [f"{m}.{n}_proj" for m in modules for n in ("gate", "up")])
            rewired = True
            t, part, full = h, after, after
            blocks = [(lambda m, z: m.mlp(k, z), "mlp.down_proj")]
            if is_moe:
                blocks = [(lambda m, z: m.mlp(k, z, "mlp.shared_experts"), "mlp.shared_experts.down_proj")] * bool(shared) + [
                    (lambda m, z: m.routed(k, z), "mlp.experts.{}.down_proj")]
            for block, name in blocks:
                t = t + block(teacher, z_t)[1]
                self.fold_output(k, name, *block(student, z), t, t - full)
                part, full = full, full + block(student, z)[1]
            if self.experts and not is_moe:  # a dense MLP is missed only where no layer has experts
                part = full
        return {key: student.weights[key].astype(np.float32) for key in sorted(self.changed)}


def read_tokens(prefix, sequences, length):
    tokens = np.fromfile(f"{prefix}.bin", np.uint16).astype(int)
    there = (len(tokens) - 1) // length
    taken = min(there, sequences)
    starts = [i * there // taken * length for i in range(taken) if i % HELD_OUT_OF != HELD_OUT_OF - 1]
    return np.stack([tokens[start:start + length] for start in starts])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("tokens")
    parser.add_argument("out")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--sequence-length", type=int, default=32)
    args = parser.parse_args()
    save_file(Fold(args.model).run(read_tokens(args.tokens, args.sequences, args.sequence_length)), args.out)


if __name__ == "__main__":
    main()
