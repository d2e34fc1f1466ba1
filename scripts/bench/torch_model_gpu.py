# SPDX-License-Identifier: Apache-2.0
"""The model of torch_step_gpu.py: DeepSeek-V2's shape in pieces that are compiled one by one.

Letters: B batch, S sequence, T = B S tokens, H hidden, N heads, E experts, K top-k, R = T K routed rows,
I expert width, V vocabulary.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from torch_step import rotate


def rms_norm(x, weight, eps):
    if not torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def linear(x, weight):
    return F.linear(x, weight.to(x.dtype))


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def weighted_swiglu(gate_up, weight_R1):
    return swiglu(gate_up) * weight_R1.to(gate_up.dtype)


class Gather(torch.autograd.Function):
    """x[index], where each row of x is taken K times and inverse says where to: the gradient is a gather too,
    which is faster than adding rows atomically."""

    @staticmethod
    def forward(ctx, x, index, inverse, top_k):
        ctx.save_for_backward(inverse)
        ctx.top_k = top_k
        return x[index]

    @staticmethod
    def backward(ctx, grad):
        (inverse,) = ctx.saved_tensors
        rows = grad[inverse]
        if ctx.top_k > 1:
            rows = rows.view(-1, ctx.top_k, grad.shape[-1]).sum(1)
        return rows, None, None, None


class AllToAll(torch.autograd.Function):
    """Rows to and from all ranks; the gradient goes the other way."""

    @staticmethod
    def forward(ctx, x, send, receive):
        ctx.send, ctx.receive = send, receive
        return exchange_rows(x, send, receive)

    @staticmethod
    def backward(ctx, grad):
        return exchange_rows(grad, ctx.receive, ctx.send), None, None


def exchange_rows(x, send, receive):
    out = x.new_empty(sum(receive), x.shape[-1])
    dist.all_to_all_single(out, x.contiguous(), receive, send)
    return out


def grouped_product(x_RK, weight_ENK, ends_E):
    """Rows up to ends[0] with the first matrix, the next with the second and so on."""
    weight_ENK = weight_ENK.to(x_RK.dtype)
    if x_RK.is_cuda:
        return torch._grouped_mm(x_RK, weight_ENK.transpose(-2, -1), offs=ends_E)
    starts = [0, *ends_E.tolist()]
    return torch.cat([x_RK[a:b] @ w.T for w, a, b in zip(weight_ENK, starts, starts[1:])])


class Layer(nn.Module):
    """One transformer layer in pieces, each of which is compiled on its own; see compile_pieces."""

    def __init__(self, c, index, ranks):
        super().__init__()
        self.heads, self.nope, self.rope, self.value = (
            c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim)
        self.latent, self.eps, self.ranks = c.kv_lora_rank, c.rms_norm_eps, ranks
        self.is_moe = index >= c.first_k_dense_replace
        hidden, width = c.hidden_size, self.nope + self.rope
        self.make(attention_norm=(hidden,), q=(self.heads * width, hidden), kv_a=(self.latent + self.rope, hidden),
                  kv_norm=(self.latent,), kv_b=(self.heads * (self.nope + self.value), self.latent),
                  o=(hidden, self.heads * self.value), mlp_norm=(hidden,))
        mlp_width = c.intermediate_size
        if self.is_moe:
            self.top_k, self.scale, self.experts = (
                c.num_experts_per_tok, c.routed_scaling_factor, c.n_routed_experts)
            self.renormalise = c.norm_topk_prob
            local, expert_width = self.experts // ranks, c.moe_intermediate_size
            mlp_width = expert_width * c.n_shared_experts
            self.make(router=(self.experts, hidden), experts_up=(local, 2 * expert_width, hidden),
                      experts_down=(local, hidden, expert_width))
        self.make(up=(2 * mlp_width, hidden), down=(hidden, mlp_width))
        self.activate, self.weighted_activate = swiglu, weighted_swiglu

    def make(self, **shapes):
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape)))

    def attention_inputs(self, x_BSH, cos, sin):
        b, s, _ = x_BSH.shape
        x_BSH = rms_norm(x_BSH, self.attention_norm, self.eps)
        q = linear(x_BSH, self.q).view(b, s, self.heads, -1)
        q_nope, q_rope = q.split([self.nope, self.rope], -1)
        latent, k_rope = linear(x_BSH, self.kv_a).split([self.latent, self.rope], -1)
        kv = linear(rms_norm(latent, self.kv_norm, 1e-6), self.kv_b).view(b, s, self.heads, -1)
        k_nope, v = kv.split([self.nope, self.value], -1)
        q_rope = rotate(q_rope, cos, sin).to(q.dtype)
        k_rope = rotate(k_rope[:, :, None], cos, sin).to(q.dtype)
        return (torch.cat([q_nope, q_rope], -1),
                torch.cat([k_nope, k_rope.expand(-1, -1, self.heads, -1)], -1), v)

    def after_attention(self, x_BSH, out_BSH):
        """Residual, norm and the part of the feed-forward that all tokens share."""
        x_BSH = x_BSH + linear(out_BSH, self.o)
        normed = rms_norm(x_BSH, self.mlp_norm, self.eps)
        return x_BSH + linear(swiglu(linear(normed, self.up)), self.down), normed

    def dense_tail(self, x_BSH, out_BSH):
        return self.after_attention(x_BSH, out_BSH)[0]

    def moe_head(self, x_BSH, out_BSH):
        """Also routes: (base, rows by expert, their weights, order, its inverse, end of each expert's rows)."""
        base, normed = self.after_attention(x_BSH, out_BSH)
        x_TH = normed.flatten(0, 1)
        score_TE = F.linear(x_TH.float(), self.router.float()).softmax(-1)
        weight_TK, expert_TK = score_TE.topk(self.top_k, -1)
        if self.renormalise:
            weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
        expert_R, order_R = expert_TK.flatten().sort(stable=True)
        inverse_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R), device=x_TH.device))
        ends_E = torch.searchsorted(expert_R, torch.arange(self.experts, device=x_TH.device), right=True).int()
        rows_RH = Gather.apply(x_TH, order_R // self.top_k, inverse_R, self.top_k)
        return base, rows_RH, (weight_TK * self.scale).view(-1, 1), order_R, inverse_R, ends_E

    def local_experts(self, rows_RH, weight_R1, order_R, inverse_R, ends_E):
        """All experts are here. Weights are applied before the second product, whose output is then not kept."""
        weight_R1 = Gather.apply(weight_R1, order_R, inverse_R, 1)
        gate_up = grouped_product(rows_RH, self.experts_up, ends_E)
        return grouped_product(self.weighted_activate(gate_up, weight_R1), self.experts_down, ends_E)

    def remote_experts(self, rows_RH, ends_E):
        """Rows go to the ranks of their experts and come back in the same order."""
        counts = ends_E.diff(prepend=ends_E.new_zeros(1))
        received = torch.empty_like(counts)
        dist.all_to_all_single(received, counts)
        by_rank = received.view(self.ranks, -1)
        send, receive = torch.stack([counts.view(self.ranks, -1).sum(1), by_rank.sum(1)]).tolist()
        rows = AllToAll.apply(rows_RH, send, receive)
        local = torch.arange(by_rank.shape[1], device=rows.device).repeat(self.ranks)
        order = local.repeat_interleave(received, output_size=sum(receive)).argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        ends = by_rank.sum(0).cumsum(0).int()
        gate_up = grouped_product(Gather.apply(rows, order, inverse, 1), self.experts_up, ends)
        rows = grouped_product(self.activate(gate_up), self.experts_down, ends)
        return AllToAll.apply(Gather.apply(rows, inverse, order, 1), receive, send)

    def combine(self, base_BSH, rows_RH, order_R, inverse_R):
        routed = Gather.apply(rows_RH, inverse_R, order_R, 1).view(-1, self.top_k, rows_RH.shape[-1])
        return base_BSH + routed.sum(1).view_as(base_BSH)

    def weighted_combine(self, base_BSH, rows_RH, weight_R1, order_R, inverse_R):
        routed = Gather.apply(rows_RH, inverse_R, order_R, 1) * weight_R1.to(rows_RH.dtype)
        return base_BSH + routed.view(-1, self.top_k, rows_RH.shape[-1]).sum(1).view_as(base_BSH)

    def forward(self, x_BSH, cos, sin):
        q, k, v = (part.transpose(1, 2) for part in self.attention_inputs(x_BSH, cos, sin))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        if not self.is_moe:
            return self.dense_tail(x_BSH, out)
        base, rows, weight, order, inverse, ends = self.moe_head(x_BSH, out)
        if self.ranks == 1:
            return self.combine(base, self.local_experts(rows, weight, order, inverse, ends), order, inverse)
        return self.weighted_combine(base, self.remote_experts(rows, ends), weight, order, inverse)


def logits_gradient(logits, target_T, count):
    """Sum of the cross-entropies and the gradient of their mean over `count` tokens."""
    log_probs = F.log_softmax(logits.float(), -1)
    hot = target_T[:, None] == torch.arange(logits.shape[-1], device=logits.device)
    loss = -torch.where(hot, log_probs, 0.0).sum()
    return loss, ((log_probs.exp() - hot.float()) / count).to(logits.dtype)


class ChunkedHeadLoss(torch.autograd.Function):
    """Mean cross-entropy of x W^T, a chunk of tokens at a time, with the gradients made on the way."""

    @staticmethod
    def forward(ctx, x_TH, weight_VH, target_T, chunk, gradient):
        w_VH = weight_VH.to(x_TH.dtype)
        total = torch.zeros((), device=x_TH.device)
        dx_TH, dweight_VH = torch.empty_like(x_TH), torch.zeros_like(w_VH)
        for x, target, dx in zip(x_TH.split(chunk), target_T.split(chunk), dx_TH.split(chunk)):
            loss, dlogits = gradient(x @ w_VH.T, target, len(x_TH))
            total += loss
            torch.mm(dlogits, w_VH, out=dx)
            dweight_VH.addmm_(dlogits.T, x)
        ctx.save_for_backward(dx_TH, dweight_VH.to(weight_VH.dtype))
        return total / len(x_TH)

    @staticmethod
    def backward(ctx, upstream):
        dx_TH, dweight_VH = ctx.saved_tensors
        return dx_TH.mul_(upstream), dweight_VH.mul_(upstream), None, None, None


class Model(nn.Module):
    def __init__(self, c, ranks, dtype, head_chunk):
        super().__init__()
        self.config, self.dtype, self.head_chunk = c, dtype, head_chunk
        self.embedding = nn.Parameter(torch.empty(c.vocab_size, c.hidden_size))
        self.layers = nn.ModuleList(Layer(c, k, ranks) for k in range(c.num_hidden_layers))
        self.norm = nn.Parameter(torch.empty(c.hidden_size))
        self.head = nn.Parameter(torch.empty(c.vocab_size, c.hidden_size))
        self.logits_gradient = logits_gradient

    def final_norm(self, x_TH):
        return rms_norm(x_TH, self.norm, self.config.rms_norm_eps)

    def whole_loss(self, x_TH, target_T):
        return F.cross_entropy(linear(self.final_norm(x_TH), self.head).float(), target_T)

    def rotations(self, length, device):
        c = self.config
        frequency = c.rope_theta ** -(torch.arange(0, c.qk_rope_head_dim, 2, device=device) / c.qk_rope_head_dim)
        angle = torch.arange(length, device=device)[:, None, None] * frequency
        return angle.cos(), angle.sin()

    def forward(self, tokens_BS, target_BS):
        cos, sin = self.rotations(tokens_BS.shape[1], tokens_BS.device)
        x = F.embedding(tokens_BS, self.embedding).to(self.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        x, target = x.flatten(0, 1), target_BS.flatten()
        if self.head_chunk == 0:
            return self.whole_loss(x, target)
        return ChunkedHeadLoss.apply(self.final_norm(x), self.head, target, self.head_chunk, self.logits_gradient)


def is_expert(name):
    return ".experts_" in name


@torch.no_grad()
def initialise(model, seed, rank, ranks):
    """Every layout starts from the same weights."""
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.dim() < 2:
            parameter.fill_(1.0)
            continue
        generator = torch.Generator(parameter.device).manual_seed(1_000_003 * seed + number)
        parts = ranks if is_expert(name) else 1
        whole = torch.empty(parts * parameter.shape[0], *parameter.shape[1:], device=parameter.device)
        whole.normal_(std=model.config.initializer_range, generator=generator)
        parameter.copy_(whole.chunk(parts)[rank if parts > 1 else 0])


def compile_pieces(model, mode, experts):
    """`experts` tells whether the grouped products are compiled with what stands around them."""
    compiled = lambda f, **options: torch.compile(f, mode=mode, **options)  # noqa: E731
    activations = compiled(swiglu, dynamic=True), compiled(weighted_swiglu, dynamic=True)
    for layer in model.layers:
        names = ["attention_inputs", "dense_tail", "moe_head", "combine", "weighted_combine"]
        if experts and layer.ranks == 1:
            names.append("local_experts")
        else:
            layer.activate, layer.weighted_activate = activations
        for name in names:
            setattr(layer, name, compiled(getattr(layer, name)))
    if model.head_chunk == 0:
        model.whole_loss = compiled(model.whole_loss)
    else:
        model.final_norm, model.logits_gradient = compiled(model.final_norm), compiled(logits_gradient)
