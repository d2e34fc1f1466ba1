#!/usr/bin/env bash
# All GPUs of this host at work: first whether the results are right, then how fast they come. One table last.
#
#   scripts/bench/multi_gpu.sh [--quick] [OUT_FOLDER]
#
# Needs a build with CUDA and two GPUs or more. PEER_PYTHON names a Python with torch (default python3); without one
# the peer is left out. --quick: smaller shapes, to try the script itself. About eight minutes.
# shellcheck disable=SC2317  # functions that check calls
set -uo pipefail
cd "$(dirname "$0")/../.." || exit

quick=
if [[ ${1:-} == --quick ]]; then
  quick=1
  shift
fi
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
  if ((n == 1)); then "$@"; else mpirun --bind-to none -np "$n" "$@"; fi
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
field() { # FILE PYTHON_EXPRESSION_OF_r
  python3 -c 'import json,sys
r = json.loads([line for line in open(sys.argv[1]) if line.startswith("{")][-1])
print(eval(sys.argv[2]))' "$@" 2> /dev/null || echo "-"
}

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
losses replicated 2 device=cuda parallel.expert=2 parallel.zero=0
for name in one data expert replicated; do
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
train 2 "run_dir=$out/run_whole" parallel.expert=2 train.steps=8
train 2 "run_dir=$out/run_part" parallel.expert=2 train.steps=4
train 1 "run_dir=$out/run_part" parallel.expert=1 train.steps=8
check resume_on_one python3 - "$out/run_whole/metrics.jsonl" "$out/run_part/metrics.jsonl" << 'PYTHON'
import json, sys
want, got = ({r["step"]: r["loss"] for r in map(json.loads, open(path))} for path in sys.argv[1:])
worst = max(abs(want[s] - got[s]) for s in want)
print("difference of losses", worst)
sys.exit(0 if want.keys() == got.keys() and len(want) == 8 and worst < 1e-5 else 1)
PYTHON

# F30: a rank that is killed inside its step ends the job.
killed() {
  ranks 2 "$farskip" bench step "$shape" "${all[@]}" --steps 100000 --quiet > "$out/killed_job.log" 2>&1 &
  local job=$! victim
  sleep "${kill_after:-45}"
  victim=$(pgrep -n -f "farskip bench step")
  kill -KILL "$victim" || return 1
  for _ in $(seq 60); do
    kill -0 "$job" 2> /dev/null || return 0
    sleep 0.5
  done
  kill -KILL "$job"
  return 1
}

shape=configs/bench/gpu_v2_lite.yaml
all=("parallel.expert=$gpus" "train.global_batch=$((4 * gpus))" "model.n_routed_experts=$((8 * gpus))")
if [[ -n $quick ]]; then
  shape=configs/bench/overlap.yaml
  all=(device=cuda)
  kill_after=15
fi
check f30_killed_rank killed

echo "== collectives"
ranks "$gpus" "$farskip" bench comm "$shape" "${all[@]}" | tee "$out/comm.txt"
"${PEER_PYTHON:-python3}" - << 'PYTHON' | tee "$out/copies.txt"
import torch
for mib in (1, 16, 64):
    source, target = (torch.zeros(mib << 20, dtype=torch.uint8, device=f"cuda:{i}") for i in (0, 1))
    seconds = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source, non_blocking=True)
        end.record()
        torch.cuda.synchronize()
        seconds.append(begin.elapsed_time(end) * 1e-3)
    print(f"copy from GPU 0 to GPU 1, {mib} MiB: {(mib << 20) / sorted(seconds)[6] * 1e-9:.1f} GB/s")
PYTHON

echo "== steps"
overlap() { # NAME OVERRIDES ...
  local name=$1
  shift
  ranks "$gpus" "$farskip" bench overlap "$shape" "${all[@]}" --steps 3 --warmup 1 --json --quiet "$@" > "$out/overlap_$name.json" 2> "$out/overlap_$name.log" ||
    { echo "FAILED  overlap_$name"; tail -n 3 "$out/overlap_$name.log"; failed=1; }
}
twice="train.global_batch=$((8 * gpus))"
[[ -z $quick ]] || twice=train.global_batch=16
overlap standard farskip.mode=off "$twice"
overlap farskip farskip.mode=full "$twice"
overlap standard_two farskip.mode=off "$twice" schedule.micro_batches_in_flight=2
overlap farskip_two farskip.mode=full "$twice" schedule.micro_batches_in_flight=2
step() { # NAME RANKS OVERRIDES ...
  local name=$1 n=$2
  shift 2
  ranks "$n" "$farskip" bench step "$shape" --steps 10 --json --quiet "$@" > "$out/step_$name.json" 2> "$out/step_$name.log"
}
step all "$gpus" "${all[@]}" farskip.mode=full
step standard "$gpus" "${all[@]}" farskip.mode=off
step one 1 "${all[@]}" parallel.expert=1 train.global_batch=4 farskip.mode=full
if [[ -z $quick ]]; then
  ranks "$gpus" "${PEER_PYTHON:-python3}" scripts/bench/torch_step_gpu.py "$shape" "${all[@]}" --steps 5 --json > "$out/peer.json" 2> "$out/peer.log"
fi

echo
echo "wiring, micro-batches in flight: blocking s, overlapped s, predicted s, eta forward/backward, hidden forward/backward, sigma, bits"
for name in standard farskip standard_two farskip_two; do
  printf '%-14s %s\n' "$name" "$(field "$out/overlap_$name.json" '" ".join([f"{r[k]:.4f}" for k in ("step_seconds_blocking","step_seconds_overlapped","predicted_step_seconds_overlapped")] + [f"{r[d][k]:.3f}" for k in ("eta","hidden_fraction") for d in ("forward","backward")] + [f"{r[\"total\"][\"sigma\"]:.3f}", "same" if r["identical"] else "DIFFER"])')"
done
for name in all standard one; do
  printf 'step %-9s %s\n' "$name" "$(field "$out/step_$name.json" 'f"{1e3*r[\"step_seconds\"]:.1f} ms, {r[\"tokens_per_second\"]:.0f} tokens/s, {r[\"peak_memory_bytes\"]/2**30:.1f} GiB"')"
done
[[ -n $quick ]] || printf 'PyTorch        %s\n' "$(field "$out/peer.json" 'r')"
exit $failed
