#!/usr/bin/env bash
# All that a GPU has to show, the most important first: the tests, the
# benchmarks, steps of all three tasks and a short training.
#
#   bash tools/benchmarks/on_gpu.sh [FOLDER]              default: work_dirs/gpu
#   STEPS='networks steps' BUDGET=240 bash tools/benchmarks/on_gpu.sh
#
# Each step has a limit of its own and stops no other; BUDGET is for all, in
# seconds. PYTHON is the interpreter, of an environment as tools/install.sh
# makes it. Tests run in JOBS processes (2), which share the memory of the GPU.
# What is printed is in FOLDER/log.txt, figures are in its *.json.
set -u
cd "$(dirname "$0")/../.."
FOLDER=${1:-work_dirs/gpu}
PYTHON=${PYTHON:-python}
BUDGET=${BUDGET:-1200}
STEPS=${STEPS:-environment tests operator networks compiled steps demo}
BENCHMARKS=tools/benchmarks
failed=

step() { # NAME LIMIT COMMAND...
    local name=$1 limit=$2 began=$SECONDS left=$((BUDGET - SECONDS)) status
    shift 2
    case " $STEPS " in *" $name "*) ;; *) return ;; esac
    ((limit <= left)) || limit=$left
    if ((limit < 10)); then
        echo "== $name: no time left"
        failed+=" $name"
        return
    fi
    echo "== $name, at most $limit s"
    timeout --kill-after 5 "$limit" "$@"
    status=$?
    ((status == 0)) || failed+=" $name"
    echo "== $name: exit status $status after $((SECONDS - began)) s"
}

report() {
    # cuBLAS reads it once a process; equal runs need it for equal bits.
    export CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONUNBUFFERED=1
    local on_gpu=(--device cuda --rounds 5)
    local network=(--training --adamw --batch 64 --amp --sizes 224)

    step environment 60 "$PYTHON" -m pelk_mm.doctor
    step tests 300 "$PYTHON" -m pytest -q -m 'gpu and not slow' \
        -n "${JOBS:-2}" -p no:cacheprovider
    step operator 120 "$PYTHON" $BENCHMARKS/peripheral_conv.py "${on_gpu[@]}" \
        --dtype bfloat16 --budget 0.2 --json "$FOLDER/peripheral_conv.json"
    step networks 180 "$PYTHON" $BENCHMARKS/throughput.py "${on_gpu[@]}" \
        "${network[@]}" --networks pelk_t same_width_t pelk_101_t convnext_t \
        --cuda-graph --budget 5 --json "$FOLDER/throughput.json"
    step steps 180 "$PYTHON" $BENCHMARKS/training_step.py "${on_gpu[@]}" --amp \
        configs/upernet_pelk_t_ade20k.py configs/pelk_t_in1k.py \
        configs/cascade_mask_rcnn_pelk_t_coco.py \
        --budget 5 --json "$FOLDER/training_step.json"
    step compiled 180 "$PYTHON" $BENCHMARKS/throughput.py "${on_gpu[@]}" \
        "${network[@]}" --networks pelk_t --compile --budget 5 \
        --json "$FOLDER/throughput.json"
    step demo 180 "$PYTHON" tools/demo.py segmentation \
        --data-root "$FOLDER/data" --work-dir "$FOLDER/demo" --cfg-options \
        optim_wrapper.type=AmpOptimWrapper optim_wrapper.dtype=bfloat16
    if [ -n "$failed" ]; then
        echo "== failed or out of time:$failed"
        return 1
    fi
    echo "== all done"
}

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
then
    echo "error: torch of $PYTHON sees no GPU; python -m pelk_mm.doctor says why" >&2
    exit 2
fi
mkdir -p "$FOLDER"
report 2>&1 | tee "$FOLDER/log.txt"
exit "${PIPESTATUS[0]}"
