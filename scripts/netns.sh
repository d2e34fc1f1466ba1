#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Two hosts on one machine: runs a command under mpirun, half of the ranks in each of two network namespaces
# that a shaped link joins. --help says the rest.
# shellcheck disable=SC2317  # functions that traps call
set -euo pipefail

usage() {
  cat << 'TEXT'
usage: scripts/netns.sh [--rate RATE] [-np N] [--cut-after SECONDS] [--] COMMAND [ARGUMENT ...]

Runs COMMAND under mpirun (Open MPI), its ranks dealt over two network namespaces of this machine: rank 0 to
the first, rank 1 to the second, rank 2 to the first again. They reach each other over TCP on a veth pair.

  --rate RATE          what the link carries each way, as 100mbit or 2.5gbit (kbit, mbit, gbit; powers of
                       1000); none: as fast as it goes. Default: 1gbit
  -np N                ranks, 2 or more. Default: 2
  --cut-after SECONDS  takes the link down for good after that time
  --help               this text

A rank is pinned to a core of its own where there are enough; otherwise ranks share cores and yield them.
SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are handed on to mpirun. To stop a run that saves before it leaves, send
SIGUSR1: mpirun sets it no deadline. After SIGTERM it kills the ranks within seconds; with
OMPI_MCA_odls_base_sigkill_timeout=N in the environment Open MPI 4 waits N seconds before it hands SIGTERM on and N
more before it kills, on one host after the other, and the end of a job with a failed rank takes as long. Open MPI 5
kills at once. Other settings of Open MPI may be given in the same way.

Exit code: mpirun's; 64 wrong arguments; 77 this machine cannot do it (skipped): root, ip, tc, mpirun are needed.
TEXT
}

die() { # CODE MESSAGE
  echo "netns.sh: $2" >&2
  exit "$1"
}

rate=1gbit
ranks=2
cut_after=
while (($# > 0)); do
  case $1 in
    --help | -h)
      usage
      exit 0
      ;;
    --rate | -np | -n | --cut-after)
      (($# > 1)) || die 64 "$1 needs a value; see --help"
      case $1 in
        --rate) rate=${2,,} ;;
        --cut-after) cut_after=$2 ;;
        *) ranks=$2 ;;
      esac
      shift 2
      ;;
    --)
      shift
      break
      ;;
    -*) die 64 "unknown option $1; see --help" ;;
    *) break ;;
  esac
done

decimal='([0-9]{1,7}(\.[0-9]{1,6})?)'
[[ $rate == none || $rate =~ ^${decimal}[kmg]bit$ && ${BASH_REMATCH[1]} == *[1-9]* ]] ||
  die 64 "--rate \"$rate\": allowed are none and a number above 0 with kbit, mbit or gbit, such as 100mbit"
