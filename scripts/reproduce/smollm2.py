#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct from a GGUF file, and FarSkip beside transformers on it. smollm2.sh runs all of it.

    smollm2.py make FILE.gguf FOLDER           a model folder in hub layout, fp32
    smollm2.py check FOLDER --out DIR          tokenizer, logits, held-out loss, greedy text: a table, exit code 1 if one differs
    smollm2.py cut-tokenizer FOLDER DIR        the first 1,200 tokens, with texts and their ids: tests/fixtures/tokenizer_smollm2

Needs torch, transformers, safetensors and gguf, and for `check` the farskip binary.
"""
import argparse
import json
import pathlib
import random
import struct
import subprocess
import sys
import unicodedata

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from conversion import table

ROOT = pathlib.Path(__file__).resolve().parents[2]
OF_LAYER = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
            "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
OF_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
CONTROL = 3  # the GGUF token type of special tokens


def hub_name(name):
    """blk.0.attn_q.weight is model.layers.0.self_attn.q_proj.weight."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{OF_LAYER[parts[2]]}.weight"
    return OF_MODEL[parts[0]] + ".weight"


def halves(weight, heads):
    """Rows of queries or keys in the hub's order. GGUF files pair row 2i of a head with row 2i + 1 for the rotary
    embedding, the hub pairs row i with row i + head_dim / 2."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def read_config(fields):
    field = lambda key: fields[f"llama.{key}"].contents()
    token = lambda key: fields[f"tokenizer.ggml.{key}_token_id"].contents()
    return transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"], dtype="float32", vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"), intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"), num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"), max_position_embeddings=field("context_length"),
        # the shortest number that is this one in f32: 1e-05
        rms_norm_eps=float(str(np.float32(field("attention.layer_norm_rms_epsilon")))), tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        initializer_range=1 / 24,  # as its authors say; GGUF files do not hold it
        bos_token_id=token("bos"), eos_token_id=token("eos"), pad_token_id=token("padding"))


def tokenizer_json(tokens, merges, special):
    """SmolLM2's tokenizer.json: each digit alone, then GPT-2's words of bytes. Bytes that the training text did not have
    have no token, and no unk_token stands in for them."""
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, t in enumerate(tokens) if t in special]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence",
                          "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None, "decoder": {**byte_level, "add_prefix_space": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}}


def make(args):
    import gguf
    reader = gguf.GGUFReader(args.gguf)
    config = read_config(reader.fields)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            weight = halves(weight, heads[kind])
        weights[hub_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(weight))
    contents = lambda key: reader.fields[f"tokenizer.{key}"].contents()
    tokens, types = contents("ggml.tokens"), contents("ggml.token_type")
    special = {token for token, kind in zip(tokens, types) if kind == CONTROL}
    described = tokenizer_json(tokens, [m.split(" ") for m in contents("ggml.merges")], special)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), bos_token=tokens[config.bos_token_id],
        eos_token=tokens[config.eos_token_id], pad_token=tokens[config.pad_token_id],
        chat_template=contents("chat_template"), model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False)
    tokenizer.save_pretrained(args.folder)
    config.save_pretrained(args.folder)
    transformers.GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id,
                                  pad_token_id=config.pad_token_id).save_pretrained(args.folder)
    save_file(weights, pathlib.Path(args.folder) / "model.safetensors", metadata={"format": "pt"})
    print(f"{args.folder}: {sum(w.numel() for w in weights.values()) / 1e6:.1f}M parameters, {len(tokens)} tokens")


# Text to encode ------------------------------------------------------------------------------------------------------

EDGE_CASES = [
    "Hello world", "  leading and   runs\n\n\n of\tspace \r\n", "don't we'll I'VE they'd it's 'twas", "1234567890 3.14159 1e-9",
    "a1b22c333 v1.2.3 0x7f 2026-11-30 12:34", "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m \ufb01ne",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u4e2d\u6587\u5b57\u7b26 \ud55c\uad6d\uc5b4",
    "emoji \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \U0001f44d\U0001f3fd",
    "a\u0301 e\u0300 \u200b\u200d\ufeff", "\ufeffmark", "def f(x):\n    return x**2 # ok\n\n\nclass A:\n\tpass",
    "\u0391\u0392\u0393 \u043a\u0438\u0440\u0438\u043b\u043b\u0438\u0446\u0430 \u05e2\u05d1\u05e8\u05d9\u05ea \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\0\x01\x7f", " ", "\n", "\u00a0\u3000\u2028\u2029\u0085", "___---===+++", "MiXeDCaSe camelCase snake_case",
    "\u00bd \u00b2 \u0663 \u096a \u2167 \u2460 \u3007 \U0001d7d8", "x\u00b2\u00b3y 10\u2070 5\u00bd",
    "<|endoftext|>text<|endoftext|>", "<|im_start|>user\nHi 42!<|im_end|>\n", "<|im_start|><|im_end|>", "<|im_start", "|im_end|>",
    " <|im_start|> spaced <|im_end|> ", "<repo_name>a/b<file_sep>c.py\n1", "<<|im_end|>>", "<|IM_END|>", "<empty_output>9",
    # bytes without a token: these six, and the first byte of planes 4 to 11
    "\x04\x06\x13\x14\x16\x1d", "a\x04b\x06c", "th\x13e mod\x1del", "9\x169", "\U00040000", "x\U000e0001y\U00100000z \U000bffff",
    "".join(map(chr, range(1, 0x250))), "e" * 3000, " " * 500 + "x", "0" * 100, "\n" * 70 + " \n" * 30,
]


def random_texts(count, seed=1):
    """Short texts of code points that Unicode 3.2 has, so that no library is too old for one."""
    generator = random.Random(seed)
    assigned = [chr(c) for c in range(1, 0x110000)
                if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs", "Co")]
    low = [c for c in assigned if ord(c) < 0x3000]
    numeric = [c for c in assigned if unicodedata.category(c).startswith("N")]
    spaces = list(" \t\n\r\v\f\u0085\u00a0\u1680\u2000\u200a\u2028\u202f\u3000")
    pools = [assigned, low, numeric, spaces, list("abcdefghijklmnop'ST"), list("0123456789.,-")]
    return ["".join(generator.choice(generator.choice(pools)) for _ in range(generator.randint(1, 60)))
            for _ in range(count)]


def repository_texts():
    """Files of this repository, whole and line by line: prose, code, tables."""
    kinds = {".md", ".cpp", ".h", ".cu", ".py", ".sh", ".yaml", ".txt"}
    paths = [path for folder in ("configs", "docs", "include", "scripts", "src", "tests")
             for path in sorted((ROOT / folder).rglob("*")) if path.suffix in kinds and path.is_file()]
    texts = [path.read_text(encoding="utf-8") for path in paths if "corpus" not in path.parts]
    lines = sorted({line for text in texts for line in text.splitlines(keepends=True)})
    return [text for text in texts + lines if text]


# What is compared ----------------------------------------------------------------------------------------------------


class Check:
    def __init__(self, args):
        self.args, self.rows, self.failed = args, [], False
        self.folder, self.out = pathlib.Path(args.folder), pathlib.Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        self.model = None

    def load(self):
        if self.model is None:
            self.model = transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        return self.model

    def farskip(self, *arguments):
        return subprocess.run([self.args.farskip, *map(str, arguments), "--json", "--quiet"], check=True,
                              stdout=subprocess.PIPE, text=True).stdout

    def row(self, what, ours, theirs, difference, good):
        self.rows.append([what, ours, theirs, difference, "equal" if good else "DIFFERS"])
        self.failed |= not good

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def documents(self, prefix):
        """(ids, text) of each document of a token file, as FarSkip decodes it."""
        lines = self.farskip("data", "decode", prefix, "--tokenizer", self.folder / "tokenizer.json").rstrip("\n").split("\n")
        return [(o["ids"], o["text"]) for o in map(json.loads, lines)]  # not splitlines: texts hold U+0085

    def tokenize(self, name, texts):
        """Writes texts as JSON lines and makes a token file of them."""
        lines, prefix = self.out / f"{name}.jsonl", self.out / name
        lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        self.farskip("data", "tokenize", lines, "--tokenizer", self.folder / "tokenizer.json", "--out", prefix)
        return prefix

    def show_wrong(self, wrong):
        for given, ours, theirs in wrong[:3]:
            print(f"  {given!r:.200}\n    farskip      {ours!r:.200}\n    transformers {theirs!r:.200}", file=sys.stderr)

    def strings(self):
        texts = EDGE_CASES + repository_texts() + random_texts(self.args.random_texts)
        made = self.documents(self.tokenize("strings", texts))
        end = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        wrong_ids, wrong_text = [], []
        for text, (ids, decoded) in zip(texts, made, strict=True):
            expected = self.encode(text) + [end]
            if ids != expected:
                wrong_ids.append((text, ids, expected))
            if decoded != self.decode(ids):
                wrong_text.append((ids, decoded, self.decode(ids)))
        generator = random.Random(2)  # ids in no order give characters cut in two
        lists = [[generator.randrange(len(self.tokenizer)) for _ in range(generator.randint(1, 40))] for _ in range(5000)]
        write_token_file(self.out / "ids", lists)
        for ids, decoded in self.documents(self.out / "ids"):
            if decoded != self.decode(ids):
                wrong_text.append((ids, decoded, self.decode(ids)))
        for what, wrong, count in (("encode, strings", wrong_ids, len(texts)),
                                   ("decode, strings", wrong_text, len(texts) + len(lists))):
            self.row(what, count, count, f"{len(wrong)} of them", not wrong)
            self.show_wrong(wrong)

    def logits(self, tokens):
        """Logits and loss of two sequences."""
        tokens_BS = torch.tensor(tokens[:2 * 256], dtype=torch.int32).view(2, 256)
        save_file({"tokens": tokens_BS}, self.out / "tokens.safetensors")
        self.farskip("forward", "--model", self.folder, "--tokens", self.out / "tokens.safetensors", "--out",
                     self.out / "logits.safetensors")
        ours = load_file(self.out / "logits.safetensors")
        with torch.no_grad():
            theirs = self.load()(tokens_BS.long()).logits
        scale, apart = theirs.abs().max().item(), (ours["logits"] - theirs).abs().max().item()
        self.row("logits, 2 x 256 tokens, largest", f"{ours['logits'].abs().max():.4f}", f"{scale:.4f}", f"{apart:.1e}",
                 apart < 2e-5 * scale)

    def held_out(self, prefix, tokens):
        length, count = self.args.sequence_length, self.args.sequences
        ours = json.loads(self.farskip("eval", "--model", self.folder, "--data", prefix, "--sequence-length", length,
                                       "--batch", 2, "--max-sequences", count))
        total = 0.0
        with torch.no_grad():
            for i in range(count):
                piece = torch.tensor(tokens[i * length:(i + 1) * length + 1])
                total += torch.nn.functional.cross_entropy(self.load()(piece[None, :-1]).logits[0], piece[1:],
                                                           reduction="sum").item()
        theirs = total / ours["tokens"]
        self.row(f"held-out loss, {ours['tokens']} tokens", f"{ours['loss']:.6f}", f"{theirs:.6f}",
                 f"{abs(ours['loss'] - theirs):.1e}", abs(ours["loss"] - theirs) < 2e-5 and ours["tokens"] == count * length)

    def greedy(self):
        for prompt in self.args.prompts or PROMPTS:
            ours = json.loads(self.farskip("generate", "--model", self.folder, "--prompt", prompt, "--max-tokens",
                                           self.args.new_tokens))
            given = torch.tensor([self.encode(prompt)])
            with torch.no_grad():
                made = self.load().generate(given, attention_mask=torch.ones_like(given), do_sample=False,
                                            max_new_tokens=self.args.new_tokens, output_logits=True,
                                            return_dict_in_generate=True)
            theirs = made.sequences[0, given.shape[1]:].tolist()
            if theirs[-1] == self.model.generation_config.eos_token_id:
                theirs.pop()
            top = torch.stack(made.logits)[:, 0].topk(2).values
            same = next((i for i, (a, b) in enumerate(zip(ours["ids"], theirs)) if a != b), min(len(ours["ids"]), len(theirs)))
            good = ours["ids"] == theirs and ours["text"] == self.tokenizer.decode(theirs, skip_special_tokens=True)
            self.row(f"greedy: {prompt[:32]!r}", f"{len(ours['ids'])} tokens", f"{len(theirs)} tokens",
                     f"first {same} equal, least margin {(top[:, 0] - top[:, 1]).min():.0e}", good)

    def run(self):
        self.strings()
        pages = sorted((ROOT / "docs").rglob("*.md"))
        text = [path.read_text(encoding="utf-8") for path in (self.args.text or pages)]
        prefix = self.tokenize("held-out", text)
        tokens = [token for ids, _ in self.documents(prefix) for token in ids]
        if not self.args.tokenizer_only:
            self.logits(tokens)
            self.held_out(prefix, tokens)
            self.greedy()
        result = table(["what", "farskip", "transformers", "apart", ""], [[str(cell) for cell in row] for row in self.rows])
        (self.out / "table.md").write_text(result + "\n")
        print(result)
        return int(self.failed)


PROMPTS = ["The three laws of thermodynamics are", "def fibonacci(n):\n", "Once upon a time, in 1789,",
           "<|im_start|>user\nWrite a long story about a lighthouse keeper.<|im_end|>\n<|im_start|>assistant\n",
           "<|im_start|>user\nList 25 animals with a sentence about each.<|im_end|>\n<|im_start|>assistant\n"]


def write_token_file(prefix, documents):
    """Documents in the Megatron layout (docs/data.md): PREFIX.bin (uint16) and PREFIX.idx."""
    lengths = [len(ids) for ids in documents]
    begins = np.cumsum([0] + lengths[:-1]) * 2
    np.concatenate([np.asarray(ids, np.uint16) for ids in documents]).tofile(f"{prefix}.bin")
    pathlib.Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(lengths), len(lengths) + 1) + np.asarray(lengths, np.int32).tobytes()
        + begins.astype(np.int64).tobytes() + np.arange(len(lengths) + 1, dtype=np.int64).tobytes())


def cut_tokenizer(args, size=1200):
    """The same tokenizer with its first tokens alone: merges are in the order of the tokens that they make."""
    whole = json.loads((pathlib.Path(args.folder) / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = sorted(whole["model"]["vocab"], key=whole["model"]["vocab"].get)[:size]
    merges = [pair for pair in whole["model"]["merges"] if "".join(pair) in tokens]
    cut = tokenizer_json(tokens, merges, {t["content"] for t in whole["added_tokens"]})
    library = Tokenizer.from_str(json.dumps(cut))
    cases = []
    for text in ["", *(t for t in EDGE_CASES if len(t) < 200), *random_texts(20)]:
        ids = library.encode(text, add_special_tokens=False).ids
        cases.append({"text": text, "ids": ids, "decoded": library.decode(ids, skip_special_tokens=False)})
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(cut) + "\n")
    (out / "encoded.json").write_text(json.dumps(cases) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("make")
    command.add_argument("gguf")
    command.add_argument("folder")
    command.set_defaults(run=make)
    command = commands.add_parser("check")
    command.add_argument("folder")
    command.add_argument("--out", required=True, help="folder for what is compared, and table.md")
    command.add_argument("--farskip", default=str(ROOT / "build/release/farskip"))
    command.add_argument("--text", nargs="*", type=pathlib.Path, help="held-out text; default: the pages of docs")
    command.add_argument("--sequence-length", type=int, default=1024)
    command.add_argument("--sequences", type=int, default=16)
    command.add_argument("--prompts", nargs="*")
    command.add_argument("--new-tokens", type=int, default=200)
    command.add_argument("--random-texts", type=int, default=20000)
    command.add_argument("--tokenizer-only", action="store_true")
    command.set_defaults(run=lambda args: Check(args).run())
    command = commands.add_parser("cut-tokenizer")
    command.add_argument("folder")
    command.add_argument("out")
    command.set_defaults(run=cut_tokenizer)
    args = parser.parse_args()
    sys.exit(args.run(args))


if __name__ == "__main__":
    main()
