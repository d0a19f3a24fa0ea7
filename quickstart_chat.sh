#!/usr/bin/env bash
# From the quickstart's model to one that thinks when it is asked to, on two cores: drills (questions that code makes and checks),
# then mid-training, SFT, preference optimisation, GRPO and a merge, with several seeds; each stage's model is scored on held-out
# drills and compared with the one before. Everything lands in runs/chat/. A second call goes on where the first stopped, or
# says that it is done; --fresh starts over, but for the quickstart.
#
#   bash quickstart_chat.sh [--fresh] [--seeds N] [--rows N]        --rows: drills that are made; fewer for a quick look
set -euo pipefail
cd "$(dirname "$0")"
source setup.sh

readonly ROOT=runs/chat
readonly CONFIGS=configs/post_training/quickstart
SEEDS=3
ROWS=5000

while (($#)); do
  case "$1" in
    --fresh) rm -rf "$ROOT" ;;
    --seeds) SEEDS=${2:?--seeds needs a number} && shift ;;
    --rows) ROWS=${2:?--rows needs a number} && shift ;;
    *) die "unknown argument $1; usage: bash quickstart_chat.sh [--fresh] [--seeds N] [--rows N]" ;;
  esac
  shift
done

step() { printf '\n== %s\n' "$*"; }

# The model that a stage ended with.
last_model() { find "$1/hf" -maxdepth 1 -name 'step_*' | sort -V | tail -n 1; }

# score MODEL OUT_DIR: once; a run of it that was cut short has left nothing.
score() {
  [[ -d $2 ]] || .venv/bin/python -m evaluation run "$1" --suite evaluation/suites/drills.yaml --output "$2"
}

step "quickstart: the base model"
[[ -f runs/quickstart/hf/parity.json ]] || bash quickstart.sh
install_requirements requirements.txt
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true

step "a model that knows chats, and drills"
[[ -d $ROOT/base ]] || .venv/bin/python -m post_training chat-model runs/quickstart/hf "$ROOT/base"
[[ -d $ROOT/drills ]] || .venv/bin/python -m post_training drills "$ROOT/drills" --rows "$ROWS"
score "$ROOT/base" "$ROOT/scores_base"

for ((seed = 0; seed < SEEDS; seed++)); do
  run=$ROOT/seed_$seed
  model=$ROOT/base
  for stage in mid sft preference grpo; do
    step "seed $((seed + 1)) of $SEEDS: $stage"
    .venv/bin/python -m post_training "$stage" --config "$CONFIGS/$stage.yaml" \
      model="$model" train.output_dir="$run/$stage" train.seed="$seed"
    before=$model
    model=$(last_model "$run/$stage")
    score "$model" "$run/scores/$stage"
  done
  step "seed $((seed + 1)) of $SEEDS: merge, a tenth of the model before GRPO"
  [[ -d $run/merged ]] || .venv/bin/python -m conversion merge "$run/merged" --models "$model=0.9" "$before=0.1"
  score "$run/merged" "$run/scores/merged"
done

step "report"
.venv/bin/python -m evaluation.quickstart_chat_report "$ROOT" --output "$ROOT/report"
