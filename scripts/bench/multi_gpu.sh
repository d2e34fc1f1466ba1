#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All GPUs of this host at work: first whether the results are right, then how fast they come. One table last.
#
#   scripts/bench/multi_gpu.sh [--quick] [--only checks|times] [OUT_FOLDER]
#
# Needs a build with CUDA and two GPUs or more. PEER_PYTHON names a Python with torch (default python3); without one
# the peer is left out. --quick: smaller shapes, to try the script itself. About ten minutes; --only: four of them and six.
# shellcheck disable=SC2317,SC2034  # functions that check calls, and what they read
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

quick='' only=all
while [[ ${1:-} == --* ]]; do
  case "$1" in
    --quick) quick=1; shift ;;
    --only) only=${2:?checks or times}; shift 2 ;;
    *) echo "multi_gpu.sh: unknown argument '$1'" >&2; exit 64 ;;
  esac
done
out=${1:-$(mktemp -d)}
mkdir -p "$out"
gpus=$(nvidia-smi --list-gpus | wc -l)
((gpus >= 2)) || { echo "multi_gpu.sh: $gpus GPU here; two or more are needed" >&2; exit 77; }
export NCCL_NVLS_ENABLE=0 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
farskip=build/release/farskip
failed=0

ranks() { # N COMMAND ...
  local n=$1
  shift
  if ((n == 1)); then "$@"; else timeout -k 5 170 mpirun --bind-to none -np "$n" "$@"; fi
}
check() { # NAME COMMAND ...
  local name=$1
  shift
  if "$@" > "$out/$name.log" 2>&1; then
    echo "ok      $name"
  else
    echo "FAILED  $name ($out/$name.log)"
    tail -n 3 "$out/$name.log"
    failed=1
  fi
}
shape=configs/bench/gpu_v2_lite.yaml
# Slabs with room for a quarter more than an even share: what is not filled travels too.
all=("parallel.expert=$gpus" "model.n_routed_experts=$((8 * gpus))" schedule.routed_rows_memory=9300MB)
batch=$((4 * gpus))
if [[ -n $quick ]]; then
  shape=configs/bench/overlap.yaml all=(device=cuda) batch=$((4 * gpus))
fi
check_all() {
  echo "== right?  ($gpus x $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1))"
  # The same model, tokens and steps over layouts: losses that agree with one CPU.
  losses() { # NAME RANKS OVERRIDES ...
    local name=$1 n=$2
    shift 2
    ranks "$n" "$farskip" bench step configs/bench/overlap.yaml --steps 4 --warmup 0 --json --quiet "$@" > "$out/losses_$name.json" 2> "$out/losses_$name.log"
  }
  losses cpu 1 device=cpu parallel.expert=1
  losses one 1 device=cuda parallel.expert=1
  losses data 2 device=cuda parallel.expert=1
  losses expert 2 device=cuda parallel.expert=2
  losses expert_nccl 2 device=cuda parallel.expert=2 parallel.gpu_transport=nccl
  losses replicated 2 device=cuda parallel.expert=2 parallel.zero=0
  for name in one data expert expert_nccl replicated; do
    check "layout_$name" python3 - "$out/losses_cpu.json" "$out/losses_$name.json" << 'PYTHON'
import json, sys
want, got = (json.loads([line for line in open(path) if line.startswith("{")][-1])["losses"] for path in sys.argv[1:])
worst = max(abs(a - b) / abs(a) for a, b in zip(want, got))
print("relative difference of losses", worst)
sys.exit(0 if min(len(want), len(got)) >= 4 and worst < 1e-6 else 1)
PYTHON
  done
  check gpu_tests build/release/test_gpu

  # A checkpoint of two GPUs goes on with one.
  cat > "$out/small.yaml" << YAML
device: cuda
farskip: {mode: full}
parallel: {zero: 1}
data: {tokens: [tests/fixtures/qwen3_moe/tokens]}
init: {from: tests/fixtures/qwen3_moe}
train:
  sequence_length: 128
  global_batch: 4
  micro_batch: 2
  learning_rate: {schedule: constant, peak: 1.0e-3}
checkpoint: {every: 4}
YAML
  train() { # RANKS OVERRIDES ...
    local n=$1
    shift
    ranks "$n" "$farskip" train "$out/small.yaml" "$@" >> "$out/train.log" 2>&1
  }
  # In bf16 a rank has only its own rows of fp32 weights, and the others' are put together for the checkpoint.
  for precision in fp32 bf16; do
    train 2 "run_dir=$out/run_whole_$precision" "precision=$precision" parallel.expert=2 train.steps=8
    train 2 "run_dir=$out/run_part_$precision" "precision=$precision" parallel.expert=2 train.steps=4
    train 1 "run_dir=$out/run_part_$precision" "precision=$precision" parallel.expert=1 train.steps=8
    check "resume_on_one_$precision" python3 - "$out/run_whole_$precision/metrics.jsonl" "$out/run_part_$precision/metrics.jsonl" << 'PYTHON'
import json, sys
want, got = ({r["step"]: r["loss"] for r in map(json.loads, open(path))} for path in sys.argv[1:])
worst = max(abs(want[s] - got[s]) for s in want)
print("difference of losses", worst)
sys.exit(0 if want.keys() == got.keys() and len(want) == 8 and worst < (1e-5 if "fp32" in sys.argv[1] else 2e-3) else 1)
PYTHON
  done

}

