# What the scripts of launch/ share: XLA's flags, quoting, errors, help.
# shellcheck shell=bash disable=SC2034  # sourced: the names are used there

gpu=(
  # A block of a scanned stack gathers its parameters (fsdp) while the block
  # before it computes. Off by default; overlap within a block is on by default.
  --xla_gpu_enable_pipelined_all_gather=true
)
tpu=(
  # Fusions may use up to 64 MiB of a core's fast memory. By XLA's own estimate
  # a transformer block at 1024 tokens, forward and backward, takes 6 % fewer
  # cycles on v5e and 7 % on v5p, and twice as long to compile.
  --xla_tpu_scoped_vmem_limit_kib=65536
)
# The last one wins, so that what you set yourself does.
GPU_FLAGS="${gpu[*]}${XLA_FLAGS:+ $XLA_FLAGS}"
TPU_FLAGS="${tpu[*]}${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"

# JAX takes 75 % of a GPU's memory unless told; NCCL and cuDNN need little.
GPU_MEMORY_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}

# A scheduler takes exit 0 for "done", and a train that was told to stop exits 0
# as well, with its checkpoint saved. `bash -c "$RESTARTABLE" bash COMMAND...`
# passes SIGTERM on to the command and then exits 143, so that the scheduler
# starts the same command again, which resumes.
# shellcheck disable=SC2016  # they expand in that bash
RESTARTABLE='trap "stopped=143; kill -TERM \$!" TERM; "$@" & '\
'until wait $!; code=$?; ! kill -0 $! 2>/dev/null; do :; done; '\
'exit ${stopped:-$code}'

# The verbs that run on several hosts at once.
on_hosts() {
  [[ $1 == train || $1 == precompute ]]
}

# The words as one line that can be pasted into a shell.
quote() {
  local word line='' escaped="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/$escaped}'"
    line+=" $word"
  done
  echo "${line# }"
}

dry_run=false
run() {
  if $dry_run; then quote "$@"; else "$@"; fi
}

fail() {
  echo "${0##*/}: $*; see --help" >&2
  exit 2
}

# The comment at the top of the script.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}
