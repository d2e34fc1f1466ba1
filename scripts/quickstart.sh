#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From nothing to a FarSkip model, on a CPU, in minutes.
#
#   ./scripts/quickstart.sh
#
# Installs what is missing, builds, takes the text of Python's documentation (package python3-doc), trains a
# tokenizer and a small DeepSeek-V2-shaped model, and compares its held-out loss with n-gram models. Then it
# rewires the model, which costs quality; folds, which mends most of that in closed form; and distils the rest: the result is
# a model in hub layout.
# Run it again and it goes on from where it was; delete runs/quickstart to start over.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

say "Installing what is missing"
./scripts/install_dependencies.sh

say "Building"
options=(-DFARSKIP_TESTS=OFF)
# A third of a build's time goes into CUDA, which nobody can use without a GPU. A build that is there stays as it is.
if [ ! -e build/release/CMakeCache.txt ] && ! nvidia-smi -L >/dev/null 2>&1; then options+=(-DFARSKIP_CUDA=OFF); fi
cmake --preset release "${options[@]}" >build-quickstart.log 2>&1 || { cat build-quickstart.log >&2; exit 70; }
rm -f build-quickstart.log
cmake --build --preset release --target farskip
farskip=build/release/farskip
"$farskip" doctor

run=runs/quickstart
mkdir -p "$run"
corpus=$(find /usr/share/doc/python3*/html/_sources -maxdepth 0 -type d 2>/dev/null | head -n 1)
if [ -z "$corpus" ]; then
  echo "quickstart: the text of python3-doc is not under /usr/share/doc (are documentation files excluded by dpkg?)" >&2
  exit 66
fi

if [ ! -e "$run/tokenizer.json" ]; then
  say "Training a tokenizer on $corpus"
  "$farskip" data train-tokenizer "$corpus" --vocab-size 4096 --out "$run/tokenizer.json"
fi
if [ ! -e "$run/tokens-validation.idx" ]; then
  say "Tokenizing; every 40th file is held out"
  "$farskip" data tokenize "$corpus" --tokenizer "$run/tokenizer.json" --out "$run/tokens" --holdout-every 40
fi

# Two ranks, each with half of the experts and half of the cores. Containers run as root, which Open MPI wants to
# be told twice.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
say "Training on two ranks (configs/quickstart/teacher.yaml)"
on_two_ranks() {
  local started=$SECONDS
  mpirun -np 2 --oversubscribe --bind-to none "$farskip" "$@"
  echo "took $((SECONDS - started)) s"
}
on_two_ranks train configs/quickstart/teacher.yaml

say "Held-out loss, nats per token (lower is better), and what the same weights lose in FarSkip wiring"
"$farskip" data baselines --train "$run/tokens" --validation "$run/tokens-validation" --vocab-size 4096
evaluate() {
  printf '%s: ' "$1"
  "$farskip" eval --model "$2" --data "$run/tokens-validation" --sequence-length 256 --batch 16 --quiet "${@:3}"
}
evaluate "this model" "$run/teacher"
evaluate "rewired   " "$run/teacher" --farskip full

if [ ! -e "$run/folded/config.json" ]; then
  say "Folding: weights for the new wiring by least squares, without a gradient step"
  "$farskip" convert "$run/teacher" "$run/folded" --farskip full --fold "$run/tokens" --fold-sequences 256 --sequence-length 256
fi
evaluate "folded    " "$run/folded"

say "Distilling on two ranks: the folded model learns from the teacher (configs/quickstart/distill.yaml)"
on_two_ranks distill configs/quickstart/distill.yaml init.from="$run/folded"

say "After distillation"
evaluate "distilled " "$run/student"

if [ ! -e "$run/farskip-model/config.json" ]; then
  say "Exporting in hub layout"
  "$farskip" convert "$run/student" "$run/farskip-model"
fi
ls -l "$run/farskip-model"

say "The curves of both on one page, to open in a browser"
"$farskip" report "$run/teacher" "$run/student"

say "A sample of its text"
"$farskip" generate --model "$run/farskip-model" --prompt "The function returns" --max-tokens 80 --temperature 0.7 --top-k 40 --quiet
