#!/usr/bin/env bash
# QMIX, FACMAC and RACE on SMAX. Hours of a CPU; started again, it resumes.
# On 2s3z there is an update for every second episode, rather than for every one: half the papers' pace, for all three.
# Made while SMAX had JaxMARL's scale of rewards (returns up to 2) by default; the option below keeps that.
# Made while RACE's W_marl had a policy for each agent; the option below keeps that.
set -euo pipefail
cd "$(dirname "$0")/../.."
folders=()
fight() { # algorithm, map, options
    folder=runs/$1-smax-$2
    earlier=()
    if [ "$1" = race-facmac ]; then earlier=(--algorithm.no-shared-head); fi
    comarl train "$1" "smax/$2" --seeds 3 --steps 300000 --task.reward-scale 1 --folder "$folder" "${earlier[@]}" "${@:3}"
    folders+=("$folder")
}
for algorithm in qmix facmac race-facmac; do
    fight $algorithm 3m
    fight $algorithm 2s3z --algorithm.pace.parallel-envs 2 --algorithm.pace.updates-per-episode 0.5
done
comarl report "${folders[@]}" --out results/smax
