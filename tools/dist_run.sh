#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: torchrun with a free port.
#   dist_run.sh SCRIPT POSITION ARGUMENTS
# The argument at POSITION is the number of GPUs; those before it and behind it
# go to SCRIPT.
set -euo pipefail
fail() {
    echo "$1" >&2
    exit 2
}
script=$1 position=$2
shift 2
name=dist_${script%.py}.sh
tools=$(cd "$(dirname "$0")" && pwd)
for argument; do
    [[ $argument =~ ^(-h|--help)$ ]] || continue
    # What stands at the top of the script.
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$tools/$name"
    echo "More arguments: python tools/$script --help"
    exit
done
if [ "$#" -lt "$position" ]; then
    [ "$script" = train.py ] && files=CONFIG || files='CONFIG CHECKPOINT'
    fail "usage: tools/$name $files GPUS [arguments of $script]"
fi
before=("${@:1:position-1}")
gpus=${!position}
shift "$position"
[[ $gpus =~ ^[1-9][0-9]*$ ]] ||
    fail "error: GPUS must be a positive integer, got '$gpus'"
for variable in NNODES NODE_RANK PORT; do
    [[ ${!variable:-0} =~ ^[0-9]+$ ]] ||
        fail "error: $variable must be a whole number, got '${!variable}'"
done

nnodes=${NNODES:-1}
python=${PYTHON:-python}
if [ -z "${PORT:-}" ]; then
    [ "$nnodes" -le 1 ] ||
        fail "error: with NNODES=$nnodes set PORT, the same on every machine"
    PORT=$("$python" -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
fi

PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}" \
exec "$python" "$tools/dist_run.py" \
    --nnodes="$nnodes" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="$PORT" \
    --nproc_per_node="$gpus" \
    "$tools/$script" "${before[@]}" --launcher pytorch "$@"
