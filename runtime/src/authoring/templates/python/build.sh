#!/bin/sh
# Makes @ID@.binary, one file with everything in it: ./build.sh [FOLDER]
set -eu
cd "$(dirname "$0")"
to=${1:-plugins}
mkdir -p "$to"
find src -name __pycache__ -prune -exec rm -r {} +
python3 -m zipapp src -p "/usr/bin/env python3" -o "$to/.@ID@.new"
chmod +x "$to/.@ID@.new"
mv "$to/.@ID@.new" "$to/@ID@.binary"
