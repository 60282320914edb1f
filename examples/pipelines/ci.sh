#!/bin/sh
# A search as a step of any CI: the job ends as the search does, and leaves one JSON document, outcome.json.
# Needs `nas`, jq and a kubeconfig. A job that was cut off may run again: it waits for the same search.
set -eu
manifest=${1:?usage: ci.sh MANIFEST}

code=0
nas submit "$manifest" --wait --timeout "${TIMEOUT:-12h}" -o json > outcome.json || code=$?
case $code in
    0) ;;
    3) echo "the search goes on: run this job again" >&2; exit 3 ;;
    *) exit "$code" ;;
esac
jq -r '"sample \(.best.sample): \(.best.metricName) \(.best.metric)", "model: \(.modelUri // "none was trained")"' outcome.json
