#!/usr/bin/env bash
# Build what can be published into dist/: the sdist, the wheel that compiles
# its C++ kernels on first use, and wheels that have them, for Linux on x86-64
# and, where there is a cross-compiler, on aarch64 (or the other way round).
#   tools/wheels.sh [FOLDER]  default .venv-wheel, where the tools go
# PYTHON names the interpreter (default python3), CXX the compiler for this
# machine (default g++).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv-wheel}
policy=manylinux_2_28

fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -eq 1 ] || printf '       %s\n' "${@:2}" >&2
    exit 1
}

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv" ||
    fail "there is no virtual environment $venv, see above" \
        "(on Debian: apt-get install python3 python3-venv)"
python=$venv/bin/python
"$python" -m pip --disable-pip-version-check install -qr requirements/wheel.txt ||
    fail "$venv lacks what requirements/wheel.txt lists, see above"

# Equal files from equal sources.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
log=$made/log
logged() { "$@" >>"$log" 2>&1 || { tail -n 30 "$log" >&2; fail "failed: $*"; }; }

echo 'the sdist, and out of it the wheel for any platform'
logged "$python" -m build --no-isolation --outdir "$made" .
for machine in x86_64 aarch64; do
    compiler=$machine-linux-gnu-g++ package=g++-${machine/_/-}-linux-gnu
    [ "$machine" != "$(uname -m)" ] || compiler=${CXX:-g++} package=g++
    if ! command -v "${compiler%% *}" >/dev/null; then
        why="there is no $compiler (on Debian: apt-get install $package)"
        [ "$machine" != "$(uname -m)" ] || fail "$why"
        echo "no wheel for $machine: $why"
        continue
    fi
    tag=${policy}_$machine
    echo "the wheel for $tag, with $compiler"
    logged env CXX="$compiler" "$python" -m pip --disable-pip-version-check \
        wheel --no-build-isolation --no-deps --no-cache-dir -w "$made" \
        -C--build-option=--plat-name="$tag" "$made"/*.tar.gz
    wheel=$(echo "$made"/*"$tag".whl)
    found=$("$venv/bin/auditwheel" show --json "$wheel" |
        "$python" -c 'import json, sys; print(json.load(sys.stdin)["overall_tag"])')
    # Those of older systems come first.
    if [ "$(printf '%s\n' "$found" "$tag" | sort -V | tail -n 1)" != "$tag" ]; then
        "$venv/bin/auditwheel" show "$wheel" >&2
        fail "auditwheel finds it to be $found, not $tag, see above"
    fi
done
rm "$log"
rm -rf dist
mkdir dist
mv "$made"/* dist
ls -l dist
