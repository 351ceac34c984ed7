#!/usr/bin/env bash
# LSF-SAC and what it is compared with on two maps of SMAX. Hours of a CPU; started again, it resumes.
#
# As on predator-prey: 16 episodes are drawn from replay for each one played, as PyMARL2 does, but in four batches of 32
# rather than one of 128, and schedules are shortened as the run is. FOP has a tenth of its temperature: with its own,
# which is for returns of 20 rather than 2, it wins nothing on 3m, and that is recorded, too.
#
# What lies here stopped where time did on 3s_vs_5z: at 50,000 steps, QMIX at 90,000.
# Made while SMAX had JaxMARL's scale of rewards (returns up to 2) by default; the option below keeps that.
set -euo pipefail
cd "$(dirname "$0")/../.."
same=(
    --algorithm.pace.parallel-envs 8 --algorithm.pace.updates-per-episode 0.5
    --algorithm.replay.batch-size 32 --algorithm.epsilon.steps 50000
)
cool=(--algorithm.temperature 0.05 0.005)
folders=()
fight() { # algorithm, map, steps, name of the folder, options
    folder=runs/$4-smax-$2
    comarl train "$1" "smax/$2" --seeds 2 --steps "$3" --task.reward-scale 1 --folder "$folder" "${same[@]}" "${@:5}"
    folders+=("$folder")
}
for map in 3m 3s_vs_5z; do
    for algorithm in lsf-sac masac; do
        fight $algorithm $map 100000 $algorithm --algorithm.temperature.fall 5e-4
    done
    for algorithm in {qmix,qplex,ow-qmix}-pymarl2; do
        fight $algorithm $map 100000 $algorithm
    done
    fight fop-pymarl2 $map 100000 fop-pymarl2-cool "${cool[@]}"
done
fight fop-pymarl2 3m 80000 fop-pymarl2
comarl report "${folders[@]}" --middle median --out results/lsf-sac-smax
