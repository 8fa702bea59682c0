"""Builds ahead what the backends would build on first use.

``python -m pelk_mm.ops.backends`` prints what it does; its exit status is 0
also where a backend cannot be built, because the others work without it.
"""

from __future__ import annotations

from .cpp_build import find_library


def main() -> None:
    """Compile the kernels of the ``cpp`` backend and say where they are."""
    try:
        library = find_library()
    except Exception as error:
        why = f'{type(error).__name__}: {error}'
        print(f"backend 'cpp' could not be built, others will be used: {why}")
    else:
        print(f"backend 'cpp' is ready: {library}")


if __name__ == '__main__':
    main()
