#!/bin/sh
# Makes @ID@.binary, which runs this folder: ./build.sh [FOLDER]
set -eu
cd "$(dirname "$0")"
to=${1:-plugins}
mkdir -p "$to"
printf '#!/bin/sh\nexec node "%s/main.js" "$@"\n' "$(pwd)" > "$to/.@ID@.new"
chmod +x "$to/.@ID@.new"
mv "$to/.@ID@.new" "$to/@ID@.binary"
