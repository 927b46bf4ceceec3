#!/usr/bin/env bash
# Install Chromium, with which the tests look at the report page. Nothing happens where it is there already.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null 2>&1; then
    exit 0
  fi
done
if ! command -v apt-get >/dev/null 2>&1; then
  echo "error: no Chromium found, and no apt-get to install it with; install it by your system's means" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null 2>&1 || ! sudo -n true 2>/dev/null; then
    echo "error: no Chromium found; install it as root: apt-get install chromium" >&2
    exit 1
  fi
  as_root=(sudo -n)
fi
echo "set-up: installing Chromium"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get -qq update
"${as_root[@]}" apt-get -qq install --yes --no-install-recommends chromium >/dev/null
command -v chromium >/dev/null 2>&1 || { echo "error: the package chromium is installed, and there is no chromium" >&2; exit 1; }
