#!/bin/sh
# Runs the HAProxy binary that RAY_LIR_HAPROXY names, with its statistics and metrics limited to this machine. Ray Serve writes a new
# configuration for every start, and that configuration opens them on all interfaces.
for word in "$@"; do
    case "$word" in *.cfg) sed -i -E 's/^([[:space:]]*bind )\*?:([0-9]+)/\1127.0.0.1:\2/' "$word" ;; esac
done
exec "$RAY_LIR_HAPROXY" "$@"
