#!/usr/bin/env bash
# Five ways to hunt on the small grid, without and with punishment. Hours of a CPU; started again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
folders=()
for algorithm in qmix facmac race-facmac merl-facmac ea-facmac; do
    for task in small:100000 small-punished:200000; do
        folder=runs/$algorithm-predator-prey-${task%:*}
        comarl train $algorithm predator-prey/${task%:*} --seeds 3 --steps ${task#*:} --folder $folder
        folders+=("$folder")
    done
done
comarl report "${folders[@]}" --out results/predator-prey
