#!/bin/sh
# Dependency rules that the manifests cannot say by themselves. Each crate is looked at alone, so that
# features of the workspace cannot hide what it depends on.
set -eu
pure() { # CRATE FORBIDDEN...
    crate=$1
    shift
    tree=$(cargo tree --quiet -p "$crate" -e normal --prefix none)
    for forbidden in "$@"; do
        if echo "$tree" | grep -q "^$forbidden "; then
            echo "$crate must be pure, but depends on $forbidden:" >&2
            cargo tree -p "$crate" -e normal -i "$forbidden" >&2
            exit 1
        fi
    done
}
pure wfe-model kube-client kube-runtime hyper reqwest tokio tracing prometheus-client
pure wfe-core kube-client kube-runtime hyper reqwest tokio tracing prometheus-client
everything=$(cargo tree --quiet --workspace -e normal,dev --prefix none)
if echo "$everything" | grep -qE '^(aws-lc-rs|openssl|native-tls) '; then
    echo "a second TLS provider is in the tree: ring is the one (cargo tree -i aws-lc-rs shows what depends on it)" >&2
    exit 1
fi
