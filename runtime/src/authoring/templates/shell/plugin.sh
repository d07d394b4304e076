#!/bin/sh
# A whole plugin in shell: protocol 1.0, a JSON object a line, a process for each connection. Needs socat.
case $1 in
--metadata)
  echo '{"id":"@ID@","name":"@NAME@","version":"1.0.0","icon":"🐚","route":"/@ID@","protocol":"1.0","framing":"lines"}' ;;
--connection) # stdin and stdout are the socket
  while IFS= read -r line; do
    case $line in
    '{"type":"lifecycle"'*'"action":"shutdown"'*) kill -TERM "$HELLO_PID" ;;
    '{"type":"http"'*)
      id=${line#*'"request_id":"'} id=${id%%'"'*} # The first is the message's own: the core writes it before `payload`.
      case $id in '' | *[!0-9A-Za-z._-]*) continue ;; esac
      printf '{"type":"http","timestamp":"%s","request_id":"%s","payload":{"status":200,"headers":{"content-type":"application/json"},"body":"{\\"hello\\":\\"shell\\"}"}}\n' \
        "$(date -u +%Y-%m-%dT%H:%M:%S.000Z)" "$id" ;;
    esac
  done ;;
*)
  export HELLO="$0" HELLO_PID=$$
  umask 177 # The socket is 0600 from its first moment.
  # The connections' processes end too; a stopped socat can't fork another meanwhile.
  trap 'kill -STOP $!; pkill -P $!; kill $!; kill -CONT $!; wait; exit 0' TERM INT
  socat UNIX-LISTEN:"${TORU_PLUGIN_SOCKET:-/tmp/toru-plugins/@ID@.sock}",fork,unlink-early,backlog=128 'SYSTEM:exec \"$HELLO\" --connection' &
  wait $! ;;
esac
