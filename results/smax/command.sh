#!/usr/bin/env bash
# QMIX on SMAX 3m with PyMARL's settings. About half an hour of one core; started again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
comarl train qmix smax/3m --seeds 3 --steps 300000 --folder runs/qmix-smax-3m
comarl report runs/qmix-smax-3m --out results/smax
