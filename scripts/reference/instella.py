# SPDX-License-Identifier: Apache-2.0
"""A small model of Instella-MoE's shape in plain PyTorch, written from its description and not from other
code: latent attention with a sigmoid gate of what attention reads, experts chosen by sigmoid scores and a bias,
FarSkip wiring by the config's own keys. Its parts have the names and the calls of transformers' modules, so
that make_reference.py can wire them as it wires those."""

import json
import math
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from torch import nn

ARCHITECTURE = "InstellaMoEForCausalLM"


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def yarn_mscale(factor, mscale):
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class Rotary(nn.Module):
    """Per pair and position the angle, as a complex number of length `length`. YaRN, section 3.2: pairs that turn
    more than beta_fast times over the original context keep their frequency, those that turn less than beta_slow
    times are slowed by the factor, those between are blended by index."""

    def __init__(self, c):
        super().__init__()
        rope, dim = c["rope_parameters"], c["qk_rope_head_dim"]
        frequencies = rope["rope_theta"] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        self.length = 1.0
        if rope["rope_type"] == "yarn":
            def pair_turning(turns):
                wave = rope["original_max_position_embeddings"] / (2 * math.pi * turns)
                return dim * math.log(wave) / (2 * math.log(rope["rope_theta"]))

            low = max(math.floor(pair_turning(rope["beta_fast"])), 0)
            high = min(math.ceil(pair_turning(rope["beta_slow"])), dim - 1)
            slowed = ((torch.arange(dim // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
            frequencies = frequencies * (1 - slowed) + frequencies / rope["factor"] * slowed
            self.length = (yarn_mscale(rope["factor"], rope["mscale"])
                           / yarn_mscale(rope["factor"], rope["mscale_all_dim"]))
        self.frequencies = frequencies

    def forward(self, x, position_ids):
        angles = position_ids[0, :, None].double() * self.frequencies
        return torch.polar(torch.full_like(angles, self.length), angles).to(torch.complex64)  # [S, pairs]


def rotate(x_BAxSxD, turns_SxP):
    """Pairs of neighbours."""
    pairs = torch.view_as_complex(x_BAxSxD.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns_SxP).flatten(-2)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, hidden, heads = c, c["hidden_size"], c["num_attention_heads"]
        nope, rope, value, latent = (c[k] for k in (
            "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"))
        linear = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)
        self.q_proj = linear(hidden, heads * (nope + rope))
        self.kv_a_proj_with_mqa = linear(hidden, latent + rope)
        self.kv_a_layernorm = Norm(latent, 1e-6)
        self.kv_b_proj = linear(latent, heads * (nope + value))
        self.gate_proj = linear(hidden, heads * value)
        self.o_proj = linear(heads * value, hidden)
        settings = c["rope_parameters"]
        mscale = yarn_mscale(settings.get("factor", 1.0), settings.get("mscale_all_dim", 0.0))
        self.scale = (nope + rope) ** -0.5 * mscale ** 2

    def forward(self, hidden_states, attention_mask, position_embeddings):
        c, x = self.c, hidden_states
        heads, nope, rope = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        by_head = lambda t: t.unflatten(-1, (heads, -1)).transpose(1, 2)
        q = by_head(self.q_proj(x))
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([c["kv_lora_rank"], rope], -1)
        kv = by_head(self.kv_b_proj(self.kv_a_layernorm(latent)))
        k_nope, v = kv.split([nope, c["v_head_dim"]], -1)
        k_rope = rotate(k_rope[:, None], position_embeddings).expand(-1, heads, -1, -1)
        q = torch.cat([q[..., :nope], rotate(q[..., nope:], position_embeddings)], -1)
        k = torch.cat([k_nope, k_rope], -1)
        weights = torch.softmax(q @ k.transpose(-1, -2) * self.scale + attention_mask, -1)
        out = (weights @ v).transpose(1, 2).flatten(-2)
        return (self.o_proj(out * torch.sigmoid(self.gate_proj(x))),)


class Mlp(nn.Module):
    def __init__(self, hidden, size):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, size, bias=False)
        self.up_proj = nn.Linear(hidden, size, bias=False)
        self.down_proj = nn.Linear(size, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.weight = nn.Parameter(torch.empty(c["n_routed_experts"], c["hidden_size"]))
        self.register_buffer("e_score_correction_bias", torch.zeros(c["n_routed_experts"]))

    def forward(self, x_TH):
        logits = x_TH @ self.weight.T
        scores = torch.sigmoid(logits)
        experts = (scores + self.e_score_correction_bias).topk(self.c["num_experts_per_tok"]).indices
        weights = scores.gather(1, experts)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.c["routed_scaling_factor"]
        return logits, weights, experts


class Experts(nn.ModuleList):
    def forward(self, x_TH, experts_TK, weights_TK):
        out = torch.zeros_like(x_TH)
        for e, expert in enumerate(self):
            weight_T = (weights_TK * (experts_TK == e)).sum(-1)
            rows = weight_T.nonzero()[:, 0]
            out = out.index_add(0, rows, expert(x_TH[rows]) * weight_T[rows, None])
        return out


class SparseMlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        hidden, size = c["hidden_size"], c["moe_intermediate_size"]
        self.gate = Router(c)
        self.experts = Experts(Mlp(hidden, size) for _ in range(c["n_routed_experts"]))
        self.shared_experts = Mlp(hidden, size * c["n_shared_experts"])


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        sparse = index >= c["first_k_dense_replace"]
        self.mlp = SparseMlp(c) if sparse else Mlp(c["hidden_size"], c["intermediate_size"])


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.model.layers = nn.ModuleList(Layer(c, k) for k in range(c["num_hidden_layers"]))
        self.model.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.model.rotary_emb = Rotary(c)
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        self.config = SimpleNamespace(vocab_size=c["vocab_size"])

    def save_pretrained(self, folder):
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()},
                  folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.c, indent=2) + "\n")


def load(folder):
    model = Model(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()
