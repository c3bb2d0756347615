#!/usr/bin/env bash
# Makes a TPU slice on Google Cloud and runs commands of sdxl_jax on all its
# workers (hosts); needs gcloud on this machine, logged in.
#
#   launch/tpu_vm.sh --name=NAME --zone=ZONE [options] ACTION
#
#   create TYPE [--spot ...]  asks for a slice, such as v5p-64; more arguments
#                             go to gcloud
#   status                    ACTIVE: it is there; SUSPENDED: it was preempted
#   copy                      this checkout to all workers
#   install                   Python and requirements.txt on all workers
#   run VERB [arguments]      starts it on all workers, in the background
#   logs                      follows worker 0, which logs for all
#   stop                      SIGTERM to all: train saves a checkpoint and ends
#   delete                    gives the slice back
#
# From nothing to a run, one line after the other:
#
#   tpu() { launch/tpu_vm.sh --name=sdxl --zone=us-east5-a "$@"; }
#   tpu create v5p-64 --spot      # then status, until it says ACTIVE
#   tpu copy && tpu install
#   tpu run train --config configs/stage3.py --workdir /mnt/runs/stage3
#   tpu logs
#
# All workers must see the workdir: a Filestore share, or a bucket mounted with
# gcsfuse. After a preemption (spot) delete, and the same lines again; the run
# goes on from its last checkpoint, on a slice of another size as well. Verbs
# other than train want a slice of one worker.
#
# Options:
#   --project=PROJECT   if it is not gcloud's default
#   --dry_run           prints what would run, and runs nothing
#   --help

set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
checkout=$(dirname "$0")/..

name='' place=()
while [[ ${1-} == --* ]]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=* | --project=*) place+=("$1") ;;
    --dry_run) dry_run=true ;;
    --help) usage && exit ;;
    *) fail "unknown option $1 before the action" ;;
  esac
  shift
done
[[ $name ]] || fail 'give --name=NAME, the name of the slice'
[[ "${place[*]-}" == *--zone=?* ]] || fail 'give --zone=ZONE of the slice'
action=${1-}
[[ $action ]] || fail 'give an action, such as create or run'
shift

# A queued resource waits until there is room; its one node has the same name.
queue() {
  run gcloud compute tpus queued-resources "$1" "$name" "${place[@]}" "${@:2}"
}

# on all 'cd sdxl_jax && ...', or on worker 0.
on() {
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" \
    --worker="$1" --command="$2"
}

create() {
  local type=${1-} runtime
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v[234]-*) runtime="tpu-ubuntu2204-base" ;;
    *) fail "give create a type, such as v5litepod-64 or v5p-64, not '$type'" ;;
  esac
  queue create --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$runtime" "${@:2}"
}

copy() {
  local archive="${TMPDIR:-/tmp}/sdxl_jax.tar.gz"
  run tar -czf "$archive" -C "$checkout" --exclude=__pycache__ \
    configs launch sdxl_jax requirements.txt
  run gcloud compute tpus tpu-vm scp "$archive" "$name:" "${place[@]}" \
    --worker=all
  on all 'mkdir -p sdxl_jax && tar -xzf sdxl_jax.tar.gz -C sdxl_jax'
}

# The images bring a Python that is older than JAX wants; uv brings a newer one.
install() {
  on all "cd sdxl_jax && curl -LsSf https://astral.sh/uv/install.sh | sh \
&& ~/.local/bin/uv venv --allow-existing --python 3.12 \
&& ~/.local/bin/uv pip install -r requirements.txt 'jax[tpu]'"
}

# How many workers there are is not typed: a worker's metadata lists them all.
endpoints=http://metadata.google.internal/computeMetadata/v1/instance/attributes
endpoints+=/worker-network-endpoints
workers="\$(curl -sf -H Metadata-Flavor:Google $endpoints | tr , '\n' | wc -w)"

start() {
  local verb=${1-} command
  [[ $verb ]] || fail 'give run a verb, such as train'
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
