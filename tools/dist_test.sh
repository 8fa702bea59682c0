#!/usr/bin/env bash
# Test a checkpoint on several GPUs, or several CPU processes, of one or more
# machines.
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# On each of several machines, with the same PORT and its own NODE_RANK:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-host PORT=29500 \
#       tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# PYTHON names another interpreter than python.
exec bash "$(dirname "$0")/dist_run.sh" test.py 3 "$@"
