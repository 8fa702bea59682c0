#!/usr/bin/env bash
# Evaluate on several GPUs of one or more machines.
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# NNODES, NODE_RANK, MASTER_ADDR and PORT as for dist_train.sh.
exec bash "$(dirname "$0")/dist_run.sh" test.py 3 "$@"
