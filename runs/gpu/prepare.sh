#!/usr/bin/env bash
# Here, before a machine with a GPU is borrowed: collect in .gpu/ what runs/gpu/drive.sh needs there besides this checkout, in pieces
# that may travel one by one. Needs a package index, and CIFAR-10 and CIFAR-100 where `iekd data list` finds them.
#
#   runs/gpu/prepare.sh [MEGABYTES_A_PIECE] [PYTHON_VERSION_THERE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
piece=${1:-45} there=${2:-3.12} python=${PYTHON:-python3}

rm -rf .gpu/packages .gpu/all .gpu/data-*
mkdir -p .gpu/packages .gpu/all
# The one dependency that such machines tend to lack.
"$python" -m pip download --quiet --only-binary=:all: --python-version "$there" --implementation cp \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .gpu/packages "pydantic>=2.7"
for name in cifar10 cifar100; do
  "$python" -m iekd data pack "$name" .gpu/all
done
# Whole files into pieces, in the order of their names.
n=0 size=$((piece * 1000000)) full=$((piece * 1000000))
for file in .gpu/all/*/*; do
  bytes=$(stat -c %s "$file")
  if ((full + bytes > size)); then n=$((n + 1)) full=0; fi
  full=$((full + bytes))
  target=.gpu/data-$n/$(basename "$(dirname "$file")")
  mkdir -p "$target" && mv "$file" "$target"
done
rm -r .gpu/all
du -sh .gpu/*
