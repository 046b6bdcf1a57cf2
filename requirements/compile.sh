#!/bin/sh
# Pins what pyproject.toml and example.in ask for, for all Python versions at once: sh requirements/compile.sh --upgrade
set -eu
cd "$(dirname "$0")/.."
uv_pin() { uv pip compile --quiet --universal --no-header --annotation-style line pyproject.toml "$@"; }
pin() { uv_pin requirements/example.in "$@"; }
pin --group dev --extra all -o requirements/dev.txt "$@"  # first, since dagster-aws decides which Dagster fits
pin --group example --extra openai --extra evaluation --extra emulator --extra review --extra documents --extra evidence -c requirements/dev.txt -o requirements/example.txt "$@"
# each heavy engine has an environment of its own
uv_pin --group engines --extra ray --extra openai --extra emulator --extra evaluation -c requirements/dev.txt -o requirements/ray.txt "$@"
# vLLM needs torch's builds for CPUs, which are not on the usual index, and Python 3.11
if [ -n "${PIP_FIND_LINKS:-}" ]; then wheels="--find-links $PIP_FIND_LINKS"; else wheels="--torch-backend cpu"; fi
# shellcheck disable=SC2086 -- two words
uv pip compile --quiet --python-version 3.11 --no-header --annotation-style line pyproject.toml requirements/vllm.in \
  --group engines --extra ray --override requirements/vllm-overrides.txt $wheels -o requirements/vllm.txt "$@"
uv pip compile --quiet --universal --no-header --annotation-style line requirements/mutants.in -c requirements/dev.txt -o requirements/mutants.txt "$@"
uv_pin requirements/tensorflow.in --group engines --extra export -o requirements/tensorflow.txt "$@"
uv_pin requirements/platform.in --group engines --extra otel --extra openai --extra emulator --extra postgres --extra s3 -o requirements/platform.txt "$@"
uv_pin requirements/lineage.in --group engines --extra openai --extra emulator --extra postgres -c requirements/dev.txt -o requirements/lineage.txt "$@"
uv_pin requirements/presidio.in --group engines --extra openai --extra emulator -c requirements/dev.txt -o requirements/presidio.txt "$@"
# not within the pins of development: MLflow wants an older pyarrow
uv_pin requirements/tracking.in --group engines --extra openai --extra emulator --extra evaluation -o requirements/tracking.txt "$@"
uv_pin --group engines --extra spark --extra openai --extra emulator --extra evaluation -c requirements/dev.txt -o requirements/spark.txt "$@"
uv pip compile --quiet --python-version 3.11 --no-header --annotation-style line requirements/labelstudio.in -o requirements/labelstudio.txt "$@"
# PyFlink's pins leave no room for this package
uv pip compile --quiet --python-version 3.11 --no-header --annotation-style line requirements/flink.in -o requirements/flink.txt "$@"
# the validator wants an older numpy and pandas than this package
uv pip compile --quiet --python-version 3.11 --no-header --annotation-style line requirements/focus.in -o requirements/focus.txt "$@"
