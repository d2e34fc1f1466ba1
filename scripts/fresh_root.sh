#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tries the committed tree as a new user would: in a root of a distribution that holds nothing else. --help says the rest.
# shellcheck disable=SC1091  # os-release of the root
set -euo pipefail

usage() {
  cat << 'TEXT'
usage: scripts/fresh_root.sh SUITE [COMMAND]

Makes a root of SUITE (bookworm, trixie: Debian 12, 13; noble: Ubuntu 24.04) with debootstrap, copies what is committed
into it, runs both commands of the README there (or COMMAND, with bash), and prints how long each took and its last
lines. Needs root rights, debootstrap and a mirror.

In the environment:
  MIRROR        where packages come from; otherwise what this host's apt uses for the same distribution, otherwise
                the public mirror of the distribution
  KEYRING       keys that sign the mirror; otherwise the distribution's file in /usr/share/keyrings
  FRESH_ROOTS   folder of the roots; otherwise /var/tmp/farskip-roots

The bare root, FRESH_ROOTS/SUITE.bare, is made once and copied for each run: delete it to have newer packages. The root
of the last run, FRESH_ROOTS/SUITE, stays for a look; the next run replaces it. Everything that is mounted or started
in a root ends with the run.

Exit code: that of the first command that failed; 64 wrong arguments, 70 the root cannot be made.
TEXT
}

die() { # CODE MESSAGE
  echo "fresh_root.sh: $2" >&2
  exit "$1"
}

case ${1:-} in
  --help | -h) usage; exit 0 ;;
  bookworm | trixie)
    distribution=debian components=main default_mirror=http://deb.debian.org/debian
    keyring=${KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg} keyring_package=debian-archive-keyring
    ;;
  noble)
    distribution=ubuntu components=main,universe default_mirror=http://archive.ubuntu.com/ubuntu
    keyring=${KEYRING:-/usr/share/keyrings/ubuntu-archive-keyring.gpg} keyring_package=ubuntu-keyring
    ;;
  *) die 64 "SUITE \"${1:-}\": allowed are bookworm, trixie and noble; see --help" ;;
esac
suite=$1
(($# <= 2)) || die 64 "COMMAND is one argument: put it in quotes"
commands=(./scripts/quickstart.sh ./scripts/test.sh)
(($# == 1)) || commands=("$2")
((EUID == 0)) || die 70 "a root needs root rights; run it with sudo"

# A mount namespace of its own: no mount outlives this script or is seen outside it, however it ends, so that a root
# can be deleted without harm. A process namespace likewise ends what was started in the root.
if [[ ${FRESH_ROOT_INSIDE:-} != yes ]]; then
  FRESH_ROOT_INSIDE=yes unshare --mount --propagation private --pid --fork --kill-child --mount-proc "$0" "$@" &
  inside=$!
  # unshare takes no other signal while it waits; what it has started gets this one too.
  trap 'kill -KILL "$inside"; exit 143' INT TERM HUP
  wait "$inside"
  exit
fi

cd "$(dirname "$0")/.."
roots=${FRESH_ROOTS:-/var/tmp/farskip-roots}
bare=$roots/$suite.bare
root=$roots/$suite
mkdir -p "$roots"
exec 9> "$roots/$suite.lock"
flock --nonblock 9 || die 70 "another run uses $root; wait for it, or set FRESH_ROOTS"

# A root that something is mounted in (by hand: what this script mounts is gone by now) is not deleted.
remove_root() { # FOLDER
  if awk -v root="$1/" 'index($5 "/", root) == 1 {found = 1} END {exit !found}' /proc/self/mountinfo; then
    die 70 "something is mounted under $1; umount it first"
  fi
  rm -rf --one-file-system "$1"
}

# The mirror of `distribution` that apt takes packages from on this host, if it is of the same distribution.
host_mirror() {
  # shellcheck disable=SC2016  # expanded by apt
  apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' 2> /dev/null |
    awk -v origin="$distribution" 'tolower($1) == origin && $2 !~ /security/ {print $2; exit}'
}

make_bare_root() {
  local mirror script
  command -v debootstrap > /dev/null || die 70 "debootstrap is missing; apt-get install debootstrap"
  [[ -e $keyring ]] ||
    die 70 "no $keyring, which signs packages of $suite; install $keyring_package, or name the file in KEYRING"
  mirror=${MIRROR:-$(host_mirror)}
  mirror=${mirror:-$default_mirror}
  # A debootstrap that is older than the suite knows it under no name.
  script=/usr/share/debootstrap/scripts/$suite
  if [[ ! -e $script && $distribution == ubuntu ]]; then script=${script%/*}/gutsy; fi
  remove_root "$bare.part"
  echo "Making a root of $suite from $mirror."
  debootstrap --variant=minbase --components="$components" --keyring="$keyring" \
    "$suite" "$bare.part" "$mirror" "$script" > "$bare.log" 2>&1 || { tail -n 20 "$bare.log" >&2; die 70 "debootstrap failed; $bare.log"; }
  printf 'deb %s %s %s\n' "$mirror" "$suite" "${components/,/ }" "$mirror" "$suite-updates" "${components/,/ }" \
    > "$bare.part/etc/apt/sources.list"
  # How this host reaches mirrors: proxies, timeouts, checks of dates.
  apt-config dump --no-empty | grep -E '^Acquire::(https?|Check|Retries|Force)' > "$bare.part/etc/apt/apt.conf.d/90host" || true
  mv "$bare.part" "$bare"
}

[[ -d $bare ]] || make_bare_root
remove_root "$root"
cp --archive --reflink=auto "$bare" "$root"
cp --dereference /etc/resolv.conf /etc/hosts "$root/etc/"
mount --bind "$root" "$root" # so that "/" is a mount there, which network namespaces insist on
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mkdir "$root/farskip"
[[ -z $(git status --porcelain) ]] || echo "Note: what is not committed is left out." >&2
git archive HEAD | tar --extract --directory "$root/farskip"

in_root() { # COMMAND
  env --ignore-environment HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} ${no_proxy:+no_proxy="$no_proxy"} \
    chroot "$root" bash -c "cd /farskip && $1" 9>&- < /dev/null
}

status=0
summary=()
for command in "${commands[@]}"; do
  log=$root/$((${#summary[@]} + 1)).log
  echo "== $suite: $command"
  started=$SECONDS
  code=0
  in_root "$command" 2>&1 | tee "$log" || code=$?
  summary+=("$command: $((SECONDS - started)) s, exit code $code; the last lines:"$'\n'"$(tail -n 3 "$log" | sed 's/^/    /')")
  ((status != 0)) || status=$code
done
echo
echo "== $(. "$root/etc/os-release" && echo "$PRETTY_NAME"), $(nproc) cores:" \
  "$(in_root 'g++ --version | head -n 1; mpirun --version | head -n 1' 2> /dev/null | paste --serial --delimiters=,)"
printf '%s\n' "${summary[@]}"
exit "$status"
