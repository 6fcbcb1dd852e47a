#!/usr/bin/env bash
# On a machine with a GPU, without a network: as many pending paper-scale runs as fit into the seconds given. Start it again next time.
#
#   runs/gpu/drive.sh SECONDS OUT [sweep options; default: --pack 8]
#
# Brings along: .gpu/ (see prepare.sh) with what came home earlier, .gpu/*.tar. Leaves in OUT, in pieces of at most 15 MB, the records,
# and apart from them what can be missed: weights of teachers and auto-encoders, and checkpoints. At home
#
#   for part in records weights; do cat OUT/$part.tar.* > .gpu/$part.tar; iekd merge .gpu/$part.tar; done
#   cp OUT/nvidia*.json runs/bench; git add runs
set -euo pipefail
if [ $# -lt 2 ]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
seconds=$1 out=$2
shift 2
[ $# -gt 0 ] || set -- --pack 8
read -ra grids <<<"${GRIDS:-$(echo runs/paper/*.yaml)}" # GRIDS="a.yaml b.yaml": others, for a trial
end=$(($(date +%s) + seconds))
reserve=75 # seconds to leave, pack and split
work=${IEKD_WORK:-/tmp/iekd}
export PYTHONPATH=$PWD:$work/packages IEKD_DATA=$work/data IEKD_RUNS=$work/runs

# left N: seconds until N before the end.
left() { echo $((end - $1 - $(date +%s))); }

# try PERCENT NAME COMMAND: for at most so much of the window, and whatever becomes of it, the window goes on.
try() {
  local limit=$((seconds * $1 / 100)) name=$2 status=0
  shift 2
  timeout -s INT -k 10 "$limit" "$@" || status=$?
  echo "drive.sh: $name: status $status (0 is good, 124 is out of its $limit s)"
}

prepare() {
  cp -r .gpu/data-*/. "$work/data/"
  python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$work/packages" .gpu/packages/*.whl
  cp -r runs/records/. "$IEKD_RUNS/records/"
  for archive in .gpu/*.tar; do
    [ ! -e "$archive" ] || python3 -m iekd merge "$archive" || echo "drive.sh: $archive was not taken in, or not all of it; going on"
  done
  python3 -m iekd doctor
}

# What only such a machine can tell: whether the GPU computes what the CPU does, and how fast. Not again once the checkout knows.
know() {
  if compgen -G "runs/bench/nvidia*.json" || compgen -G "$IEKD_RUNS/bench/nvidia*.json"; then return; fi
  CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} try 12 "tests on the GPU" python3 -m pytest -m cuda tests/training/test_cuda.py tests/training/test_packing.py
  try 33 benchmark python3 -m iekd bench --rounds 3 --images 6400 6400
  cp "$IEKD_RUNS"/bench/*.json "$out/" || true
}

train() {
  (($(left $reserve) > 0)) || return 0
  timeout -k 10 "$(left $((reserve / 2)))" python3 -m iekd sweep "${grids[@]}" --time-limit "$(left $reserve)" "$@" ||
    echo "drive.sh: sweep: status $? (75 means that there is more to do)"
}

# keep NAME MB: an archive with at most so much of weights and checkpoints, in pieces.
keep() {
  python3 -m iekd bundle "$work/$1.tar" "${grids[@]}" --limit "$2" && split -b 15m "$work/$1.tar" "$out/$1.tar." ||
    echo "drive.sh: $1 were not packed"
}

window() {
  prepare
  know
  train "$@"
  keep records 0
  keep weights 40
}

mkdir -p "$work/data" "$work/packages" "$IEKD_RUNS/records" "$out"
rm -f "$out"/{records,weights}.tar.*
window "$@" 2>&1 | tee "$out/log.txt"
find "$IEKD_RUNS" -name '*.log' -exec tail -v -c 2000 {} + >>"$out/log.txt" # what the runs said last
