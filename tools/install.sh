#!/usr/bin/env bash
# Create a virtual environment and install a tested row of packages in it:
# torch, mmcv built with its ops, the OpenMMLab libraries, pelk_mm itself.
#   tools/install.sh [FOLDER [ROW]]  default .venv openmmlab
# ROW is openmmlab, or onedl for the maintained fork; each is two files of
# requirements/. PYTHON names the interpreter (default python3), NUMPY another
# version of numpy than the one in requirements/constraints.txt, such as 1.26.4.
# It can be run again: what is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
row=${2:-openmmlab}
python=${PYTHON:-python3}
needed_gb=14

fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -eq 1 ] || printf '       %s\n' "${@:2}" >&2
    exit 1
}
step() { printf '\n== %s\n' "$1"; }

# --- what has to be there -------------------------------------------------
[ -e "requirements/$row.txt" ] && [ -e "requirements/$row-mmcv.txt" ] ||
    fail "there is no row $row of packages; known are openmmlab and onedl"
[ -z "${NUMPY:-}" ] || [[ $NUMPY =~ ^[0-9]+(\.[0-9]+){1,2}$ ]] ||
    fail "NUMPY must be a version such as 1.26.4, got $NUMPY"
command -v "$python" >/dev/null ||
    fail "there is no $python; install Python 3.10 to 3.12 (on Debian:" \
        "apt-get install python3 python3-venv python3-dev), or name one with PYTHON=…"
# A name that is found need not run, as those of pyenv may not.
"$python" -c '' ||
    fail "$python does not run, see above; name another one with PYTHON=…"
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' ||
    fail "$python is $("$python" --version 2>&1), Python 3.10 to 3.12 is needed;" \
        "name another one with PYTHON=…"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module (on Debian: apt-get install python3-venv)"
"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    fail "$python has no C headers, which building mmcv needs" \
        "(on Debian: apt-get install python3-dev)"
command -v "${CXX:-g++}" >/dev/null ||
    fail "there is no C++ compiler ${CXX:-g++}, which building mmcv needs" \
        "(on Debian: apt-get install g++)"
free_gb=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
if [ ! -e "$venv/.installed" ] && [ "$free_gb" -lt "$needed_gb" ]; then
    fail "$free_gb GB are free here, about $needed_gb GB are needed" \
        "(torch and its CUDA libraries, mmcv's build, pip's cache)"
fi

# --- install --------------------------------------------------------------
log=$venv/install.log
step "1/6 virtual environment $venv"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# Both rows are imported by the same names: the files of one would overwrite
# those of the other.
"$venv/bin/python" -m pelk_mm.doctor --has-room-for "$row" ||
    fail "$venv holds another row; remove it, or name another folder"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
# A log that a failed step shows the end of; its progress lines come through.
logged() {
    local filter=$1
    shift
    if ! "$@" 2>&1 | tee -a "$log" | sed -unE "$filter"; then
        tail -n 30 "$log" >&2
        fail "this step failed; the whole log is $log"
    fi
}
packages='s/^ *(Downloading|Installing collected|Successfully) (.{1,90}).*/  \1 \2/p'
: >"$log"
constraints=$venv/constraints.txt
sed "${NUMPY:+s/^numpy==.*/numpy==$NUMPY/}" \
    requirements/constraints.txt >"$constraints"
logged "$packages" pip install -c "$constraints" -r requirements/build.txt

step '2/6 torch and torchvision (about 4 GB to download)'
logged "$packages" pip install -c "$constraints" -r requirements/torch.txt

step "3/6 mmengine, mmdet, mmsegmentation, mmpretrain ($row)"
logged "$packages" pip install -c "$constraints" -r "requirements/$row.txt"
# Without a system libGL the desktop build of OpenCV does not import.
if ! "$venv/bin/python" -c 'import cv2' 2>>"$log"; then
    echo '  this machine has no libGL: OpenCV without a display is used'
    logged "$packages" pip uninstall -y opencv-python
    # Whoever asked for it already shared its files with the other.
    logged "$packages" pip install -c "$constraints" --no-deps \
        --force-reinstall opencv-python-headless
fi

step '4/6 mmcv with its ops (built from source: 8 to 25 minutes on two cores the first time, then from the cache)'
# Its dependencies came with mmengine; asking again would undo the above.
build_mmcv() {
    logged 's/^ *(\[[0-9]+\/[0-9]+\]) .*/  compiled \1/p; s/^ *(Successfully .{1,90}).*/  \1/p' \
        env MMCV_WITH_OPS=1 "$venv/bin/python" -m pip \
        --disable-pip-version-check install -v --no-build-isolation --no-deps \
        -r "requirements/$row-mmcv.txt" "$@"
}
has_ops() { "$venv/bin/python" -c 'import mmcv.ops' 2>>"$log"; }
build_mmcv
if ! has_ops; then
    echo '  the cached mmcv was built without its ops, building it anew'
    build_mmcv --no-cache-dir --force-reinstall
    has_ops || fail "mmcv has no ops after building it; the log is $log"
fi

step '5/6 pelk_mm, and what its tests, demos and exports use'
logged "$packages" pip install -c "$constraints" -r requirements/tests.txt \
    -r requirements/deploy.txt
logged "$packages; s/^ *((The|No) C\+\+ kernels.*)/  \1/p" \
    pip install -v --no-build-isolation --no-deps -e .

step '6/6 a look at the result'
"$venv/bin/python" -m pelk_mm.doctor || fail 'see the advice above'
touch "$venv/.installed"
echo
echo "Installed. Activate it with: source $venv/bin/activate"
