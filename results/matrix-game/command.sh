#!/usr/bin/env bash
# What each algorithm learns of LSF-SAC's Table I and of the game with two states: 20 seeds, 20,000 episodes each.
set -euo pipefail
cd "$(dirname "$0")/../.."
folders=()
play() { # algorithm, game, options
    folder=runs/$1-matrix-$2
    comarl train "$1" "matrix/$2" --seeds 20 --steps 20000 --evaluate-every 5000 --evaluation-episodes 4 \
        --vmapped-seeds True --folder "$folder" "${@:3}"
    folders+=("$folder")
}
small=(--algorithm.replay.batch-size 32)
# What learns values does so from joint actions that are all as likely; the others explore less and less.
for algorithm in vdn qmix qtran cw-qmix ow-qmix qplex ndq maven; do
    play $algorithm-pymarl2 qtran --algorithm.epsilon.first 1 --algorithm.epsilon.last 1 "${small[@]}"
done
for algorithm in lsf-sac masac lsf-sac-fixed-temperature masac-double-q fop-pymarl2; do
    play $algorithm qtran --algorithm.epsilon.steps 10000 "${small[@]}"
done
for algorithm in dop-pymarl2 vdac-mix-pymarl2 maa2c; do
    play $algorithm qtran --algorithm.epsilon.steps 10000
done
play msac-pymarl2 qtran "${small[@]}"
play lica-pymarl2 qtran
for algorithm in qmix-pymarl2 ndq-pymarl2 lsf-sac masac; do
    play $algorithm two-states --algorithm.epsilon.steps 10000 "${small[@]}"
done
comarl report "${folders[@]}" --out results/matrix-game
