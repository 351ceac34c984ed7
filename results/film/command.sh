#!/usr/bin/env bash
# The film of the README, docs/pictures/team.gif: one seed of QMIX, at its best evaluation. Some ten minutes of a CPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=runs/film
comarl train qmix predator-prey/small --steps 60000 --evaluate-every 5000 --keep best --folder "$folder"
comarl report "$folder" --out results/film
comarl watch "$folder" --checkpoint best --start 3 --size 300 --out results/film/team.gif
