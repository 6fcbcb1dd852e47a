#!/usr/bin/env bash
# The campaign's queue: bash runs/campaign.sh start | stop | status | commit. `start` goes on where any machine left off.
# Each grid is trained by the library of one commit, that of its protocol; records go into this checkout's runs/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
runs=$PWD/runs
home=${CAMPAIGN_HOME:-$HOME/iekd-campaign}
plan=$(head -n 1 runs/campaign.commit)
# Imagenette: its pilot, which is done, and its grid, with the epochs and rate that the pilot's rule chose.
pilot=567f7743907461e4ebb4bd04c9685f9ff2166e63
imagenette=b0be8a53860afa19bc085665a77344833ba4494e
# Detection's pilot, which is done, and the paper's own networks on Imagenette; detection with what its pilot's rule chose.
later=8ff4bdf1afff3ed1c0544baa2daa4555668d5e25
detection=c2d3ce935defe90a553c4288d33c5235490bc2e4
# The second set of controls.
mirror=35859c8fb9e1b48d2bedcaab21baf1e84f51c7ed
# Active neurons on CIFAR-10: counted by this library, also in desk students that an older one trained.
neurons=fbeabaed306c2b4b2b919b3f20a89d9e03df6b6b
python=$home/env/bin/python
cores=$(nproc)
export IEKD_DATA=${IEKD_DATA:-$PWD/../shared/data}

# A worktree of a commit: what is done to this checkout meanwhile changes no run. Prints where it lies.
library() { # commit
  local tree=$home/tree-$1
  if [ "$(git -C "$tree" rev-parse HEAD 2>/dev/null)" != "$1" ]; then  # none, or that of a checkout that is gone
    rm -rf "$tree"
    git worktree prune
    git worktree add --quiet --detach "$tree" "$1"
  fi
  echo "$tree"
}

prepare() {
  mkdir -p "$home/cache"
  local tree
  tree=$(library "$plan")
  library "$pilot" >/dev/null
  library "$imagenette" >/dev/null
  library "$later" >/dev/null
  library "$detection" >/dev/null
  library "$mirror" >/dev/null
  library "$neurons" >/dev/null
  if [ ! -e "$home/env/ready" ]; then
    "${PYTHON:-python3}" -m venv --clear "$home/env"
    "$python" -m pip install -qq --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 -e "$tree"
    touch "$home/env/ready"
  fi
  "$python" -c 'import torchmetrics, faster_coco_eval' 2>/dev/null ||
    "$python" -m pip install -qq --disable-pip-version-check "torchmetrics>=1.9" "faster-coco-eval>=1.8"
  # Checkpoints and weights lie outside the checkout, which may be laid anew.
  [ -e runs/cache ] || ln -s "$home/cache" runs/cache
  mkdir -p runs/again/records/class/cifar10
  [ -e runs/again/records/class/cifar10/resnet20 ] || cp -r runs/records/class/cifar10/resnet20 runs/again/records/class/cifar10
}

# One store's grids, until they are done; a signal to stop reaches the sweep, which leaves checkpoints.
# A process a core, unless `jobs` and `threads` say otherwise.
step() { # commit, store, grids and options...
  local tree=$home/tree-$1
  (cd "$tree" && PYTHONPATH=$tree IEKD_RUNS=$2 OMP_NUM_THREADS=${threads:-1} exec "$python" -m iekd sweep "${@:3}" --jobs "${jobs:-$cores}") &
  child=$!
  wait "$child" || [ $? -eq 1 ] # 1: some run failed, and it said so
}

# Active neurons of the desk students whose weights are in the repository; what is counted already is passed over.
count_neurons() {
  local tree=$home/tree-$neurons
  sed 's/seed: \[.*\]/seed: 300..303/' "$runs/desk.yaml" >"$home/desk-neurons.yaml"
  (cd "$tree" && PYTHONPATH=$tree IEKD_RUNS=$runs OMP_NUM_THREADS=$cores exec "$python" -m iekd analyse "$home/desk-neurons.yaml") &
  child=$!
  wait "$child" || true # what went wrong stands in the log
}

