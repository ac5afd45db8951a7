#!/bin/sh
# Runs the HAProxy of RAY_LIR_HAPROXY with its statistics and metrics on this machine alone. Serve's configuration, which it writes anew for
# every start, opens them on all interfaces, whatever the service itself listens to.
for word in "$@"; do
    case "$word" in *.cfg) sed -i -E 's/^([[:space:]]*bind )\*?:([0-9]+)/\1127.0.0.1:\2/' "$word" ;; esac
done
exec "$RAY_LIR_HAPROXY" "$@"
