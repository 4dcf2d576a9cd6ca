#!/bin/bash
# bash benchmarks/gpu/run_all.sh A|B, after prepare.sh
# A: is the training on a GPU right, and how fast is it. B: a whole job, what changes would give, and TRL beside it.
# Each stage is a process with a time limit of its own: one that fails or hangs costs no other. Ends with the time, and
# with 0 if all stages have passed. Everything printed, and all errors, are in $OUT (.gpu/out by default).
# Without CUDA it is tried on the CPU, with tiny models and twenty times the limits. PYTHON=... is the interpreter.
set -u
cd "$(dirname "$0")/../.." || exit 2
here=benchmarks/gpu part=${1:?A or B} python=${PYTHON:-python3}
out=${OUT:-.gpu/out} scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
log=$out/$part.log
mkdir -p "$out" && : > "$log"

packages="import importlib.util as i; raise SystemExit(not all(map(i.find_spec, 'pydantic msgspec upath trl'.split())))"
if ! "$python" -c "$packages" && compgen -G ".whl/*.whl" > /dev/null; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$scratch/site" .whl/*.whl
fi
export PYTHONPATH=$scratch/site:$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1

if "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
  nvidia-smi --query-gpu=name,driver_version,memory.used,clocks.sm,power.limit --format=csv,noheader | head -1
  small=0.6b large=1.7b slower=1 trl=(--device cuda --case .gpu/trl --steps 12 --warm-up 4)
  export OMP_NUM_THREADS=8
else
  echo "no CUDA: a dry run on the CPU, whose speeds say nothing"
  small=tiny large=tiny slower=20 trl=(--apart --case .gpu/job --steps 3 --warm-up 1)
  export OMP_NUM_THREADS=1
fi
case $part in A) total=350 ;; B) total=320 ;; *) echo "A or B, not $part" && exit 2 ;; esac
total=$((total * slower))

failed=()
verdict() { # NAME EXIT_CODE SECONDS
  if [ "$2" = 0 ]; then echo "[PASS] $1 in $3 s"; else
    echo "[FAIL] $1 in $3 s, exit code $2: see $log"
    failed+=("$1")
  fi
}
stage() { # NAME SECONDS COMMAND...
  local name=$1 limit=$(($2 * slower)) left=$((total - SECONDS)) start=$SECONDS
  shift 2
  ((limit < left)) || limit=$left
  echo "== $name, at most $limit s"
  ((limit > 0)) || { verdict "$name" "no time left" 0; return; }
  timeout -k 5 "$limit" "$@" 2>> "$log" | tee -a "$log"
  verdict "$name" "${PIPESTATUS[0]}" $((SECONDS - start))
}
# Compiling takes a minute for each shape: two layers of it in the background, into a cache that is read once it is whole
warm_up() { # NAME SHAPE
  TORCHINDUCTOR_CACHE_DIR=$scratch/$1 timeout -k 5 $((150 * slower)) "$python" $here/speed.py "$2" compile \
    --layers 2 --steps 1 --warm-up 1 > "$out/warm-up-$1.log" 2>&1 || rm -rf "${scratch:?}/$1"
}
warmed_up() { # NAME...
  local start=$SECONDS name
  wait "$warming"
  for name in "$@"; do
    [ -d "$scratch/$name" ]
    verdict "warm-up-$name" $? $((SECONDS - start))
  done
}
speed() { # NAME SECONDS SHAPE CASE...
  local name=$1 seconds=$2
  shift 2
  stage "speed-$name" "$seconds" env TORCHINDUCTOR_CACHE_DIR="$scratch/$name" "$python" $here/speed.py "$@"
}

if [ "$part" = A ]; then
  stage environment 30 "$python" $here/correctness.py environment
  warm_up small $small &
  warming=$!
  stage attention 75 "$python" $here/correctness.py kernel rows probe
  warmed_up small
  speed small 100 $small eager+profile compile+profile
  stage training 100 "$python" $here/correctness.py train saving evaluation
  speed large 60 $large eager --steps 2 --warm-up 1
else
  (warm_up small $small; warm_up large $large) &
  warming=$!
  stage job 60 "$python" $here/correctness.py job
  stage attention 40 "$python" $here/correctness.py rows probe
  warmed_up small large
  speed small 70 $small compile compile+half compile+half+32k
  speed large 90 $large compile+profile compile+half compile+half+16k
  stage trl 110 "$python" benchmarks/training.py "${trl[@]}"
fi
echo "== ${#failed[@]} failed${failed[*]:+: ${failed[*]}}; $SECONDS s in all"
((${#failed[@]} == 0))
