"""Run a tool in this process, and write how often it opened some files.

python tests/helpers/counted_opens.py RESULT.json FILES... -- TOOL ARGUMENTS...
"""

import json
import os
import runpy
import sys
from collections import Counter


def main() -> None:
    split = sys.argv.index('--')
    result, *files = sys.argv[1:split]
    sys.argv = sys.argv[split + 1 :]
    sys.path[0] = os.path.dirname(sys.argv[0])
    opened: Counter[str] = Counter()

    def count(event: str, args: tuple) -> None:
        if event == 'open' and isinstance(args[0], (str, bytes, os.PathLike)):
            opened[os.path.abspath(os.fsdecode(args[0]))] += 1

    sys.addaudithook(count)
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    finally:
        counts = [opened[os.path.abspath(file)] for file in files]
        with open(result, 'w') as file:
            json.dump(counts, file)


if __name__ == '__main__':
    main()
