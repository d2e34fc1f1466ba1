# SPDX-License-Identifier: Apache-2.0
"""A model of transformers in a FarSkip wiring, for AutoModelForCausalLM.from_pretrained(…, trust_remote_code=True).

`farskip convert` writes this file beside rewired weights, and beside those of Instella-MoE, which the library does
not have. Modules and weights are the library's own; what differs is which earlier contributions of the residual
stream a sub-block reads, and gates of attention heads. No cache of keys and values is kept.
"""
import inspect
import shutil
from pathlib import Path

import torch
from transformers import GenerationMixin, PretrainedConfig
from transformers.masking_utils import create_causal_mask, create_chunked_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

# Later versions call it by the first name.
CACHE = next(name for name in ("cache", "past_key_values") if name in inspect.signature(create_causal_mask).parameters)
PREFIXES = ("farskip_", "rewired_")
MLPS = {"dense", "shared", "routed"}
# mode: pairs of readers, and what they do not read of the sub-block just before theirs
OMISSIONS = {
    "off": (),
    "attention": (({"attention"}, {"routed"}),),
    "mlp": ((MLPS, {"attention"}),),
    "full": (({"attention"}, {"routed"}), (MLPS, {"attention"})),
    "ladder": ((MLPS | {"attention"}, MLPS | {"attention"}),),
    "parallel": ((MLPS, {"attention"}),),
    "shortcut": (({"routed"}, {"attention"}),),
    "delay": ((MLPS | {"attention"}, MLPS | {"attention"}),),
}


class Wiring:
    def __init__(self, config):
        name = getattr(config, "farskip_wiring", None)
        if name is None:
            modes = (getattr(config, "attn_only_farskip", False), getattr(config, "mlp_only_farskip", False))
            name = {(True, False): "attention", (False, True): "mlp"}.get(modes, "full")
            name = name if getattr(config, "farskip", False) else "off"
        self.mode, _, reach = name.partition(":")
        self.reach = int(reach or 1)
        last = config.num_hidden_layers - 1
        layers = range(getattr(config, "farskip_start_idx", 0), min(getattr(config, "farskip_end_idx", last), last) + 1)
        self.layers = set(getattr(config, "farskip_layers", None) or layers)

    def reads(self, reader, layer, place, earlier):
        """Whether sub-block `reader` at `place` (attention, MLP, attention, …) reads a contribution."""
        kind, of_layer, at, _ = earlier
        if layer not in self.layers or of_layer < 0 or not 1 <= place - at <= self.reach:
            return True
        return not any(reader in readers and kind in omitted for readers, omitted in OMISSIONS[self.mode])


class NoExpert(torch.nn.Module):
    def forward(self, hidden_states):
        return torch.zeros_like(hidden_states)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def routed_part(mlp, shared_name, hidden_states):
    """What a mixture gives without its shared expert."""
    if shared_name is None:
        return first(mlp(hidden_states)).view_as(hidden_states)
    shared = mlp._modules[shared_name]
    mlp._modules[shared_name] = NoExpert()
    try:
        return first(mlp(hidden_states)).view_as(hidden_states)
    finally:
        mlp._modules[shared_name] = shared


def add_gate(attention, config):
    """What the heads give is multiplied by a sigmoid gate of what attention reads (Instella-MoE)."""
    size = config.num_attention_heads * config.v_head_dim
    attention.gate_proj = torch.nn.Linear(config.hidden_size, size, bias=False)
    gates = []
    attention.register_forward_pre_hook(
        lambda module, _, given: gates.append(torch.sigmoid(module.gate_proj(given["hidden_states"]))), with_kwargs=True)
    attention.o_proj.register_forward_pre_hook(lambda _, given: (given[0] * gates.pop(),))


def mlp_of(layer):
    return layer.mlp if hasattr(layer, "mlp") else layer.feed_forward


