#!/usr/bin/env bash
# RACE, MERL and EA on the small grid where a lone catch is punished; QMIX and FACMAC are in results/predator-prey.
# An hour of a CPU; started again, it resumes.
# Made while RACE's W_marl had a policy for each agent; the option below keeps that.
set -euo pipefail
cd "$(dirname "$0")/../.."
folders=()
for algorithm in race-facmac merl-facmac ea-facmac; do
    folder=runs/$algorithm-predator-prey-small-punished
    earlier=()
    if [ $algorithm = race-facmac ]; then earlier=(--algorithm.no-shared-head); fi
    comarl train $algorithm predator-prey/small-punished --seeds 3 --steps 100000 --folder $folder "${earlier[@]}"
    folders+=("$folder")
done
comarl report "${folders[@]}" --out results/predator-prey-punished
