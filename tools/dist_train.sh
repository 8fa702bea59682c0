#!/usr/bin/env bash
# Train on several GPUs, or several CPU processes, of one or more machines.
#   tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# On each of several machines, with the same PORT and its own NODE_RANK:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-host PORT=29500 \
#       tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# PYTHON names another interpreter than python.
exec bash "$(dirname "$0")/dist_run.sh" train.py 2 "$@"
