#!/usr/bin/env bash
# Runs a command of sdxl_jax as a Slurm job: one process on each node, which
# drives all GPUs of the node through launch/gpu.sh.
#
#   launch/slurm.sh [options] VERB [arguments of the verb]
#   launch/slurm.sh --nodes=4 --gpus-per-node=8 --exclusive --mem=0 \
#     --time=24:00:00 train --config configs/stage3.py --workdir DIR
#
# --exclusive --mem=0 takes all cores and memory of the nodes, for the data.
# Start it in the checkout, with the run's Python environment active. DIR must
# be on a disk that all nodes see. Near the time limit, or if preempted, train
# saves a checkpoint, and the job goes back into the queue to resume.
#
# Options:
#   --dry_run   prints what would run, and runs nothing
#   --help
# All others before the verb are sbatch's own, as --option=value, and override
# the #SBATCH lines below. Within an allocation (salloc) it starts at once.

#SBATCH --job-name=sdxl_jax
#SBATCH --ntasks-per-node=1
# SIGTERM to the processes five minutes before the time limit: the grace in
# which train saves its checkpoint.
#SBATCH --signal=TERM@300
# Slurm may start the job anew when a node fails or a better job takes it...
#SBATCH --requeue
# ...and its log then goes on where it was.
#SBATCH --open-mode=append

set -euo pipefail
source launch/environment.sh  # sbatch runs a copy of this file: $0 is elsewhere

options=()
while [[ ${1-} == --* ]]; do
  case $1 in
    --dry_run) dry_run=true ;;
    --help) usage && exit ;;
    *) options+=("$1") ;;
  esac
  shift
done
verb=${1-}
[[ $verb ]] || fail 'give a verb, such as train or sample'

if [[ ! ${SLURM_JOB_ID-} ]]; then
  run sbatch ${options[@]+"${options[@]}"} launch/slurm.sh "$@"
  exit
fi

# The allocation says how many nodes there are: it is not typed twice.
nodes=$SLURM_JOB_NUM_NODES
if on_hosts "$verb"; then
  set -- "$@" --config.mesh.processes="$nodes"
elif ((nodes > 1)); then
  fail "only train and precompute run on many nodes, and this job has $nodes"
fi
# Under Slurm JAX would give each process one GPU; ours takes all of its node.
[[ ${SLURM_GPUS_ON_NODE-} ]] || fail 'the job has no GPU: --gpus-per-node=N'
gpus=$(seq -s , 0 $((SLURM_GPUS_ON_NODE - 1)))

# A process that has saved must not end those that still write: JAX itself ends
# all of them when one is lost.
code=0
run srun --ntasks-per-node=1 --kill-on-bad-exit=0 \
  env JAX_LOCAL_DEVICE_IDS="$gpus" \
  bash -c "$RESTARTABLE" bash launch/gpu.sh "$@" || code=$?
# Told to stop before the end? At a time limit Slurm itself does not requeue.
((code != 143)) || run scontrol requeue "$SLURM_JOB_ID"
exit "$code"
