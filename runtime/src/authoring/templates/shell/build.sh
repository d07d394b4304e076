#!/bin/sh
# Makes @ID@.binary: ./build.sh [FOLDER]
set -eu
cd "$(dirname "$0")"
to=${1:-plugins}
mkdir -p "$to"
cp plugin.sh "$to/.@ID@.new"
chmod +x "$to/.@ID@.new"
mv "$to/.@ID@.new" "$to/@ID@.binary"
