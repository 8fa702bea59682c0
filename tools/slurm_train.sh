#!/usr/bin/env bash
# Train on a Slurm cluster, one process a GPU.
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]
# From the environment: GPUS (default: 8), GPUS_PER_NODE (8), CPUS_PER_TASK (5),
# SRUN_ARGS, more arguments of srun, and PYTHON (python).
set -euo pipefail
tools=$(cd "$(dirname "$0")" && pwd)
if [[ ${1:-} =~ ^(-h|--help)$ ]]; then
    # What stands at the top.
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    echo "More arguments: python tools/train.py --help"
    exit
fi
if [ "$#" -lt 3 ]; then
    echo "usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]" >&2
    exit 2
fi
partition=$1 job_name=$2 config=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
[ "$per_node" -le "$gpus" ] || per_node=$gpus

# shellcheck disable=SC2086  # SRUN_ARGS is a list of words
PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" \
exec srun -p "$partition" \
    --job-name="$job_name" \
    --gres="gpu:$per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$tools/train.py" "$config" --launcher slurm "$@"
