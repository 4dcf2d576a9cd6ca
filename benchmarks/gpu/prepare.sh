#!/bin/bash
# bash benchmarks/gpu/prepare.sh [--data FILE --tokenizer DIRECTORY]
# Makes what run_all.sh reads: .gpu/job (the built-in sample) and .gpu/trl (the pairs beside TRL, by default the sample
# too), and in .whl the packages that a machine with torch and transformers alone lacks. The data stages run here, so
# that the machine with the GPU needs nothing of theirs. PYTHON=... is the interpreter, python3 by default.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
target=3.12 # the other machine's Python

rm -rf .gpu/job .gpu/trl .whl
mkdir -p .gpu .whl
"$python" benchmarks/training.py --prepare .gpu/job
"$python" benchmarks/training.py --shape qwen3-0.6b --pairs-per-step 8 --prepare .gpu/trl "$@"

packages="annotated-types msgspec pathlib-abc pydantic pydantic-core typing-extensions typing-inspection
universal-pathlib datasets dill multiprocess trl"
versions="import sys; from importlib.metadata import version; print(*(f'{n}=={version(n)}' for n in sys.argv[1:]))"
platforms=()
for tag in manylinux_2_28 manylinux_2_17 manylinux2014 manylinux1; do platforms+=(--platform "${tag}_x86_64"); done
# shellcheck disable=SC2046,SC2086  # lists of words
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version "$target" --implementation cp \
  "${platforms[@]}" -d .whl $("$python" -c "$versions" $packages)
du -sh .gpu .whl
