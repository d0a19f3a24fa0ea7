#!/usr/bin/env bash
# The whole way once, on real text: set up, make a corpus, train a tokenizer and a small model, convert it, prove the
# conversion, generate. Everything lands in runs/quickstart/. A second call goes on where the first stopped, or says that it is
# done; --fresh starts over. With --watch each checkpoint is exported and scored by the suite while the model trains.
#
#   bash quickstart.sh [--fresh] [--watch SUITE]        such as evaluation/suites/offline.yaml
set -euo pipefail
cd "$(dirname "$0")"
source setup.sh

readonly ROOT=runs/quickstart
readonly CONFIG=configs/quickstart.yaml
PROCESSES=2
SUITE=
OVERRIDES=()

while (($#)); do
  case "$1" in
    --fresh) rm -rf "$ROOT" ;;
    --watch) SUITE=${2:?--watch needs a suite, such as evaluation/suites/offline.yaml} && shift ;;
    *) die "unknown argument $1; usage: bash quickstart.sh [--fresh] [--watch SUITE]" ;;
  esac
  shift
done
[[ -z $SUITE || -f $SUITE ]] || die "--watch $SUITE is not there; such as evaluation/suites/offline.yaml"

step() { printf '\n== %s\n' "$*"; }

step "1/6 environment"
install_requirements requirements.txt
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true
mkdir -p "$ROOT"

step "2/6 corpus: Python's own standard library, source (code) and prose (docs)"
[[ -d $ROOT/text ]] || .venv/bin/python -m data_tools corpus "$ROOT/text"

step "3/6 tokenizer and token shards"
[[ -d $ROOT/tokenizer ]] ||
  .venv/bin/python -m data_tools train-tokenizer "$ROOT/text/code" "$ROOT/text/docs" "$ROOT/tokenizer" --vocab-size 4096
for name in code docs held_out/code held_out/docs; do
  [[ -f $ROOT/tokens/$name/manifest.json ]] ||
    .venv/bin/python -m data_tools tokenize "$ROOT/text/$name" "$ROOT/tokens/$name" --tokenizer "$ROOT/tokenizer"
done

step "4/6 pre-training under torchrun with $PROCESSES processes"
if [[ $SUITE ]]; then # both give way to the training, and end after it; they may come late, so no checkpoint is removed
  OVERRIDES=(checkpoint.keep_last=99)
  trap 'jobs -pr | xargs -r kill' EXIT
  .venv/bin/python -m conversion export --watch "$ROOT/run" --every 5 &
  exporter=$!
  .venv/bin/python -m evaluation watch "$ROOT/run" --suite "$SUITE" --every 5 --threads 1 &
  watcher=$!
fi
# One thread a process: two processes share two cores.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / PROCESSES > 0 ? $(nproc) / PROCESSES : 1))} \
  .venv/bin/torchrun --standalone --nproc-per-node "$PROCESSES" pretrain_smol.py --config "$CONFIG" "${OVERRIDES[@]}"
.venv/bin/python -m smol_train.plot "$ROOT/run" --output "$ROOT/loss.png"
if [[ $SUITE ]]; then
  wait "$exporter"
  wait "$watcher"
  name=$(basename "$SUITE" .yaml)
  [[ -d $ROOT/properties_$name ]] ||
    .venv/bin/python -m evaluation properties quickstart="$ROOT/run/evaluations/$name" --output "$ROOT/properties_$name"
fi

step "5/6 conversion to Hugging Face format, verified"
[[ -f $ROOT/hf/parity.json ]] || .venv/bin/python -m conversion to-hf "$ROOT/run" "$ROOT/hf"

step "6/6 report"
.venv/bin/python -m evaluation.quickstart_report --config "$CONFIG" --hf "$ROOT/hf"
