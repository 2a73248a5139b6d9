#!/bin/sh
# Dependency rules that the manifests cannot say by themselves.
set -eu
for forbidden in kube-client hyper reqwest tokio; do
    if cargo tree --quiet -p wfe-model -e normal --prefix none | grep -q "^$forbidden "; then
        echo "wfe-model must be pure, but depends on $forbidden:" >&2
        cargo tree -p wfe-model -e normal -i "$forbidden" >&2
        exit 1
    fi
done
if cargo tree --quiet --workspace -e normal,dev --prefix none | grep -qE '^(aws-lc-rs|openssl|native-tls) '; then
    echo "a second TLS provider is in the tree: ring is the one (cargo tree -i aws-lc-rs shows who brings it)" >&2
    exit 1
fi
