#!/usr/bin/env bash
# LSF-SAC, its ablations and all that it is compared with, on the small grid, where a lone catch is punished and where it
# is not. Hours of a CPU; started again, it resumes.
#
# All play 8 episodes at a time. What learns from replay draws 16 episodes for each one played, as PyMARL2 does, but in
# four batches of 32 rather than one of 128. Schedules are shortened as the run is.
set -euo pipefail
cd "$(dirname "$0")/../.."
hunt() { # algorithm, options
    for task in small small-punished; do
        comarl train "$1" "predator-prey/$task" --seeds 4 --steps 100000 --folder "runs/$1-predator-prey-$task" "${@:2}"
    done
}
replay=(
    --algorithm.pace.parallel-envs 8 --algorithm.pace.updates-per-episode 0.5
    --algorithm.replay.batch-size 32 --algorithm.replay.capacity 2500
)
explore=(--algorithm.epsilon.steps 50000)
for algorithm in lsf-sac masac masac-double-q; do
    hunt $algorithm "${replay[@]}" "${explore[@]}" --algorithm.temperature.fall 5e-4
done
for algorithm in lsf-sac-fixed-temperature {qmix,qtran,cw-qmix,ow-qmix,qplex,ndq,maven,fop}-pymarl2; do
    hunt $algorithm "${replay[@]}" "${explore[@]}"
done
hunt dop-pymarl2 "${replay[@]}" "${explore[@]}" --algorithm.replay.recent-batch 16
hunt msac-pymarl2 "${replay[@]}"
# These learn on-policy: each update is from the 8 episodes just played, or with LICA's replay from the last 128.
hunt maa2c "${explore[@]}"
hunt vdac-mix-pymarl2 "${explore[@]}"
hunt lica-pymarl2
compare() { # name, algorithms
    folders=()
    for algorithm in "${@:2}"; do
        folders+=(runs/$algorithm-predator-prey-small{,-punished})
    done
    comarl report "${folders[@]}" --middle median --out "results/lsf-sac-predator-prey/$1"
}
compare ablations lsf-sac lsf-sac-fixed-temperature masac masac-double-q maa2c
compare values lsf-sac {qmix,qtran,cw-qmix,ow-qmix,qplex,ndq,maven}-pymarl2
compare actor-critics lsf-sac {dop,fop,msac,vdac-mix,lica}-pymarl2

# What learns on-policy, over ten times the steps.
for algorithm in vdac-mix-pymarl2 maa2c; do
    comarl train $algorithm predator-prey/small --seeds 4 --steps 1000000 --evaluate-every 20000 "${explore[@]}" \
        --folder runs/$algorithm-long-predator-prey-small
done
comarl report runs/{vdac-mix-pymarl2,maa2c}-long-predator-prey-small --middle median \
    --out results/lsf-sac-predator-prey/on-policy
