#!/bin/sh
# Dependency rules that the manifests cannot say by themselves.
set -eu
model=$(cargo tree --quiet -p wfe-model -e normal --prefix none)
for forbidden in kube-client hyper reqwest tokio; do
    if echo "$model" | grep -q "^$forbidden "; then
        echo "wfe-model must be pure, but depends on $forbidden:" >&2
        cargo tree -p wfe-model -e normal -i "$forbidden" >&2
        exit 1
    fi
done
everything=$(cargo tree --quiet --workspace -e normal,dev --prefix none)
if echo "$everything" | grep -qE '^(aws-lc-rs|openssl|native-tls) '; then
    echo "a second TLS provider is in the tree: ring is the one (cargo tree -i aws-lc-rs shows who brings it)" >&2
    exit 1
fi
