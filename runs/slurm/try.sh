#!/usr/bin/env bash
# The Snakefile on a real SLURM of one node, made in a temporary folder and removed at the end: a small grid, one of whose jobs is
# killed in the middle. Needs root, and once: apt-get install munge slurmctld slurmd slurm-client; pip install -e ".[sweeps]".
#
#   sudo env PATH="$PATH" runs/slurm/try.sh [REPORT.json]
set -euo pipefail
report=${1:+$(realpath "$1")}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

[ "$(id -u)" = 0 ] || { echo "root is needed to start slurmd" >&2; exit 1; }
for program in munged slurmctld slurmd sbatch snakemake papermill iekd; do
  command -v "$program" >/dev/null || { echo "$program is missing; see the first lines of $0" >&2; exit 1; }
done

conf=/etc/slurm/slurm.conf # jobs look for it there
[ ! -e $conf ] || { echo "$conf exists: this machine has a SLURM of its own, use that" >&2; exit 1; }
folder=$(mktemp -d /tmp/iekd-slurm.XXXXXX)
chmod 755 "$folder"
tear_down() {
  [ -z "${snakemake:-}" ] || kill $snakemake 2>/dev/null || true
  scancel --user="$(id -un)" 2>/dev/null || true
  for daemon in slurmd slurmctld munged; do
    [ ! -s "$folder/$daemon.pid" ] || kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true
  done
  sleep 2
  rm -rf "$folder" $conf
}
trap tear_down EXIT

# ---------------------------------------------------------------------- a cluster of one node
node=$(hostname -s)
mkdir "$folder"/{state,spool}
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
mkdir -p "$(dirname $conf)"
cat >$conf <<CONF
ClusterName=try
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
CONF
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld
slurmd
until sinfo --noheader --format=%t 2>/dev/null | grep -q idle; do sleep 1; done
sinfo

# ---------------------------------------------------------------------- a grid, and a job killed in the middle
export IEKD_RUNS=$folder/runs OMP_NUM_THREADS=1
cat >"$folder/grid.yaml" <<GRID
base: {preset: smoke, epochs: 500}
runs:
  - {method: [supervised, kd], seed: [0, 1]}
GRID
sweep() {
  snakemake -s runs/Snakefile --profile runs/profiles/slurm --config grid="$folder/grid.yaml" --quiet \
    --default-resources mem_mb=1000 runtime=20 --latency-wait 5 --slurm-no-account --slurm-init-seconds-before-status-checks 5 \
    --slurm-status-command squeue  # sacct needs a database
}
sweep &
snakemake=$!
victim=cache/smoke/digits/resnet14x0.5-resnet8x0.25/kd-epochs=500/seed0
until [ -e "$IEKD_RUNS/$victim.checkpoint.safetensors" ]; do
  kill -0 $snakemake || { cat "$folder"/*.log; exit 1; }
  sleep 0.2
done
squeue --format="%i %T %k"
job=$(squeue --noheader --states=R --format="%i %k" | awk '/kd-epochs=500\/seed0|kd-epochs=500_seed0/ {print $1}')
echo "== killing job $job, in the middle of $victim"
scancel --signal=KILL --full "$job"
wait $snakemake

# ---------------------------------------------------------------------- what came out
echo "== the same grid again: nothing to do"
sweep
python - "$victim" "${report:-}" <<'PYTHON'
"""The second job went on in the middle, and its result is that of a run never stopped."""
import json, os, pathlib, re, subprocess, sys

runs = pathlib.Path(os.environ["IEKD_RUNS"])
notebook = (runs / f"{sys.argv[1]}.ipynb").read_text()
first = min(int(n) for n in re.findall(r"(\d+)/500 \[", notebook))
calm = runs.parent / "calm"
subprocess.run(["iekd", "sweep", runs.parent / "grid.yaml", "--jobs", "2"], env={**os.environ, "IEKD_RUNS": str(calm)}, check=True)
same = ("hash", "parents", "weights", "history", "metrics")
found = {p.relative_to(runs): json.loads(p.read_text()) for p in runs.glob("records/**/*.json")}
for path, record in found.items():
    other = json.loads((calm / path).read_text())
    assert all(record[name] == other[name] for name in same), path
assert first > 0, "the killed job started anew"
if report := sys.argv[2]:
    slurm = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]
    from importlib.metadata import version
    facts = {"slurm": slurm, "snakemake": version("snakemake"), "records": len(found), "resumed_at": first, "epochs": 500}
    pathlib.Path(report).write_text(json.dumps(facts, indent=1) + "\n")
print(f"== {len(found)} records equal those of a calm sweep; the killed run went on from epoch {first} of 500")
PYTHON