time_steps() {
  echo "== steps"
  bench() { # NAME RANKS KIND OVERRIDES ...
    local name=$1 n=$2 kind=$3
    shift 3
    ranks "$n" timeout 150 "$farskip" bench "$kind" "$shape" --json --quiet "$@" > "$out/$name.json" 2> "$out/$name.log" ||
      { echo "FAILED  $name"; grep -m 3 -i error "$out/$name.log"; failed=1; }
  }
  for mode in off full; do
    for flight in 1 2; do
      bench "overlap_${mode}_$flight" "$gpus" overlap "${all[@]}" "train.global_batch=$((2 * batch))" "farskip.mode=$mode" \
        "schedule.micro_batches_in_flight=$flight" --steps 3 --warmup 1
    done
    bench "step_${mode}_overlapped" "$gpus" step "${all[@]}" "train.global_batch=$batch" "farskip.mode=$mode" --steps 10
    bench "step_${mode}_blocking" "$gpus" step "${all[@]}" "train.global_batch=$batch" "farskip.mode=$mode" schedule.overlap=false --steps 10
  done
  nccl=(parallel.gpu_transport=nccl farskip.mode=full)
  bench overlap_full_1_nccl "$gpus" overlap "${all[@]}" "train.global_batch=$((2 * batch))" "${nccl[@]}" --steps 3 --warmup 1
  bench step_full_overlapped_nccl "$gpus" step "${all[@]}" "train.global_batch=$batch" "${nccl[@]}" --steps 10
  NCCL_MAX_CTAS=4 bench step_full_overlapped_nccl_4_ctas "$gpus" step "${all[@]}" "train.global_batch=$batch" "${nccl[@]}" --steps 10
  bench step_one_gpu 1 step "${all[@]:1:1}" "train.global_batch=$((batch / gpus))" farskip.mode=full --steps 10
  if [[ -z $quick ]]; then
    ranks "$gpus" "${PEER_PYTHON:-python3}" scripts/bench/torch_step_gpu.py "$shape" "${all[@]:0:2}" "train.global_batch=$batch" --steps 10 --json > "$out/peer.json" 2> "$out/peer.log"
  fi
}

[[ $only == times ]] || check_all
[[ $only == checks ]] || time_steps

echo
python3 - "$out" << 'PYTHON'
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
def read(name):
    try:
        return json.loads([line for line in (folder / f"{name}.json").read_text().splitlines() if line.startswith("{")][-1])
    except (OSError, IndexError):
        return None
print("| wiring | in flight | blocking ms | overlapped ms | planned ms | predicted ms | eta fwd, bwd | hidden fwd, bwd | sigma | bits |")
print("|---" * 10 + "|")
for mode in ("off", "full"):
    for flight in ("1", "2", "1_nccl"):
        if r := read(f"overlap_{mode}_{flight}"):
            f, b, t = r["forward"], r["backward"], r["total"]
            print(f"| {mode} | {flight.replace('_', ', ')} | {1e3 * r['step_seconds_blocking']:.1f} | {1e3 * r['step_seconds_overlapped']:.1f} "
                  f"| {1e3 * t['planned_seconds']:.1f} | {1e3 * r['predicted_step_seconds_overlapped']:.1f} "
                  f"| {f['eta']:.3f}, {b['eta']:.3f} | {f['hidden_fraction']:.1%}, {b['hidden_fraction']:.1%} "
                  f"| {t['sigma']:.3f} | {'same' if r['identical'] else 'DIFFER'} |")
print("\n| step | ms | p99 | tokens/s | GiB of a GPU |")
print("|---" * 5 + "|")
for name in ("step_off_blocking", "step_off_overlapped", "step_full_blocking", "step_full_overlapped", "step_full_overlapped_nccl",
             "step_full_overlapped_nccl_4_ctas", "step_one_gpu", "peer"):
    if r := read(name):
        memory = r.get("device_used_bytes", r.get("peak_memory_bytes", 0))
        print(f"| {name} | {1e3 * r['step_seconds']:.1f} | {1e3 * r['step_seconds_p99']:.1f} | {r['tokens_per_second']:.0f} | {memory / 2**30:.1f} |")
PYTHON
exit $failed
