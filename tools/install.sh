#!/usr/bin/env bash
# Create a virtual environment with tested versions of all that pelk_mm needs.
#
#   tools/install.sh [--lite] [FOLDER [PACKAGES]]
#
#   FOLDER    of the environment (default .venv)
#   PACKAGES  openmmlab (default), or onedl for the maintained fork of the
#             OpenMMLab packages: two files of requirements/ each
#   --lite    mmcv-lite in place of mmcv: nothing is compiled but the C++
#             kernels of pelk_mm. Enough for classification and segmentation
#   -h        this text
#
# From the environment:
#   PYTHON=python3.12   the interpreter (default python3)
#   TORCH=2.10.0        another torch than that of requirements/torch.txt, with
#                       the newest torchvision that pip finds for it
#   NUMPY=1.26.4        another numpy than that of requirements/constraints.txt
#   PIP_EXTRA_INDEX_URL=…
#                       an index of torch without CUDA, which PyPI does not have
#                       for Linux; see docs/install.md
#
# It can be run again: what is there already is kept, and what --lite left out
# is added without it.
set -euo pipefail

fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -eq 1 ] || printf '       %s\n' "${@:2}" >&2
    exit 1
}
step() { printf '\n== %s\n' "$1"; }

lite= stamp=.installed
while [[ ${1:-} == -* ]]; do
    case $1 in
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit ;;
    --lite) lite=1 stamp=.lite ;;
    *) fail "unknown option $1, see tools/install.sh --help" ;;
    esac
    shift
done
[ $# -le 2 ] || fail "at most FOLDER and PACKAGES are expected, got $*"
cd "$(dirname "$0")/.."
venv=${1:-.venv}
packages=${2:-openmmlab}
python=${PYTHON:-python3}
mmcv=requirements/$packages-mmcv${lite:+-lite}.txt
# torch with its CUDA libraries, twice: installed and in pip's cache.
needed_gb=14

# --- what has to be there -------------------------------------------------
[ -e "requirements/$packages.txt" ] && [ -e "requirements/$packages-mmcv.txt" ] ||
    fail "there are no packages $packages; known are openmmlab and onedl"
[ -e "$mmcv" ] || fail "there is no mmcv without operators for $packages;" \
    "leave out --lite"
version='^[0-9]+(\.[0-9]+){1,2}(\+[a-z0-9]+)?$'
[ -z "${TORCH:-}" ] || [[ $TORCH =~ $version ]] ||
    fail "TORCH must be a version such as 2.14.1 or 2.14.1+cpu, got $TORCH"
[ -z "${NUMPY:-}" ] || [[ $NUMPY =~ $version ]] ||
    fail "NUMPY must be a version such as 1.26.4, got $NUMPY"
command -v "$python" >/dev/null ||
    fail "there is no $python; install Python 3.10 to 3.13 (on Debian:" \
        "apt-get install python3 python3-venv python3-dev), or name one with PYTHON=…"
# A name that is found need not run, as those of pyenv may not.
"$python" -c '' ||
    fail "$python does not run, see above; name another one with PYTHON=…"
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
    fail "$python is $("$python" --version 2>&1), Python 3.10 to 3.13 is needed;" \
        "name another one with PYTHON=…"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module (on Debian: apt-get install python3-venv)"
if [ -z "$lite" ]; then
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        fail "$python has no C headers, which building mmcv needs" \
            "(on Debian: apt-get install python3-dev)"
    command -v "${CXX:-g++}" >/dev/null ||
        fail "there is no C++ compiler ${CXX:-g++}, which building mmcv needs" \
            "(on Debian: apt-get install g++)"
fi
free_gb=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
if ! ls "$venv"/.{lite,installed} >/dev/null 2>&1 && [ "$free_gb" -lt "$needed_gb" ]; then
    fail "$free_gb GB are free here, about $needed_gb GB are needed" \
        "(torch and its CUDA libraries, mmcv's build, pip's cache)"
fi

# --- install --------------------------------------------------------------
log=$venv/install.log
step "1/6 virtual environment $venv"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# mmcv's build looks for ninja on PATH.
PATH=$(cd "$venv/bin" && pwd):$PATH
# The fork is imported by the same names: its files would overwrite the others.
python -m pelk_mm.doctor --has-room-for "$packages" ||
    fail "$venv holds other packages; remove it, or name another folder"
pip() { python -m pip --disable-pip-version-check "$@"; }
# A log that a failed step shows the end of; its progress lines come through.
logged() {
    local filter=$1
    shift
    if ! "$@" 2>&1 | tee -a "$log" | sed -unE "$filter"; then
        tail -n 30 "$log" >&2
        fail "this step failed; the whole log is $log"
    fi
}
progress='s/^ *(Downloading|Installing collected|Successfully) (.{1,90}).*/  \1 \2/p'
: >"$log"
constraints=$venv/constraints.txt
sed "${NUMPY:+s/^numpy==.*/numpy==$NUMPY/}" \
    requirements/constraints.txt >"$constraints"
torch=$venv/torch.txt
sed "${TORCH:+s/^torch==.*/torch==$TORCH/; s/^torchvision==.*/torchvision/}" \
    requirements/torch.txt >"$torch"
get() { logged "$progress" pip install -c "$constraints" "$@"; }
get -r requirements/build.txt

step '2/6 torch and torchvision'
if ! command -v nvidia-smi >/dev/null && ! python -c 'import torch' 2>/dev/null; then
    echo '  PyPI has them for Linux with CUDA alone: 3 GB to download, GPU or not.'
    echo '  docs/install.md says how to get them without.'
fi
get -r "$torch"

step "3/6 mmengine, mmdet, mmsegmentation, mmpretrain ($packages)"
get -r "requirements/$packages.txt"
# Without a system libGL the desktop build of OpenCV does not import.
if ! python -c 'import cv2' 2>>"$log"; then
    echo '  this machine has no libGL: OpenCV without a display is used'
    logged "$progress" pip uninstall -y opencv-python
    # Whoever asked for it already shared its files with the other.
    get --no-deps --force-reinstall opencv-python-headless
fi

# Its dependencies came with mmengine; asking again would undo the above.
if [ -n "$lite" ]; then
    step '4/6 mmcv-lite: mmcv without compiled operators'
    python -c 'import mmcv' 2>>"$log" || get --no-deps -r "$mmcv"
else
    step '4/6 mmcv with its operators'
    echo '  Detectors and the test suite use them, and PyPI has no mmcv that is built.'
    # The right version, and built for this torch?
    if ! { pip install --no-index --no-deps -r "$mmcv" &&
        python -c 'import torch, mmcv._ext'; } >>"$log" 2>&1; then
        echo '  Compiling them takes about five minutes on two cores, and half an hour'
        echo '  for a GPU; those for CPUs pip then has in its cache.'
        python tools/mmcv_build/build_mmcv.py --log "$log" \
            "$(sed '/^#/d' "$mmcv")" || fail "this step failed; the whole log is $log"
    fi
fi

step '5/6 pelk_mm, and what it is shown and tested with'
get -r requirements/demo.txt
[ -n "$lite" ] || get -r requirements/tests.txt -r requirements/deploy.txt
logged "$progress; s/^ *((The|No) C\+\+ kernels.*)/  \1/p" \
    pip install -v --no-build-isolation --no-deps -e .

step '6/6 a look at the result'
python -m pelk_mm.doctor || fail 'see the advice above'
touch "$venv/$stamp"
echo
echo "Installed. Activate it with: source $venv/bin/activate"
