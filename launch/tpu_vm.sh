#!/usr/bin/env bash
# One training run on all workers of a Cloud TPU VM:
#   TPU_NAME=my-tpu ZONE=us-central2-b PROJECT=my-project \
#     bash launch/tpu_vm.sh [--dry_run] --config FILE --workdir /mnt/SHARED/DIR
# The workdir lies on storage that all workers mount (NFS, or a bucket through gcsfuse).
# Every worker has the repository in REPOSITORY (default mrl_jax, relative to its home) with its
# packages in .venv there. --dry_run prints the command and runs nothing.
# Any other shell gets one line here instead of syntax errors further down.
[ -n "${BASH_VERSION:-}" ] || { echo "error: start this with bash: bash $0" >&2; exit 2; }
set -euo pipefail

dry_run=false
if [[ ${1:-} == --dry_run ]]; then
  dry_run=true
  shift
fi

for name in TPU_NAME ZONE PROJECT; do
  if [[ -z ${!name:-} ]]; then
    echo "error: set $name; TPU_NAME, ZONE and PROJECT say which TPU" >&2
    exit 2
  fi
done

training=(.venv/bin/python -m mrl_jax.train --distributed "$@")
# The workers' shell reads this line, so every word is quoted once more.
printf -v folder '%q' "${REPOSITORY:-mrl_jax}"
printf -v words '%q ' "${training[@]}"
remote="cd $folder && ${words% }"
command=(
  gcloud compute tpus tpu-vm ssh "$TPU_NAME"
  "--zone=$ZONE" "--project=$PROJECT" --worker=all "--command=$remote"
)
if $dry_run; then
  printf -v line '%q ' "${command[@]}"
  echo "${line% }"
  exit
fi
exec "${command[@]}"
