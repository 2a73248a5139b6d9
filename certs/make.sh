#!/bin/sh
# Makes a certificate for the webhook and an authority that signs it, for `certificates.mode: provided`.
#
#   certs/make.sh DIRECTORY [SERVICE] [NAMESPACE] [DAYS]
#
# Writes ca.crt, ca.key, tls.crt and tls.key. An authority that is there already is used again, so that a renewed
# certificate is trusted as before.
set -eu
directory=${1:?usage: certs/make.sh DIRECTORY [SERVICE] [NAMESPACE] [DAYS]}
service=${2:-workflow-execution-webhook}
namespace=${3:-kubernaut-system}
days=${4:-365}
host=$service.$namespace.svc
umask 077
mkdir -p "$directory"
cd "$directory"
key() { openssl ecparam -name prime256v1 -genkey -noout; }
if ! [ -f ca.key ]; then
  key > ca.key
  openssl req -x509 -new -key ca.key -subj "/CN=$host authority" -days 3650 -out ca.crt \
    -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign
fi
key > tls.key
openssl req -new -key tls.key -subj "/CN=$host" -out tls.csr
printf 'subjectAltName=DNS:%s\nextendedKeyUsage=serverAuth\nkeyUsage=critical,digitalSignature\n' "$host" > tls.ext
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days "$days" -extfile tls.ext -out tls.crt 2>/dev/null
rm tls.csr tls.ext
echo "$PWD: certificate for $host, valid for $days days. Next:"
echo "  kubectl -n $namespace create secret tls $service-tls --cert tls.crt --key tls.key"
echo "  helm upgrade … --set certificates.mode=provided --set certificates.provided.secretName=$service-tls \\"
echo "    --set-file certificates.provided.caBundle=ca.crt"
