#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what building, testing and the quickstart need, on Debian 12, Debian 13 or Ubuntu 24.04.
#
#   scripts/install_dependencies.sh [--dev]
#
# --dev adds the tools that only contributors use (clang-format, clang-tidy). Packages that are already
# there are left alone; when nothing is missing, neither the network nor root rights are needed.
set -euo pipefail

supported="Debian 12, Debian 13 and Ubuntu 24.04"
packages=(
  # toolchain
  g++ cmake ninja-build ccache pkg-config
  # libraries, see third_party/README.md
  libopenmpi-dev openmpi-bin libeigen3-dev libyaml-cpp-dev libspdlog-dev
  libfmt-dev libcli11-dev nlohmann-json3-dev libxxhash-dev libpcre2-dev zlib1g-dev libcpp-httplib-dev catch2
  # scripts (python3), two network namespaces on one machine (iproute2), text to train on (python3-doc)
  python3 python3-doc iproute2
)

case "${1:-}" in
  "") ;;
  --dev) packages+=(clang-format clang-tidy) ;;
  -h | --help) sed -n '2,/^set /{/^set /d;/SPDX/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
  *) echo "install_dependencies.sh: unknown argument '$1'; only --dev and --help are known" >&2; exit 64 ;;
esac

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
  echo "install_dependencies.sh: this system has no apt; on systems other than $supported" \
       "install the equivalents of: ${packages[*]}" >&2
  exit 70
fi

is_installed() {
  [[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2> /dev/null || true)" == installed ]]
}

# Container images often unpack packages without /usr/share/doc, so that python3-doc is installed and
# yet empty. Prints the packages whose text has to be unpacked again.
list_emptied_docs() {
  local version
  is_installed python3-doc || return 0
  version=$(dpkg-query --show --showformat='${Depends}' python3-doc | grep -oE 'python3\.[0-9]+-doc' | head -n 1)
  [[ -n "$version" ]] || return 0
  if ! compgen -G "/usr/share/doc/${version%-doc}/html/_sources/*" > /dev/null; then echo "$version"; fi
}

missing=()
for package in "${packages[@]}"; do
  is_installed "$package" || missing+=("$package")
done
emptied=$(list_emptied_docs)

if [[ ${#missing[@]} -eq 0 && -z "$emptied" ]]; then
  echo "All ${#packages[@]} packages are installed."
  exit 0
fi

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  if ! command -v sudo > /dev/null; then
    echo "install_dependencies.sh: root rights are needed to install ${missing[*]} $emptied," \
         "and sudo is not there; run this script as root" >&2
    exit 70
  fi
  as_root=(sudo)
fi

apt_get() {
  ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get --yes --quiet \
    -o Dpkg::Use-Pty=0 -o Dpkg::Options::="--path-include=/usr/share/doc/python3*" "$@"
}

echo "Installing with apt-get: ${missing[*]-} ${emptied}"
install_all() {
  apt_get update &&
    { ((${#missing[@]} == 0)) || apt_get install --no-install-recommends "${missing[@]}"; } &&
    { [[ -z "$emptied" ]] || apt_get install --reinstall "$emptied"; }
}
if ! install_all; then
  # shellcheck disable=SC1091
  echo "install_dependencies.sh: apt-get failed; its message stands above. Packages have these names on $supported;" \
       "this is $(. /etc/os-release && echo "${PRETTY_NAME:-an unknown system}")" >&2
  exit 70
fi
echo "Installed."