[[ $ranks =~ ^0*[1-9][0-9]{0,2}$ && ! $ranks =~ ^0*1$ ]] || die 64 "-np \"$ranks\": allowed are whole numbers from 2 to 999"
ranks=$((10#$ranks))
[[ -z $cut_after || $cut_after =~ ^${decimal}$ ]] || die 64 "--cut-after \"$cut_after\": allowed is a number of seconds, such as 2.5"
(($# > 0)) || die 64 "COMMAND is missing; see --help"
command -v -- "$1" > /dev/null || die 64 "COMMAND \"$1\" is not a program that can be run"

((EUID == 0)) || die 77 "skipped: network namespaces need root; run it with sudo"
for tool in "ip iproute2" "tc iproute2" "mpirun openmpi-bin" "taskset util-linux"; do
  command -v "${tool% *}" > /dev/null || die 77 "skipped: no ${tool% *} here; apt-get install ${tool#* }"
done

# Everything made here carries the pid and the start time of its owner: runs beside each other do not meet, and
# what a killed one left behind is known for sure.
start_time() { # PID; fails if it has ended
  local stat
  stat=$(cat "/proc/$1/stat" 2> /dev/null) || return 1
  read -r -a stat <<< "${stat##*) }"
  [[ ${stat[0]} != Z ]] || return 1  # dead, and nobody has asked after it
  echo "${stat[19]}"
}
tag=$$-$(start_time $$)
first=farskip-$tag-0
second=farskip-$tag-1
files=/tmp/farskip-netns-$tag

remove_run() { # TAG: its processes, namespaces (the link goes with them) and files
  local name
  local -a pids
  for name in "farskip-$1-0" "farskip-$1-1"; do
    [[ -e /run/netns/$name ]] || continue
    mapfile -t pids < <(ip netns pids "$name" 2> /dev/null)
    ((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" 2> /dev/null || true
    ip -n "$name" link delete wire 2> /dev/null || true
    ip netns delete "$name" || true
  done
  rm -rf "/tmp/farskip-netns-$1"
}

remove_stale_runs() {
  local path pid time
  for path in /run/netns/farskip-*-[01] /tmp/farskip-netns-*; do
    [[ $path =~ /farskip-(netns-)?([0-9]+)-([0-9]+)(-[01])?$ ]] || continue
    pid=${BASH_REMATCH[2]} time=${BASH_REMATCH[3]}
    [[ $(start_time "$pid") == "$time" ]] || remove_run "$pid-$time"
  done
}

cutter=
clean_up() {
  local pids pid tries
  trap '' INT TERM HUP USR1 USR2
  [[ -z $cutter ]] || kill -KILL -- "-$cutter" 2> /dev/null || true
  # Daemons and ranks leave by themselves when mpirun is done; who does not is an orphan.
  for ((tries = 0; tries < 20; ++tries)); do
    pids=$(ip netns pids "$first" 2> /dev/null; ip netns pids "$second" 2> /dev/null) || true
    [[ -n $pids ]] || break
    sleep 0.1
  done
  for pid in $pids; do
    echo "netns.sh: outlived mpirun, killed: $pid $(tr '\0' ' ' 2> /dev/null < "/proc/$pid/cmdline")" >&2
  done
  remove_run "$tag"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

remove_stale_runs
(umask 077 && mkdir "$files") || die 74 "cannot make the folder $files"
# /30 networks in 10.0.0.0/8, one for each pid (they are at most 22 bits).
address() { echo "10.$(($$ >> 14 & 255)).$(($$ >> 6 & 255)).$((($$ & 63) * 4 + $1))"; }
network=$(address 0)/30

make_link() {
  ip netns add "$first" && ip netns add "$second" && ip link add wire netns "$first" type veth peer name wire netns "$second"
}
make_link ||
  die 77 "skipped: this machine allows no network namespaces or veth pairs (a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN)"
for end in 0 1; do
  name=farskip-$tag-$end
  ip -n "$name" address add "$(address $((end + 1)))/30" dev wire
  ip -n "$name" link set lo up
  # Segments no larger than the bucket: larger ones are cut by the processor, four times the work for TCP.
  ip -n "$name" link set wire gso_max_size 30000 up
  # bbr, the default of some kernels, stalls for 200 ms and more behind a token bucket.
  ip netns exec "$name" sh -c 'echo reno > /proc/sys/net/ipv4/tcp_congestion_control'
  [[ $rate == none ]] || tc -n "$name" qdisc add dev wire root tbf rate "$rate" burst 32kb latency 50ms ||
    die 77 "skipped: this kernel cannot shape a link to $rate (module sch_tbf)"
done

printf '%s slots=%d\n' "$(address 1)" $(((ranks + 1) / 2)) "$(address 2)" $((ranks / 2)) > "$files/hosts"
# In the place of ssh: ADDRESS COMMAND.
cat > "$files/agent" << AGENT
#!/bin/sh
shift
exec ip netns exec $second sh -c "\$*"
AGENT

# The cores that this process may use, as a list of single numbers.
cores=()
IFS=, read -r -a ranges <<< "$(awk '/^Cpus_allowed_list:/ {print $2}' /proc/self/status)"
for range in "${ranges[@]}"; do
  for ((core = ${range%-*}; core <= ${range#*-}; ++core)); do cores+=("$core"); done
done
if ((${#cores[@]} >= ranks)); then
  printf '%s\n' '#!/bin/bash' "cores=(${cores[*]})" "exec taskset -c \"\${cores[OMPI_COMM_WORLD_RANK]}\" \"\$@\"" > "$files/rank"
else
  printf '%s\n' '#!/bin/sh' "exec \"\$@\"" > "$files/rank"
  export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
fi
chmod 700 "$files/agent" "$files/rank"

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# The launcher of Open MPI 4 reads OMPI_MCA_*, that of Open MPI 5 PRTE_MCA_*.
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
# A lost host is noticed within seconds (default: minutes).
for setting in time=3 intvl=1 probes=3; do
  for launcher in OMPI PRTE; do
    name=${launcher}_MCA_oob_tcp_keepalive_${setting%=*}
    export "$name=${!name:-${setting#*=}}"
  done
done

mpirun=
pending=
forward() { # SIGNAL
  signalled=1
  if [[ -n $mpirun ]]; then kill -s "$1" "$mpirun" 2> /dev/null || true; else pending=$1; fi
}
for signal in INT TERM HUP USR1 USR2; do
  # shellcheck disable=SC2064  # the name is meant now
  trap "forward $signal" "$signal"
done

# A session of its own: Ctrl-C comes once, from here. Every program of the chain becomes the next, so that
# $! is mpirun, which ends if this script is killed.
setsid setpriv --pdeathsig TERM ip netns exec "$first" mpirun --hostfile "$files/hosts" -np "$ranks" \
  --map-by node --bind-to none --mca plm_rsh_agent "$files/agent" --mca pml ob1 --mca btl self,tcp \
  --mca oob_tcp_if_include "$network" --mca btl_tcp_if_include "$network" "$files/rank" "$@" &
mpirun=$!
[[ -z $pending ]] || kill -s "$pending" "$mpirun" 2> /dev/null || true
if [[ -n $cut_after ]]; then
  # shellcheck disable=SC2016  # expanded by the inner shell
  setsid bash -c 'sleep "$1"; echo "netns.sh: cutting the link" >&2; exec ip -n "$2" link set wire down' - "$cut_after" "$second" &
  cutter=$!
fi

while true; do
  signalled=0
  status=0
  wait "$mpirun" || status=$?
  # A signal ends wait before mpirun has ended: wait again.
  ((signalled)) || break
done
exit "$status"
