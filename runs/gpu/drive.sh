#!/usr/bin/env bash
# On a machine with a GPU, without a network: as many pending paper-scale runs as fit into the seconds given. Start it again next time.
#
#   runs/gpu/drive.sh SECONDS OUT [sweep options; default: --pack 8]
#
# Brings along: .gpu/ (see prepare.sh) and, from earlier times, .gpu/results-*.tar. Leaves in OUT pieces of at most 15 MB; at home
#
#   cat OUT/results.tar.* > results.tar && iekd merge results.tar && git add runs/records
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
seconds=$1 out=$2
read -ra grids <<<"${GRIDS:-$(echo runs/paper/*.yaml)}" # GRIDS="a.yaml b.yaml": others, for a trial
shift 2
[ $# -gt 0 ] || set -- --pack 8
start=$(date +%s)
left() { echo $((seconds - $(date +%s) + start)); }

work=${IEKD_WORK:-/tmp/iekd}
mkdir -p "$work/data" "$work/packages" "$out"
cp -r .gpu/data-*/. "$work/data/"
python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$work/packages" .gpu/packages/*.whl
export PYTHONPATH=$PWD:$work/packages IEKD_DATA=$work/data IEKD_RUNS=$work/runs
mkdir -p "$IEKD_RUNS/records"
cp -r runs/records/. "$IEKD_RUNS/records/"
for results in .gpu/results-*.tar; do
  [ ! -e "$results" ] || python3 -m iekd merge "$results"
done
python3 -m iekd doctor | tee "$out/doctor.txt"

# What only such a machine can tell comes first, once: whether the GPU computes what the CPU does, and how fast.
if [ ! -e "$IEKD_RUNS/bench" ]; then
  python3 -m pytest -q -m cuda 2>&1 | tee "$out/tests.txt" || true
  python3 -m iekd bench --rounds 3 2>&1 | tee "$out/bench.txt" || true
fi

reserve=60 # seconds to leave, pack and split
if (($(left) > reserve)); then
  python3 -m iekd sweep "${grids[@]}" --time-limit $(($(left) - reserve)) "$@" 2>&1 | tee "$out/sweep.txt" || true
fi
python3 -m iekd bundle "$work/results.tar" "${grids[@]}" --only-parents
split -b 15m "$work/results.tar" "$out/results.tar."
[ ! -e "$IEKD_RUNS/bench" ] || cp -r "$IEKD_RUNS/bench/." "$out/"
