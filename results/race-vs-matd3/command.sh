#!/usr/bin/env bash
# RACE beside MATD3 on a CPU, at half an update per step. About three hours of two cores; started again, it resumes.
# Made while every agent saw the torso as well, which was the default then; the option below keeps that.
set -euo pipefail
cd "$(dirname "$0")/../.."
half="--task.global-categories qpos qvel --algorithm.pace.updates-per-step 0.5 --evaluate-every 5000"
for algorithm in race-matd3 matd3; do
    comarl train $algorithm mamujoco/Hopper-3x1 --seeds 3 --steps 200000 $half --folder runs/$algorithm-hopper
    comarl train $algorithm mamujoco/HalfCheetah-2x3 --seeds 2 --steps 150000 $half --folder runs/$algorithm-halfcheetah
done
comarl report runs/{race-matd3,matd3}-{hopper,halfcheetah} --out results/race-vs-matd3
