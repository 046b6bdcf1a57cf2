#!/bin/sh
# Pins what pyproject.toml and example.in ask for, for all Python versions at once: sh requirements/compile.sh --upgrade
set -eu
cd "$(dirname "$0")/.."
uv_pin() { uv pip compile --quiet --universal --no-header --annotation-style line pyproject.toml "$@"; }
pin() { uv_pin requirements/example.in "$@"; }
pin --group dev --extra all -o requirements/dev.txt "$@"  # first, since dagster-aws decides which Dagster fits
pin --group example --extra openai --extra evaluation --extra emulator -c requirements/dev.txt -o requirements/example.txt "$@"
# each heavy engine has an environment of its own
uv_pin --group engines --extra ray --extra openai --extra emulator -c requirements/dev.txt -o requirements/ray.txt "$@"
