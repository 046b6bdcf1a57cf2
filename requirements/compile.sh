#!/bin/sh
# Pins what pyproject.toml and example.in ask for, for all Python versions at once: sh requirements/compile.sh --upgrade
set -eu
cd "$(dirname "$0")/.."
pin() { uv pip compile --quiet --universal --no-header --annotation-style line pyproject.toml requirements/example.in "$@"; }
pin --group dev --all-extras -o requirements/dev.txt "$@"  # first, since dagster-aws decides which Dagster fits
pin --group example --extra openai --extra evaluation --extra emulator -c requirements/dev.txt -o requirements/example.txt "$@"
