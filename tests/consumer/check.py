#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Installs a build, builds the program beside this file against it, and runs it on a fixture."""
import argparse
import json
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    parser.add_argument("--cmake", required=True)
    parser.add_argument("--generator", required=True)  # of the build; others may lack their build program here
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--fixture", required=True, type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prefix, build = Path(folder) / "installed", Path(folder) / "build"
        run(options.cmake, "--install", options.build, "--prefix", prefix)
        version = run(prefix / "bin" / "farskip", "--version")
        run(options.cmake, "-G", options.generator, "-S", HERE, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}",
            f"-DCMAKE_CXX_COMPILER={options.compiler}")
        run(options.cmake, "--build", build)
        loss = float(run(build / "consumer", options.fixture, options.fixture / "reference.safetensors"))
    wanted = json.loads((options.fixture / "reference.json").read_text())["loss.off"]
    print(f"{version.strip()}: loss {loss:.6f}, the reference has {wanted:.6f}")
    if not abs(loss - wanted) < 1e-5 * wanted:
        raise SystemExit("they differ")


if __name__ == "__main__":
    main()