def wired_forward(self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, labels=None, **_):
    body, wiring = self.model, Wiring(self.config)
    embedded = body.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    if position_ids is None:
        position_ids = torch.arange(embedded.shape[1], device=embedded.device)[None]
    about_mask = dict(config=self.config, inputs_embeds=embedded, attention_mask=attention_mask,
                      position_ids=position_ids, **{CACHE: None})
    masks = {"full_attention": create_causal_mask(**about_mask)}
    if "chunked_attention" in (getattr(self.config, "layer_types", None) or ()):
        masks["chunked_attention"] = create_chunked_causal_mask(**about_mask)
    rotary = body.rotary_emb(embedded, position_ids)
    has_experts = any(hasattr(mlp_of(layer), "experts") for layer in body.layers)
    contributions = [("embedding", -1, -1, embedded)]

    def read(reader, layer, place):
        total = None
        for earlier in contributions:
            if wiring.reads(reader, layer, place, earlier):
                total = earlier[-1] if total is None else total + earlier[-1]
        return total

    for k, layer in enumerate(body.layers):
        kinds = getattr(self.config, "layer_types", None)
        mask = masks[kinds[k] if kinds and kinds[k] in masks else "full_attention"]
        normed = layer.input_layernorm(read("attention", k, 2 * k))
        attention = first(layer.self_attn(hidden_states=normed, attention_mask=mask, position_embeddings=rotary,
                                          position_ids=position_ids))
        contributions.append(("attention", k, 2 * k, attention))
        mlp, place, norm = mlp_of(layer), 2 * k + 1, layer.post_attention_layernorm
        if not hasattr(mlp, "experts"):
            kind = "dense" if has_experts else "routed"
            contributions.append((kind, k, place, mlp(norm(read(kind, k, place)))))
            continue
        shared_name = next((name for name in ("shared_experts", "shared_expert") if name in mlp._modules), None)
        inputs = {kind: norm(read(kind, k, place)) for kind in ("shared", "routed")}
        if shared_name is not None:
            contributions.append(("shared", k, place, mlp._modules[shared_name](inputs["shared"])))
        contributions.append(("routed", k, place, routed_part(mlp, shared_name, inputs["routed"])))
    logits = self.lm_head(body.norm(read("head", -1, 2 * len(body.layers) + 99)))
    loss = None
    if labels is not None:
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
    return CausalLMOutputWithPast(loss=loss, logits=logits)


class FarSkipConfig(PretrainedConfig):
    """Reads the config of the family, and keeps the keys that name the wiring."""

    @classmethod
    def from_pretrained(cls, path, **kwargs):
        about, rest = cls.get_config_dict(path, **kwargs)
        return_rest = rest.pop("return_unused_kwargs", False)
        written = about.pop("model_type")
        prefix = next((prefix for prefix in PREFIXES if written.startswith(prefix)), "")
        base = CONFIG_MAPPING[written.removeprefix(prefix)]

        def to_dict(self):
            return {**base.to_dict(self), "model_type": written}

        config = type(f"FarSkip{base.__name__}", (base,), {"to_dict": to_dict, "base": base})(**about)
        for key in [key for key in rest if hasattr(config, key)]:
            setattr(config, key, rest.pop(key))
        return (config, rest) if return_rest else config


class FarSkipForCausalLM:
    """The family's class with another forward."""

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModelForCausalLM"):
        """Asked of every class from elsewhere; the folder has the file already."""

    @classmethod
    def from_pretrained(cls, path, *arguments, config=None, **kwargs):
        config = config or FarSkipConfig.from_pretrained(path)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[config.base]

        def initialise(self, config, *arguments, **kwargs):
            model.__init__(self, config, *arguments, **kwargs)
            for layer in self.model.layers if getattr(config, "gated_attention", False) else ():
                add_gate(layer.self_attn, config)

        def save_pretrained(self, folder, *arguments, **kwargs):
            model.save_pretrained(self, folder, *arguments, **kwargs)
            shutil.copy(__file__, Path(folder) / "modeling_farskip.py")

        wired = type(config.architectures[0], (model, GenerationMixin), {
            "__init__": initialise, "forward": wired_forward, "save_pretrained": save_pretrained, "config_class": type(config),
            "__module__": __name__})
        loaded = wired.from_pretrained(path, *arguments, config=config, **kwargs)
        result = loaded[0] if isinstance(loaded, tuple) else loaded
        result.generation_config.use_cache = False
        return loaded
