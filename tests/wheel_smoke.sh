#!/usr/bin/env bash
# Builds the wheel, installs it with its pinned dependencies into a fresh environment, and uses it outside the tree:
# grammar, models and error pages must have come along, and the targets whose libraries are missing must say so.
# Usage: tests/wheel_smoke.sh PYTHON
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_CONSTRAINT=$root/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1

# From a copy of the tracked files: setuptools would pack what an old build/ folder still holds.
mkdir "$work/tree"
(cd "$root" && git ls-files -z | xargs -0 cp --parents --no-dereference --target-directory="$work/tree")
cd "$work"
"$python" -m pip wheel --quiet --no-deps --wheel-dir wheel ./tree
"$python" -m venv venv
venv/bin/python -m pip install --quiet wheel/*.whl
rm -rf tree
export PATH=$work/venv/bin:$PATH

expect() { # STATUS TEXT COMMAND...: the command ends with this status and prints this text
  local status=0 out
  out=$("${@:3}" 2>&1) || status=$?
  if [ "$status" != "$1" ] || [[ $out != *"$2"* ]]; then
    printf 'wheel smoke test: `%s` ended with %s, not %s with "%s":\n%s\n' "${*:3}" "$status" "$1" "$2" "$out"
    exit 1
  fi
}

expect 0 "cnnc 0.1.0" cnnc --version
expect 0 "ResNet" cnnc check resnet50
expect 0 "25,557,032" cnnc summary resnet50 --depth 1
expect 0 "lenet5" cnnc models
expect 0 "" cnnc explain E0312
expect 0 "wrote lenet5.cnnp" cnnc compile lenet5 --target numpy
expect 0 "f" cnnc run lenet5.cnnp --input digit=random
expect 7 "torch" cnnc compile lenet5 --target torch
expect 7 "E06" cnnc compile lenet5 --target cpu
expect 0 "numpy" cnnc doctor
echo "wheel: ok"
