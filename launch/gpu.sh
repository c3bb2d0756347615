#!/usr/bin/env bash
# Runs a command of sdxl_jax on this machine: one process drives all its GPUs.
#
#   launch/gpu.sh [options] VERB [arguments of the verb]
#   launch/gpu.sh train --config configs/stage3.py --workdir DIR
#
# Many machines, without a scheduler: start train on each, with the same DIR on
# a disk that all of them see, the address of the first machine with any free
# port, and the machine's own number, counted from 0.
#
#   launch/gpu.sh --coordinator=10.0.0.1:1234 --processes=4 --process=0 \
#     train --config configs/stage3.py --workdir DIR
#
# Options:
#   --coordinator=HOST:PORT   where the processes meet: on process 0
#   --processes=N             how many there are
#   --process=I               which of them this is
#   --dry_run                 prints what would run, and runs nothing
#   --help

set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"

coordinator='' processes='' process=''
while [[ ${1-} == --* ]]; do
  case $1 in
    --coordinator=*) coordinator=${1#*=} ;;
    --processes=*) processes=${1#*=} ;;
    --process=*) process=${1#*=} ;;
    --dry_run) dry_run=true ;;
    --help) usage && exit ;;
    *) fail "unknown option $1 before the verb" ;;
  esac
  shift
done
verb=${1-}
[[ $verb ]] || fail 'give a verb, such as train or sample'
shift

settings=(
  XLA_FLAGS="$GPU_FLAGS"
  XLA_PYTHON_CLIENT_MEM_FRACTION="$GPU_MEMORY_FRACTION"
)
if [[ $coordinator$processes$process ]]; then
  on_hosts "$verb" || fail "only train and precompute run on many machines, not $verb"
  [[ $coordinator && $processes && $process ]] ||
    fail 'many machines need --coordinator, --processes and --process'
  settings+=(
    JAX_COORDINATOR_ADDRESS="$coordinator"
    JAX_NUM_PROCESSES="$processes"
    JAX_PROCESS_ID="$process"
  )
  set -- "$@" --config.mesh.processes="$processes"
fi

command=(env "${settings[@]}" python -m "sdxl_jax.$verb" "$@")
$dry_run || exec "${command[@]}"  # exec: signals reach python itself
quote "${command[@]}"
