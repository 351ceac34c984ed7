#!/usr/bin/env bash
# RACE, MERL and EA on the small grid where a lone catch is punished; QMIX and FACMAC are in results/predator-prey.
# An hour of a CPU; started again, it resumes.
set -euo pipefail
cd "$(dirname "$0")/../.."
folders=()
for algorithm in race-facmac merl-facmac ea-facmac; do
    folder=runs/$algorithm-predator-prey-small-punished
    comarl train $algorithm predator-prey/small-punished --seeds 3 --steps 100000 --folder $folder
    folders+=("$folder")
done
comarl report "${folders[@]}" --out results/predator-prey-punished
