"""A compiler that takes no time."""

import shlex
import stat
from pathlib import Path

#: Writes down its arguments; what it links is a copy of $LIBRARY.
_COMPILER = """#!/bin/sh
echo "$@" >> "$CALLS"
for output; do :; done  # the last argument
case "$*" in
    *-dM*) echo "$MACROS" ;;
    *-shared*) sleep "$SECONDS_TO_LINK"; cp "$LIBRARY" "$output" ;;
    *) : > "$output" ;;
esac
"""


def made_up_compiler(folder: Path, library: Path) -> dict[str, str]:
    """The environment in which it is ``$CXX`` and links that library."""
    compiler = folder / 'made up c++'
    compiler.write_text(_COMPILER)
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    return {
        'CXX': f'{shlex.quote(str(compiler))} -target some',
        'CALLS': str(folder / 'calls'),
        'MACROS': '#define __x86_64__ 1\n#define __linux__ 1',
        'SECONDS_TO_LINK': '0',
        'LIBRARY': str(library),
    }
