#!/usr/bin/env bash
# From nothing to a mixture-of-experts model that has learnt real text, on a CPU, in minutes.
#
#   ./scripts/quickstart.sh
#
# Installs what is missing, builds, takes the text of Python's documentation (package python3-doc), trains a
# tokenizer and a small DeepSeek-V2-shaped model, and compares its held-out loss with n-gram models. Run it
# again and it goes on from where it was; delete runs/quickstart to start over.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

say "Installing what is missing"
./scripts/install_dependencies.sh

say "Building"
cmake --preset release -DFARSKIP_TESTS=OFF >build-quickstart.log 2>&1 || { cat build-quickstart.log >&2; exit 70; }
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
  say "Tokenizing; every 20th file is held out"
  "$farskip" data tokenize "$corpus" --tokenizer "$run/tokenizer.json" --out "$run/tokens" --holdout-every 20
fi

# Two ranks, each with half of the experts and half of the cores. Containers run as root, which Open MPI wants to
# be told twice.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
say "Training on two ranks (configs/quickstart/teacher.yaml)"
started=$SECONDS
mpirun -np 2 --oversubscribe --bind-to none "$farskip" train configs/quickstart/teacher.yaml
echo "training took $((SECONDS - started)) s"

say "Held-out loss, nats per token (lower is better)"
"$farskip" data baselines --train "$run/tokens" --validation "$run/tokens-validation" --vocab-size 4096
printf 'this model: '
"$farskip" eval --model "$run/teacher" --data "$run/tokens-validation" --sequence-length 256 --batch 16 --quiet

say "Its curves on one page, to open in a browser"
"$farskip" report "$run/teacher"

say "A sample of its text"
"$farskip" generate --model "$run/teacher" --prompt "The function returns" --max-tokens 80 --temperature 0.7 --top-k 40 --quiet
