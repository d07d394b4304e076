#!/bin/sh
# Makes @ID@.binary: ./build.sh [FOLDER]
set -eu
cd "$(dirname "$0")"
to=${1:-plugins}
mkdir -p "$to"
cargo build --release
cp "${CARGO_TARGET_DIR:-target}/release/@ID@" "$to/.@ID@.new"
mv "$to/.@ID@.new" "$to/@ID@.binary"
