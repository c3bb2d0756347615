# Shared by the scripts of launch/: XLA's flags, quoting, errors, help.
# shellcheck shell=bash disable=SC2034  # the scripts that source this use them

gpu=(
  # Gathers the parameters (fsdp) of a block of a scanned stack while the
  # previous block computes. Off by default; overlap within a block is on.
  --xla_gpu_enable_pipelined_all_gather=true
)
tpu=(
  # Allows fusions 64 MiB of a core's fast memory. By XLA's estimate a
  # transformer block at 1024 tokens, forward and backward, then takes 6 % fewer
  # cycles on v5e and 7 % fewer on v5p, and twice as long to compile.
  --xla_tpu_scoped_vmem_limit_kib=65536
)
# If a flag is repeated the last one counts, so the user's flags come last.
GPU_FLAGS="${gpu[*]}${XLA_FLAGS:+ $XLA_FLAGS}"
TPU_FLAGS="${tpu[*]}${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"

# Exit code 0 means "done" to a scheduler, but train exits with 0 after SIGTERM
# too, when its checkpoint is saved. `bash -c "$RESTARTABLE" bash COMMAND...`
# passes SIGTERM on to the command and then exits with 143, so that the
# scheduler starts the same command again, which resumes.
# shellcheck disable=SC2016  # variables expand in the inner bash
RESTARTABLE='trap "stopped=143; kill -TERM \$!" TERM; "$@" & '\
'until wait $!; code=$?; ! kill -0 $! 2>/dev/null; do :; done; '\
'exit ${stopped:-$code}'

# Succeeds if a verb runs on several hosts at once.
on_hosts() {
  [[ $1 == train || $1 == precompute ]]
}

# Prints the arguments as one line that can be pasted into a shell.
quote() {
  local word line='' escaped="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/$escaped}'"
    line+=" $word"
  done
  echo "${line# }"
}

# Runs a command, or prints it in a dry run.
dry_run=false
run() {
  if $dry_run; then quote "$@"; else "$@"; fi
}

# Ends with one line on stderr.
fail() {
  echo "${0##*/}: $*; see --help" >&2
  exit 2
}

# Prints the comment at the top of the script.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}
