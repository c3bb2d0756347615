#!/usr/bin/env bash
# Creates a TPU slice on Google Cloud and runs commands of sdxl_jax on all its
# workers (hosts). Needs gcloud on this machine, logged in.
#
#   launch/tpu_vm.sh --name=NAME --zone=ZONE [options] ACTION
#
#   create TYPE [--spot ...]  requests a slice, such as v5p-64; passes further
#                             arguments to gcloud
#   status                    ACTIVE: ready; SUSPENDED: preempted
#   copy                      copies this checkout to all workers
#   install                   installs Python and requirements.txt on them
#   run VERB [arguments]      starts a verb on all workers, in the background
#   logs                      follows the log of worker 0, which logs for all
#   stop                      sends SIGTERM: train saves a checkpoint and ends
#   delete                    deletes the slice
#
# From nothing to a run, one line after the other:
#
#   tpu() { launch/tpu_vm.sh --name=sdxl --zone=us-east5-a "$@"; }
#   tpu create v5p-64 --spot      # then tpu status, until it prints ACTIVE
#   tpu copy && tpu install
#   tpu run train --config configs/stage3.py --workdir /mnt/runs/stage3
#   tpu logs
#
# The workdir must be shared by all workers: a Filestore share, or a bucket
# mounted with gcsfuse. After a preemption (spot), delete the slice and repeat
# these lines: the run resumes from its last checkpoint, also on a slice of
# another size. Verbs other than train and precompute need a slice of one
# worker.
#
# Options:
#   --project=PROJECT   default: gcloud's project
#   --dry_run           prints the commands and runs nothing
#   --help

set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
checkout=$(dirname "$0")/..

name='' location=()
while [[ ${1-} == --* ]]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=* | --project=*) location+=("$1") ;;
    --dry_run) dry_run=true ;;
    --help) usage && exit ;;
    *) fail "unknown option $1 before the action" ;;
  esac
  shift
done
[[ $name ]] || fail 'pass --name=NAME, the name of the slice'
[[ "${location[*]-}" == *--zone=?* ]] || fail 'pass --zone=ZONE of the slice'
action=${1-}
[[ $action ]] || fail 'pass an action, such as create or run'
shift

# Manages the queued resource, which waits for capacity; its one node has the
# same name.
queue() {
  run gcloud compute tpus queued-resources "$1" "$name" "${location[@]}" \
    "${@:2}"
}

# Runs a command on a worker by number, or on all: on all 'cd sdxl_jax && ...'
on() {
  run gcloud compute tpus tpu-vm ssh "$name" "${location[@]}" \
    --worker="$1" --command="$2"
}

create() {
  local type=${1-} runtime
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v[234]-*) runtime="tpu-ubuntu2204-base" ;;
    *) fail "create needs a type such as v5litepod-64 or v5p-64, not '$type'" ;;
  esac
  queue create --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$runtime" "${@:2}"
}

copy() {
  local archive="${TMPDIR:-/tmp}/sdxl_jax.tar.gz"
  run tar -czf "$archive" -C "$checkout" --exclude=__pycache__ \
    configs launch sdxl_jax requirements.txt
  run gcloud compute tpus tpu-vm scp "$archive" "$name:" "${location[@]}" \
    --worker=all
  on all 'mkdir -p sdxl_jax && tar -xzf sdxl_jax.tar.gz -C sdxl_jax'
}

# The images' Python is older than JAX requires; uv installs a newer one.
install() {
  on all "cd sdxl_jax && curl -LsSf https://astral.sh/uv/install.sh | sh \
&& ~/.local/bin/uv venv --allow-existing --python 3.12 \
&& ~/.local/bin/uv pip install -r requirements.txt 'jax[tpu]'"
}

# A worker counts the workers in its metadata, which lists them all.
endpoints=http://metadata.google.internal/computeMetadata/v1/instance/attributes
endpoints+=/worker-network-endpoints
workers="\$(curl -sf -H Metadata-Flavor:Google $endpoints | tr , '\n' | wc -w)"

start() {
  local verb=${1-} command
  [[ $verb ]] || fail 'run needs a verb, such as train'
  command=$(quote env LIBTPU_INIT_ARGS="$TPU_FLAGS" \
    .venv/bin/python -m "sdxl_jax.$verb" "${@:2}")
  ! on_hosts "$verb" || command+=" --config.mesh.processes=$workers"
  on all "cd sdxl_jax && { nohup $command > ~/sdxl_jax.log 2>&1 < /dev/null & }"
}

case $action in
  create | copy | install) "$action" "$@" ;;
  run) start "$@" ;;
  status) queue describe --format='value(state.state)' ;;
  logs) on 0 'tail -n 100 -F sdxl_jax.log' ;;
  stop) on all "pkill -TERM -f '^[^ ]*python -m sdxl_jax'" ;;
  delete) queue delete --force ;;
  *) fail "unknown action $action" ;;
esac
