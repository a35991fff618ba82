#!/usr/bin/env bash
# Compiles a copy of the project with mypyc and runs the tests of the hot path there; PYTHON is the environment's.
# The working tree stays as it is: a library beside a source file would hide the next edit of it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
folder=$PWD/build/compiled
tree=$folder/tree
rm -rf "$tree" && mkdir -p "$tree"
git ls-files -z | xargs -0 cp --parents --no-dereference --target-directory="$tree"
ln -sfn "$(realpath ../shared)" "$folder/shared"
mkdir -p .tools && ln -sfn "$PWD/.tools" "$tree/.tools"
echo "compiling with mypyc (a minute or two)..."
MYPYC_OPT_LEVEL=${MYPYC_OPT_LEVEL:-1} "$python" hatch_build.py "$tree" >"$folder/build.log" 2>&1 || { tail -50 "$folder/build.log"; exit 1; }
cd "$tree"
export PYTHONPATH=$tree
# Other histories than those of the interpreted run.
export SIMULATION_FIRST=${SIMULATION_FIRST:-1001} SIMULATION_HISTORIES=${SIMULATION_HISTORIES:-2000}
"$python" -m dispatcher --version | tee /dev/stderr | grep -q '(compiled)'
[ $# -gt 0 ] || set -- tests/unit tests/transport/test_http1.py tests/transport/test_conformance.py \
  tests/transport/test_tls_transport.py tests/transport/test_tls_floods.py tests/benchmarks/test_budget.py tests/tracing tests/security tests/faults
"$python" -m pytest -q -p no:cacheprovider --numprocesses "${PROCESSES:-2}" --dist loadfile "$@"
