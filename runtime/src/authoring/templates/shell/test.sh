#!/bin/sh
# ./test.sh: the metadata, and one request by hand.
set -eu
cd "$(dirname "$0")"
./plugin.sh --metadata | grep -q '"id":"@ID@"'
folder=$(mktemp -d)
TORU_PLUGIN_SOCKET=$folder/s ./plugin.sh &
trap 'kill $!; rm -r "$folder"' EXIT
tries=0
until [ -S "$folder/s" ]; do
  tries=$((tries + 1))
  [ $tries -lt 100 ] || { echo "it does not listen" >&2; exit 1; }
  sleep 0.1
done
echo '{"type":"http","request_id":"r1","payload":{"method":"GET","path":"/"}}' | socat -t 5 - "UNIX-CONNECT:$folder/s" | grep -q '"status":200'
echo ok