queue() {
  # A session of its own gets an equal share of the processor, whatever its nice value, unless its group is nice too.
  echo 19 2>/dev/null >/proc/self/autogroup || true
  trap 'kill -TERM "$child"; wait "$child"; exit 143' TERM
  # Desk scale needs bfloat16 in hardware; class scale runs anywhere. One pack at a time has a seed after two hours; a pack a core
  # would have as many after four, a tenth more in all (measured on an EPYC with AVX-512: 313 s an epoch, and 278).
  if grep -qE 'amx_bf16|avx512_bf16' /proc/cpuinfo; then
    jobs=1 threads=$cores step "$plan" "$runs" "$runs/desk.yaml" "$runs/desk-secondary.yaml" --pack 5 --analyse
  fi
  count_neurons
  step "$plan" "$runs" "$runs/controls.yaml" --pack 8
  step "$pilot" "$runs" "$runs/imagenette-pilot.yaml"
  step "$later" "$runs" "$runs/detection-pilot.yaml"
  step "$detection" "$runs" "$runs/detection.yaml" --pack 7
  step "$mirror" "$runs" "$runs/mirror/grid.yaml" --pack 8
  step "$plan" "$runs/again" "$runs/again/grid.yaml" --pack 8
  step "$neurons" "$runs/again" "$runs/again/neurons.yaml" --pack 8 --analyse
  step "$imagenette" "$runs" "$runs/imagenette.yaml" --pack 8 --analyse
  step "$plan" "$runs" "$runs/joint.yaml" "$runs/profile.yaml" "$runs/ladder.yaml" --pack 8
  step "$later" "$runs" "$runs/imagenette-pair.yaml" --analyse
  echo "The queue is done."
}

# Records and analyses, with the weights that later runs, figures and analyses need: parents (seeds below 100 of one network), the desk
# students of seeds 300 to 303, and those of seed 100 on photographs and blood cells; none above 5 MB.
is_wanted() { # runs/records/PRESET/DATASET/PAIR/VARIANT/seedN.json
  local dataset pair variant file seed
  IFS=/ read -r _ _ _ dataset pair variant file <<<"$1"
  seed=${file//[!0-9]/}
  [[ $1 =~ /desk/.*/seed30[0-3]\.json$ || $dataset/$seed =~ ^(imagenette|bccd)/100$ ]] && return
  # the pilots' are nobody's parents, but for detection's teachers with the setting that was chosen
  [[ $pair != *-* && $seed -lt 100 && $dataset/$pair != imagenette/resnet10* ]] || return
  [[ $dataset != bccd || $pair == *x0.25_3x3 && $variant =~ epochs=48-(teacher_)?lr=0.04$ ]]
}

commit_records() {
  local record weights
  find runs/records -name 'seed*.json' ! -name '*.analysis.json' | while read -r record; do
    weights=${record/records/cache}; weights=${weights%.json}.safetensors
    is_wanted "$record" && [ ! -e "${record%.json}.safetensors" ] || continue
    [ -n "$(find "$weights" -size -5000k 2>/dev/null)" ] || continue
    cp "$weights" "${record%.json}.safetensors"
  done
  git add runs/records runs/again/records
  git diff --cached --quiet -- runs/records runs/again/records ||
    git commit --quiet -m "Records of the campaign: $(git diff --cached --name-only -- runs | grep -c 'seed[0-9]*\.json') runs" -- runs/records runs/again/records
  git log -1 --format='%h %s'
}

case ${1:-} in
  start)
    [ ! -e "$home/pid" ] || ! kill -0 "$(cat "$home/pid")" 2>/dev/null || { echo "It runs already: $(cat "$home/pid")"; exit 1; }
    prepare
    (cd "$home/tree-$plan" && PYTHONPATH=. "$python" -c 'import iekd, torch; print("library", iekd.__file__, "torch", torch.__version__)')
    setsid nohup nice -n 19 bash "$runs/campaign.sh" queue >>"$home/log" 2>&1 &
    echo $! >"$home/pid"
    echo "started: process $(cat "$home/pid"), log $home/log"
    ;;
  queue) queue ;;
  stop)
    kill -TERM "$(cat "$home/pid")" 2>/dev/null || { echo "It does not run."; exit 0; }
    while kill -0 "$(cat "$home/pid")" 2>/dev/null; do sleep 1; done
    echo "stopped: every run has its checkpoint"
    ;;
  commit) commit_records ;;
  status) tail -c 400 "$home/log"; echo; git -C "$runs" status --short -- records again/records | wc -l | xargs echo "records not committed:" ;;
  *) sed -n 2,3p "$runs/campaign.sh"; exit 2 ;;
esac
