#!/usr/bin/env bash
# Runs a command of sdxl_jax on the TPU slices of a GKE cluster; needs xpk
# (pip install xpk) and gcloud on this machine.
#
#   launch/gke_xpk.sh --cluster=C --name=NAME --type=TYPE --image=IMAGE \
#     [options] VERB [arguments of the verb]
#   launch/gke_xpk.sh --cluster=pods --name=stage3 --type=v5p-64 \
#     --image=gcr.io/PROJECT/sdxl_jax train --config configs/stage3.py \
#     --workdir /mnt/runs/stage3
#
# IMAGE holds Python with requirements.txt and jax[tpu]; xpk puts this checkout
# on top of it. To build one:
#
#   printf '%s\n' 'FROM python:3.12' 'COPY requirements.txt .' \
#     "RUN pip install -r requirements.txt 'jax[tpu]'" |
#     docker build -t gcr.io/PROJECT/sdxl_jax -f - . &&
#     docker push gcr.io/PROJECT/sdxl_jax
#
# All hosts must see the workdir: a Filestore share or a bucket that `xpk
# storage attach` has mounted. A host that is taken away gets SIGTERM; train
# saves a checkpoint on all, and the job starts again by itself and resumes.
# `xpk workload delete` ends it.
#
# Options:
#   --slices=N   how many slices of TYPE; 1 unless given
#   --dry_run    prints what would run, and runs nothing
#   --help
# All others before the verb go to `xpk workload create`, as --option=value.

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
[[ $cluster ]] || fail 'give --cluster=CLUSTER, the GKE cluster'
[[ $name ]] || fail 'give --name=NAME, the name of the job'
[[ $type ]] || fail 'give --type=TYPE, the kind of slice, such as v5p-64'
[[ $image ]] || fail 'give --image=IMAGE, with requirements.txt and jax[tpu]'
verb=${1-}
[[ $verb ]] || fail 'give a verb, such as train'

# exec: xpk sends SIGTERM to the shell that it started, so that must be ours.
command="exec $(quote bash -c "$RESTARTABLE" bash \
  python -m "sdxl_jax.$verb" "${@:2}")"
if on_hosts "$verb"; then
  # How many hosts there are is not typed: GKE gives each the list of its slice.
  command="hosts=(\${TPU_WORKER_HOSTNAMES//,/ }); $command"
  command+=" --config.mesh.processes=\$((\${#hosts[@]} * $slices))"
elif ((slices > 1)); then
  fail "only train and precompute run on many slices, not $verb"
fi

# The grace is for saving the checkpoint; Kubernetes' own default is 30 s.
run xpk workload create --cluster="$cluster" --workload="$name" \
  --tpu-type="$type" --num-slices="$slices" \
  --base-docker-image="$image" --script-dir="$checkout" \
  --termination-grace-period-seconds=300 --max-restarts=100 \
  --env="LIBTPU_INIT_ARGS=$TPU_FLAGS" \
  ${options[@]+"${options[@]}"} --command="$command"
