#!/usr/bin/env bash
# VM3-AC and the field of its paper on waves of prey, with 2, 3 and 4 predators. Hours of a CPU; started again, it resumes.
#
# Differences from the defaults, the same for all: an update for every 20 steps instead of every 4, which would take a
# CPU five times as long; standard deviations of policies between e^-5 and e^2, which begin at e^-1.5: with the defaults
# MA-AC begins at e^-9 and hardly explores (MADDPG has noise of its own). SI-MOA imagines 4 actions instead of 16 where
# there are 3 or 4 predators, for time alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=results/vm3-ac-waves
pace=(pace.updates-per-step 0.05 replay.capacity 310000)
spread=(log-std-range -5 2)

hunt() { # algorithm, predators, seeds, steps, folder, where the pace is set, options
    folder=runs/$5-waves-$2
    comarl train "$1" "waves/$2" --seeds "$3" --steps "$4" --evaluate-every 20000 --folder "$folder" \
        "--$6.${pace[0]}" "${pace[1]}" "--$6.${pace[2]}" "${pace[3]}" "${@:7}"
}

field=()
for predators in 2 3 4; do
    for algorithm in vm3-ac ma-sac ma-ac; do
        hunt $algorithm $predators 7 300000 $algorithm algorithm "--algorithm.${spread[0]}" "${spread[@]:1}"
    done
    hunt maddpg-vm3 $predators 7 300000 maddpg-vm3 algorithm
    hunt maven-ac $predators 7 300000 maven-ac algorithm.base "--algorithm.base.${spread[0]}" "${spread[@]:1}"
    imagined=$((predators == 2 ? 16 : 4))
    hunt si-moa $predators 7 300000 si-moa algorithm.base "--algorithm.base.${spread[0]}" "${spread[@]:1}" \
        --algorithm.counterfactuals $imagined
    for algorithm in vm3-ac ma-sac ma-ac maddpg-vm3 maven-ac si-moa; do
        field+=("runs/$algorithm-waves-$predators")
    done
done
comarl report "${field[@]}" --out $out/field

# Table 1: what the trained teams of VM3-AC earn with z 0, and with a z that all share. The same 20 starts for both.
table=()
for predators in 2 3 4; do
    run=runs/vm3-ac-waves-$predators
    comarl evaluate "$run" --episodes 20 --folder "$run-zero"
    comarl evaluate "$run" --episodes 20 --folder "$run-shared" --algorithm.execution-latent shared
    table+=("$run-zero" "$run-shared")
done
comarl report "${table[@]}" --out $out/table1

# Fig. 5: beta, and no z; half the steps, and beta 0.1 at the same steps among the runs above.
hunt vm3-ac 2 3 150000 vm3-ac-beta-0 algorithm "--algorithm.${spread[0]}" "${spread[@]:1}" --algorithm.beta 0
hunt vm3-ac 2 3 150000 vm3-ac-beta-005 algorithm "--algorithm.${spread[0]}" "${spread[@]:1}" --algorithm.beta 0.05
hunt vm3-ac 2 3 150000 vm3-ac-beta-015 algorithm "--algorithm.${spread[0]}" "${spread[@]:1}" --algorithm.beta 0.15
hunt vm3-ac 2 3 150000 vm3-ac-no-z algorithm "--algorithm.${spread[0]}" "${spread[@]:1}" --algorithm.latent-size 0
comarl report runs/vm3-ac-{beta-0,beta-005,beta-015,no-z}-waves-2 runs/vm3-ac-waves-2 --out $out/beta

# Is it z that helps where two must catch together? (Seeds 4 to 6 were an afterthought.)
for seeds in "4 vm3-ac-no-z" "3 vm3-ac-no-z-more --first-seed 4"; do
    read -r number name first <<< "$seeds"
    # shellcheck disable=SC2086  # what is in $first is none or two words
    hunt vm3-ac 4 "$number" 300000 "$name" algorithm "--algorithm.${spread[0]}" "${spread[@]:1}" --algorithm.latent-size 0 $first
done
comarl report runs/vm3-ac-{,no-z-,no-z-more-}waves-4 runs/ma-sac-waves-4 --out $out/no-z

# Does z correlate actions, in the paper's form, in the marginal one, and where policies maximise both terms of M?
marginal=("--algorithm.${spread[0]}" "${spread[@]:1}" --algorithm.entropy marginal)
hunt vm3-ac 2 3 200000 vm3-ac-marginal algorithm "${marginal[@]}"
hunt vm3-ac 2 3 200000 vm3-ac-marginal-both algorithm "${marginal[@]}" --algorithm.information.gradient-terms both
comarl report runs/vm3-ac-{,marginal-,marginal-both-}waves-2 --out $out/latent \
    --training action_correlation latent_sensitivity prediction_error prediction_error_unpaired

# The same at the defaults, an update for every 4 steps among them. This was run on one NVIDIA H200, all six side by side
# in 4 minutes. On a CPU it would take far longer, so it is no part of the above. Seeds are vmapped, as on accelerators.
#
#   for predators in 2 3 4; do
#       for algorithm in vm3-ac ma-sac; do
#           folder=runs/full-pace-$algorithm-waves-$predators
#           comarl train $algorithm waves/$predators --seeds 8 --steps 300000 --evaluate-every 25000 \
#               --evaluation-episodes 10 --vmapped-seeds True --folder "$folder"
#           full+=("$folder")
#       done
#   done
#   comarl report "${full[@]}" --out $out/full-pace
