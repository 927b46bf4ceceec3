#!/bin/sh
# Builds the kernels and tests/threads.cpp with the thread sanitizer and runs them: any report fails.
set -eu
cd "$(dirname "$0")/.."
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DTUNEBOOK_CHECK_THREADS=ON "$@" >"$build/log" || { cat "$build/log"; exit 1; }
cmake --build "$build" --target threads_check --parallel
TSAN_OPTIONS="halt_on_error=1 exitcode=66" "$build/threads_check"
