#!/usr/bin/env bash
# Runs a command of sdxl_jax on TPU slices of a GKE cluster. Needs xpk (pip
# install xpk) and gcloud on this machine.
#
#   launch/gke_xpk.sh --cluster=C --name=NAME --type=TYPE --image=IMAGE \
#     [options] VERB [arguments of the verb]
#   launch/gke_xpk.sh --cluster=pods --name=stage3 --type=v5p-64 \
#     --image=gcr.io/PROJECT/sdxl_jax train --config configs/stage3.py \
#     --workdir /mnt/runs/stage3
#
# IMAGE contains Python with requirements.txt and jax[tpu]; xpk adds this
# checkout. To build an image:
#
#   printf '%s\n' 'FROM python:3.12' 'COPY requirements.txt .' \
#     "RUN pip install -r requirements.txt 'jax[tpu]'" |
#     docker build -t gcr.io/PROJECT/sdxl_jax -f - . &&
#     docker push gcr.io/PROJECT/sdxl_jax
#
# The workdir must be shared by all hosts: a Filestore share, or a bucket that
# `xpk storage attach` has mounted. A host that is preempted receives SIGTERM:
# train saves a checkpoint on all hosts, and the job restarts and resumes by
# itself. `xpk workload delete` ends the job.
#
# Options:
#   --slices=N   number of slices of TYPE; default: 1
#   --dry_run    prints the commands and runs nothing
#   --help
# Other options before the verb, as --option=value, are passed to `xpk workload
# create`.

set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
checkout=$(dirname "$0")/..

cluster='' name='' type='' image='' slices=1 options=()
while [[ ${1-} == --* ]]; do
  case $1 in
    --cluster=*) cluster=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --dry_run) dry_run=true ;;
    --help) usage && exit ;;
    *) options+=("$1") ;;
  esac
  shift
done
[[ $cluster ]] || fail 'pass --cluster=CLUSTER, the GKE cluster'
[[ $name ]] || fail 'pass --name=NAME, the name of the job'
[[ $type ]] || fail 'pass --type=TYPE, the kind of slice, such as v5p-64'
[[ $image ]] || fail 'pass --image=IMAGE, with requirements.txt and jax[tpu]'
verb=${1-}
[[ $verb ]] || fail 'pass a verb, such as train'

# exec: xpk sends SIGTERM to the shell that it started, so RESTARTABLE must
# replace that shell.
command="exec $(quote bash -c "$RESTARTABLE" bash \
  python -m "sdxl_jax.$verb" "${@:2}")"
if on_hosts "$verb"; then
  # Each host counts the hosts of its slice in a list that GKE provides.
  command="hosts=(\${TPU_WORKER_HOSTNAMES//,/ }); $command"
  command+=" --config.mesh.processes=\$((\${#hosts[@]} * $slices))"
elif ((slices > 1)); then
  fail "only train and precompute run on many slices, not $verb"
fi

# The grace period is for saving the checkpoint; Kubernetes' default is 30 s.
run xpk workload create --cluster="$cluster" --workload="$name" \
  --tpu-type="$type" --num-slices="$slices" \
  --base-docker-image="$image" --script-dir="$checkout" \
  --termination-grace-period-seconds=300 --max-restarts=100 \
  --env="LIBTPU_INIT_ARGS=$TPU_FLAGS" \
  ${options[@]+"${options[@]}"} --command="$command"
