#!/usr/bin/env bash
# The C++ compiler that build_mmcv.py builds mmcv's operators with.
#
#   CXX=FOLDER/cxx.sh CXX_APPEND_FLAGS='-std=c++20 -g0' MMCV_WITH_OPS=1 pip install …
#
# It is MMCV_CXX (default c++) with two differences:
#   - CXX_APPEND_FLAGS come last and so win over what mmcv's setup.py asks for.
#   - torch's headers are compiled once and not with each file, which takes a
#     third of the time. The result lies in the folder of the build, which pip
#     removes. A compiler that cannot use it reads the headers as ever.
set -euo pipefail
read -ra compiler <<<"${MMCV_CXX:-c++}"
read -ra last <<<"${CXX_APPEND_FLAGS:-}"
headers=$PWD/torch_headers.h

[[ " $* " == *' -c '* ]] || exec "${compiler[@]}" "$@" "${last[@]}" # it links

# Without the names of the files, which are those of one call.
flags=()
while [ $# -gt 0 ]; do
    case $1 in
    -o | -MF | -MT) names+=("$1" "$2") && shift ;;
    -c | -MD | -MMD | *.cpp) names+=("$1") ;;
    *) flags+=("$1") ;;
    esac
    shift
done
flags+=("${last[@]}")
(
    flock 9 # ninja starts several at once
    [ -e "$headers" ] || {
        echo '#include <torch/types.h>' >"$headers"
        "${compiler[@]}" "${flags[@]}" -x c++-header "$headers" \
            -o "$headers.gch" || rm -f "$headers.gch"
    }
) 9>"$headers.lock"
exec "${compiler[@]}" -include "$headers" "${flags[@]}" "${names[@]}"
