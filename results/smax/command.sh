#!/usr/bin/env bash
# QMIX, FACMAC and RACE on SMAX. Hours of a CPU; started again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
folders=()
for map in 3m 2s3z; do
    for algorithm in qmix facmac race-facmac; do
        folder=runs/$algorithm-smax-$map
        comarl train $algorithm smax/$map --seeds 3 --steps 300000 --folder $folder
        folders+=("$folder")
    done
done
comarl report "${folders[@]}" --out results/smax
