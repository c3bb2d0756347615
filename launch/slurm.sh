#!/usr/bin/env bash
# Runs a command of sdxl_jax as a Slurm job: one process per node, for all GPUs
# of the node, started by launch/gpu.sh.
#
#   launch/slurm.sh [options] VERB [arguments of the verb]
#   launch/slurm.sh --nodes=4 --gpus-per-node=8 --exclusive --mem=0 \
#     --time=24:00:00 train --config configs/stage3.py --workdir DIR
#
# --exclusive --mem=0 reserves all cores and memory of the nodes, for the data
# pipeline. Start the script in the checkout, with the run's Python environment
# active. DIR must be on a disk that all nodes share. Near the time limit, or if
# preempted, train saves a checkpoint, and the job is requeued and resumes.
#
# Options:
#   --dry_run   prints the commands and runs nothing
#   --help
# Other options before the verb, as --option=value, are passed to sbatch and
# override the #SBATCH lines below. Within an allocation (salloc) the command
# starts at once.

#SBATCH --job-name=sdxl_jax
#SBATCH --ntasks-per-node=1
# SIGTERM to the processes five minutes before the time limit, so that train can
# save its checkpoint.
#SBATCH --signal=TERM@300
# Slurm may restart the job when a node fails or the job is preempted; the log
# is then continued.
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
source launch/environment.sh  # not by $0: sbatch runs a copy of this file

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
[[ $verb ]] || fail 'pass a verb, such as train or sample'

if [[ ! ${SLURM_JOB_ID-} ]]; then
  run sbatch ${options[@]+"${options[@]}"} launch/slurm.sh "$@"
  exit
fi

# The number of nodes is that of the allocation.
nodes=$SLURM_JOB_NUM_NODES
if on_hosts "$verb"; then
  set -- "$@" --config.mesh.processes="$nodes"
elif ((nodes > 1)); then
  fail "only train and precompute run on many nodes, and this job has $nodes"
fi
# Under Slurm JAX assigns one GPU to each process by default; this process takes
# all GPUs of its node.
[[ ${SLURM_GPUS_ON_NODE-} ]] ||
  fail 'the job has no GPU: pass --gpus-per-node=N'
gpus=$(seq -s , 0 $((SLURM_GPUS_ON_NODE - 1)))

# A process that has saved must not end those that still write, so srun kills
# none of them; JAX itself ends all when one is lost.
code=0
run srun --ntasks-per-node=1 --kill-on-bad-exit=0 \
  env JAX_LOCAL_DEVICE_IDS="$gpus" \
  bash -c "$RESTARTABLE" bash launch/gpu.sh "$@" || code=$?
# 143: stopped by SIGTERM. At a time limit Slurm itself does not requeue.
((code != 143)) || run scontrol requeue "$SLURM_JOB_ID"
exit "$code"
