#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether the newest transformers opens what FarSkip writes, and FarSkip what transformers writes.

    open_in_transformers.py --farskip FARSKIP --fixtures FOLDER

For every model in FOLDER, in f32 and bf16: `convert` it, load it strictly, and compare logits with `farskip
forward`; save it from transformers again, read that, and compare the logits to the bit. Dense models also as
models of equal experts, whose logits are those of the dense model in transformers. Exits with 77 (skipped) where
torch or transformers 5 is not installed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)
if int(transformers.__version__.split(".")[0]) < 5:
    print(f"skipped: transformers {transformers.__version__} is older than 5")
    sys.exit(77)

TOLERANCE = 2e-5  # both compute in f32; of the largest logit


def expect(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


class Programs:
    def __init__(self, farskip, folder):
        self.farskip, self.folder = farskip, Path(folder)
        self.tokens = self.folder / "tokens.safetensors"
        torch.manual_seed(1)
        save_file({"tokens": torch.randint(0, 160, (2, 24), dtype=torch.int64)}, self.tokens)

    def run(self, *arguments):
        result = subprocess.run([self.farskip, *map(str, arguments)], capture_output=True, text=True)
        expect(result.returncode == 0, f"farskip {' '.join(map(str, arguments))}: {result.stderr}")

    def farskip_logits(self, model):
        out = self.folder / "out.safetensors"
        self.run("forward", "--model", model, "--tokens", self.tokens, "--out", out)
        return load_file(out)["logits"]

    def load(self, model):
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, output_loading_info=True)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            expect(not info[kind], f"{model}: {kind}: {info[kind]}")
        return loaded.eval()

    def transformers_logits(self, model):
        with torch.no_grad():
            return model(load_file(self.tokens)["tokens"]).logits


WIRINGS = ("off", "attention", "mlp", "full", "ladder", "parallel", "shortcut")


def check(programs, fixture, dtype):
    exported = programs.folder / f"{fixture.name}-{dtype}"
    programs.run("convert", fixture, exported, "--dtype", dtype)
    model = programs.load(exported)
    stored = transformers.AutoConfig.from_pretrained(exported).dtype
    expect(stored == {"f32": torch.float32, "bf16": torch.bfloat16}[dtype], f"{exported} says {stored}")
    ours, theirs = programs.farskip_logits(exported), programs.transformers_logits(model)
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    expect(error < TOLERANCE, f"{fixture.name} {dtype}: logits differ by {error:.2e}")
    again = programs.folder / f"{fixture.name}-{dtype}-again"
    model.save_pretrained(again)
    programs.run("inspect", "--verify", again)
    expect(torch.equal(programs.farskip_logits(again), ours), f"{again}: other logits than {exported}")
    print(f"{fixture.name} {dtype}: logits differ by {error:.1e}")


def is_known(config):
    """Whether transformers has the model without code from elsewhere."""
    return hasattr(transformers, json.loads(config.read_text())["architectures"][0])


def check_rewired(programs, fixture, wiring, *options):
    """The file that travels with a model makes transformers compute what we do."""
    exported = programs.folder / f"{fixture.name}-{wiring.replace(':', '')}"
    programs.run("convert", fixture, exported, "--farskip", wiring, *options)
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32, trust_remote_code=True).eval()
    ours, theirs = programs.farskip_logits(exported), programs.transformers_logits(model)
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    expect(error < TOLERANCE, f"{fixture.name} {wiring}: logits differ by {error:.2e}")
    again = programs.folder / f"{exported.name}-again"
    model.save_pretrained(again)
    expect((again / "modeling_farskip.py").is_file(), f"{again}: the modeling file stayed behind")
    expect(torch.equal(programs.farskip_logits(again), ours), f"{again}: other logits than {exported}")
    return error


def check_upcycled(programs, fixture):
    exported = programs.folder / f"{fixture.name}-experts"
    programs.run("convert", fixture, exported, "--upcycle", "4,2")
    upcycled, dense = (programs.transformers_logits(programs.load(folder)) for folder in (exported, fixture))
    for what, logits in (("farskip", programs.farskip_logits(exported)), ("transformers", upcycled)):
        error = ((logits - dense).abs().max() / dense.abs().max()).item()
        expect(error < TOLERANCE, f"{fixture.name} of experts in {what}: logits differ by {error:.2e}")
        print(f"{fixture.name} of experts in {what}: logits differ by {error:.1e}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--farskip", required=True)
    parser.add_argument("--fixtures", required=True, type=Path)
    options = parser.parse_args()
    fixtures = sorted(path.parent for path in options.fixtures.glob("*/config.json"))
    expect(fixtures, f"no models in {options.fixtures}")
    with tempfile.TemporaryDirectory() as folder:
        programs = Programs(options.farskip, folder)
        for fixture in fixtures:
            known = is_known(fixture / "config.json")
            for dtype in ("f32", "bf16") if known else ():
                check(programs, fixture, dtype)
            wirings = [wiring for wiring in WIRINGS if wiring != "off" or not known]
            errors = [check_rewired(programs, fixture, wiring) for wiring in wirings]
            errors.append(check_rewired(programs, fixture, "delay:2", "--layers", "1-2"))
            print(f"{fixture.name} in {len(errors)} wirings: logits differ by {max(errors):.1e}")
            config = json.loads((fixture / "config.json").read_text())
            biased = config.get("attention_bias", False) or config.get("mlp_bias", False)
            if config["model_type"] in ("llama", "qwen3") and not biased:  # Mixtral has no biases
                check_upcycled(programs, fixture)
    print(f"transformers {transformers.__version__}: {len(fixtures)} models open")


if __name__ == "__main__":
    main()
