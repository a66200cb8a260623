#!/bin/sh
# Makes the secret files that docker-compose.yml mounts, and the file of settings that it reads, where they
# are missing.
set -eu
folder=$(dirname "$0")/secrets
mkdir -p "$folder"
chmod 700 "$folder"
for name in master_key token_key audit_key database_password database_owner_password postgres_password redis_password; do
  file=$folder/medichat_$name
  # base64 of 32 random bytes; URL-safe signs except in the keys that must be plain base64
  if [ ! -s "$file" ]; then
    value=$(head -c 32 /dev/urandom | base64 | tr -d '\n')
    [ "$name" = master_key ] || [ "$name" = audit_key ] || value=$(printf %s "$value" | tr '+/' '-_' | tr -d '=')
    printf %s "$value" > "$file"
  fi
  chmod 644 "$file" # the folder keeps others out; the containers' users must be able to read
done
# the hub's token is nothing to make up: empty is none
touch "$folder/medichat_hf_token"
chmod 644 "$folder/medichat_hf_token"
settings=$(dirname "$0")/medichat.env
if [ ! -e "$settings" ]; then
  (umask 077 && printf '%s\n' '# NAME=value, a line each; see the table in README.md' MEDICHAT_MODEL=medgemma-4b > "$settings")
fi
echo "Secrets are in $folder. Keep a copy of medichat_master_key elsewhere: without it no conversation can be read; and of medichat_audit_key: it signs the log."
