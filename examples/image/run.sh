#!/bin/sh
# Raises the memory limit of a Deployment: the remediation of the demo.
set -eu
namespace=${TARGET_RESOURCE%%/*}
name=${TARGET_RESOURCE##*/}
ceiling=$(cat /run/kubernaut/configmaps/memory-policy/ceiling)
approver=$(cat /run/kubernaut/secrets/change-approval/approver)
export HOME=/tmp # kubectl keeps its cache there

echo "asked by $KUBERNAUT_WORKFLOW_EXECUTION: $MEMORY_LIMIT for $TARGET_RESOURCE"
if [ "${MEMORY_LIMIT%Mi}" -gt "${ceiling%Mi}" ]; then
    echo "$MEMORY_LIMIT is over the ceiling of $ceiling" | tee /dev/termination-log
    exit 3
fi
echo "the ceiling is $ceiling, the approver $approver"
patch='{"metadata":{"annotations":{"example.com/approved-by":"%s"}},"spec":{"template":{"spec":{"containers":[{"name":"app","resources":{"limits":{"memory":"%s"}}}]}}}}'
# shellcheck disable=SC2059
kubectl -n "$namespace" patch deployment "$name" -p "$(printf "$patch" "$approver" "$MEMORY_LIMIT")"
