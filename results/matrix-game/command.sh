#!/usr/bin/env bash
# What each algorithm learns of LSF-SAC's Table I and of the game with two states: 20 seeds, 20,000 episodes each.
set -euo pipefail
cd "$(dirname "$0")/../.."
folders=()
play() { # algorithm, game, options
    folder=runs/$1-matrix-$2
    comarl train "$1" "matrix/$2" --seeds 20 --steps 20000 --evaluate-every 5000 --evaluation-episodes 4 \
        --seeds-together True --folder "$folder" "${@:3}"
    folders+=("$folder")
}
for game in qtran two-states; do
    # What learns values does so from joint actions that are all as likely; LSF-SAC and VDAC explore less and less.
    for algorithm in vdn qmix qtran cw-qmix ow-qmix qplex ndq maven; do
        play $algorithm-pymarl2 $game --algorithm.epsilon 1 1
    done
    for algorithm in fop-pymarl2 dop-pymarl2 vdac-mix-pymarl2 maa2c lsf-sac masac lsf-sac-fixed-temperature masac-double-q; do
        play $algorithm $game --algorithm.epsilon-steps 10000
    done
    for algorithm in msac-pymarl2 lica-pymarl2; do
        play $algorithm $game
    done
done
comarl report "${folders[@]}" --out results/matrix-game
