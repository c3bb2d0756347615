#!/usr/bin/env bash
# Runs a command of sdxl_jax on this machine, in one process for all its GPUs.
#
#   launch/gpu.sh [options] VERB [arguments of the verb]
#   launch/gpu.sh train --config configs/stage3.py --workdir DIR
#
# To train on several machines without a scheduler, start train on each of them
# with the same DIR on a shared disk, the address of the first machine with any
# free port, and the number of the machine, counted from 0.
#
#   launch/gpu.sh --coordinator=10.0.0.1:1234 --processes=4 --process=0 \
#     train --config configs/stage3.py --workdir DIR
#
# Options:
#   --coordinator=HOST:PORT   address of process 0
#   --processes=N             number of processes
#   --process=I               number of this process
#   --dry_run                 prints the command and runs nothing
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
[[ $verb ]] || fail 'pass a verb, such as train or sample'
shift

settings=(XLA_FLAGS="$GPU_FLAGS")
if [[ $coordinator$processes$process ]]; then
  on_hosts "$verb" ||
    fail "only train and precompute run on many machines, not $verb"
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
$dry_run || exec "${command[@]}"  # exec: python itself receives signals
quote "${command[@]}"
