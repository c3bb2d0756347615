#!/usr/bin/env bash
# Trains the whole recipe in miniature, on a CPU: the autoencoder, squares of 16
# px, of 32 px, seven aspects around 40 px, the refiner. Each stage starts from
# the previous one.
#
#   launch/recipe.sh [options] DIR
#
# Each stage trains in a folder of DIR; after an interruption the same command
# resumes. Then base and refiner together sample the grid DIR/recipe.png.
#
# Options:
#   --dry_run    prints the commands and runs nothing
#   --help

set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"

while [[ ${1-} == --* ]]; do
  case $1 in
    --dry_run) dry_run=true ;;
    --help) usage && exit ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
[[ $# == 1 ]] || fail 'pass one folder to train in'
dir=$1

previous=''
for stage in stage0 stage1 stage2 stage3 refiner; do
  run python -m sdxl_jax.train --config "configs/tiny.py:$stage" \
    --workdir "$dir/$stage" --config.init_from="$previous"
  previous=$dir/$stage
done
run python -m sdxl_jax.sample --weights "$dir/stage3" \
  --refiner "$dir/refiner" --steps 25 --guidance_scale 3 --repeat 9 --batch 9 \
  --prompt 'a fish on a pink background' \
  --output "$dir/{i}.png" --grid "$dir/recipe.png"
