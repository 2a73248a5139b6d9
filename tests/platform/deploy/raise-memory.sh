#!/bin/sh
# Raises the memory limit of a Deployment, and waits until it runs with it.
set -eu
namespace=${TARGET_RESOURCE%%/*}
name=${TARGET_RESOURCE##*/}
ceiling=$(cat "${POLICY:-/run/kubernaut/configmaps/memory-policy}/ceiling")
export HOME=/tmp # kubectl keeps its cache there

if [ "${MEMORY_LIMIT%Mi}" -gt "${ceiling%Mi}" ]; then
    echo "$MEMORY_LIMIT is over the ceiling of $ceiling" | tee /dev/termination-log
    exit 3
fi
kubectl -n "$namespace" set resources deployment "$name" --limits="memory=$MEMORY_LIMIT"
kubectl -n "$namespace" rollout status deployment "$name" --timeout=60s
