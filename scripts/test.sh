#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds a preset and runs every test: scripts/test.sh [--preset NAME] [ARGUMENT of ctest ...], e.g. -R parity. The last
# line is always "N passed, N failed", with ", N skipped" after it where tests need what this machine or build lacks (a GPU,
# MPI), which are named above it. The exit code is 0 only if nothing failed. The preset is release or, with CI=true in the
# environment, ci, where warnings are errors.
set -euo pipefail
cd "$(dirname "$0")/.."

jobs=$(nproc)
test_jobs=2
preset=release
if [[ ${CI:-} == true ]]; then preset=ci; fi
if [[ ${1:-} == --preset && $# -ge 2 ]]; then
  preset=$2
  shift 2
fi
results=build/$preset/test-results.xml

# Open MPI 4 and 5: containers run tests as root, and tests start more ranks than there are cores.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
# More compiler processes than memory allows would end the build: about 1.5 GB each.
memory_jobs=$(awk '/^MemAvailable:/ {print int($2 / 1572864)}' /proc/meminfo)
if ((memory_jobs < jobs)); then jobs=$((memory_jobs > 0 ? memory_jobs : 1)); fi

# Where the CUDA toolkit is installed, its backend is compiled and linked too. The headers that it needs from the
# network may not come: then configuring leaves CUDA out, and says so.
fetch_cuda_headers() {
  local nvcc
  for nvcc in "${CUDACXX:-nvcc}" "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc"; do
    if command -v "$nvcc" > /dev/null; then
      timeout 60 third_party/fetch_headers.sh > /dev/null 2>&1 || true
      return
    fi
  done
}

build() {
  scripts/install_dependencies.sh && fetch_cuda_headers && cmake --preset "$preset" -DFARSKIP_TESTS=ON &&
    cmake --build --preset "$preset" --parallel "$jobs"
}
if ! build; then
  echo "The build failed, so no test ran."
  echo "0 passed, 1 failed"
  exit 1
fi

echo "Built after $SECONDS s."

rm -f "$results"
status=0
ctest --preset "$preset" --parallel "$test_jobs" --output-junit "$PWD/$results" "$@" || status=$?

sed -n 's/^FARSKIP_CUDA_STATE:INTERNAL=/CUDA: /p' "build/$preset/CMakeCache.txt"

# The counts come from ctest's own record. A test that could not run counts as failed; one that says by
# itself that this machine lacks what it needs is listed as skipped.
counted=0
python3 - "$results" << 'PYTHON' || counted=$?
import sys
import xml.etree.ElementTree as xml

try:
    cases = list(xml.parse(sys.argv[1]).getroot().iter("testcase"))
except (OSError, xml.ParseError) as error:
    cases = []
    print(f"No record of the tests: {error}")
skipped = [case for case in cases
           if case.get("status") == "disabled"
           or any(note.get("message", "").startswith("SKIP_") for note in case.iter("skipped"))]
passed = sum(case.get("status") == "run" for case in cases)
failed = len(cases) - passed - len(skipped)
if not cases:
    print("No test ran.")
    failed = 1
for case in skipped:
    print("Skipped:", case.get("name"))
print(f"{passed} passed, {failed} failed" + (f", {len(skipped)} skipped" if skipped else ""))
sys.exit(failed > 0)
PYTHON
if ((status != 0)); then exit "$status"; fi
exit "$counted"
