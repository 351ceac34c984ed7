#!/usr/bin/env bash
# VM3-AC and MA-SAC on three walkers, as far as about an hour of one core goes for each (62 minutes of VM3-AC, 49 of MA-SAC,
# which was stopped by hand); started again, it resumes.
# Standard deviations of policies are between e^-5 and e^2, as on waves of prey; the rest is the default.
set -euo pipefail
cd "$(dirname "$0")/../.."
folders=()
for algorithm in vm3-ac ma-sac; do
    folder=runs/$algorithm-multiwalker-3
    comarl train $algorithm multiwalker/3 --seeds 2 --steps 400000 --minutes 60 --folder "$folder" \
        --algorithm.log-std-range -5 2 --algorithm.replay.capacity 410000
    folders+=("$folder")
done
comarl report "${folders[@]}" --out results/vm3-ac-multiwalker
