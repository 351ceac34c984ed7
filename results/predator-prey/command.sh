#!/usr/bin/env bash
# Five ways to hunt on the small grid, and two of them where a lone catch is punished; the other three are in
# results/predator-prey-punished. Hours of a CPU; started again, it resumes.
# Made while RACE's W_marl had a policy for each agent; the option below keeps that.
set -euo pipefail
cd "$(dirname "$0")/../.."
folders=()
hunt() { # algorithm, task, steps
    folder=runs/$1-predator-prey-$2
    earlier=()
    if [ "$1" = race-facmac ]; then earlier=(--algorithm.no-shared-head); fi
    comarl train "$1" "predator-prey/$2" --seeds 3 --steps "$3" --folder "$folder" "${earlier[@]}"
    folders+=("$folder")
}
for algorithm in qmix facmac race-facmac merl-facmac ea-facmac; do
    hunt $algorithm small 100000
done
hunt qmix small-punished 300000
hunt facmac small-punished 200000
comarl report "${folders[@]}" --out results/predator-prey
