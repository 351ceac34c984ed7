#!/usr/bin/env bash
# LSF-SAC and what it is compared with on two maps of SMAX. Hours of a CPU; started again, it goes on.
#
# As on predator-prey: 16 episodes are drawn from replay for each one played, as PyMARL2 does, but in four batches of 32
# rather than one of 128, and schedules are shortened as the run is.
set -euo pipefail
cd "$(dirname "$0")/../.."
same=(
    --algorithm.parallel-envs 8 --algorithm.updates-per-episode 0.5
    --algorithm.replay.batch-size 32 --algorithm.epsilon-steps 50000
)
folders=()
fight() { # algorithm, options
    for map in 3m 3s_vs_5z; do
        folder=runs/$1-smax-$map
        comarl train "$1" "smax/$map" --seeds 2 --steps 100000 --folder "$folder" "${same[@]}" "${@:2}"
        folders+=("$folder")
    done
}
for algorithm in lsf-sac masac; do
    fight $algorithm --algorithm.log-alpha-fall 5e-4
done
for algorithm in {qmix,qplex,ow-qmix,fop}-pymarl2; do
    fight $algorithm
done
comarl report "${folders[@]}" --middle median --out results/lsf-sac-smax
