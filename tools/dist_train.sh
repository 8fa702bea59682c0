#!/usr/bin/env bash
# Train on several GPUs of one or more machines.
#   tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# On every one of several machines, with the same PORT:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-host PORT=29500 tools/dist_train.sh …
exec bash "$(dirname "$0")/dist_run.sh" train.py 2 "$@"
