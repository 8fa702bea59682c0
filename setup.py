"""What setup.cfg cannot say: the library of the C++ kernels.

``pip install -e .`` compiles it ahead, into the cache where it is looked for;
without a compiler it says so and goes on. A wheel has none and is for any
platform, unless one is asked for:

    CXX=g++ pip wheel . -C--build-option=--plat-name=manylinux_2_28_x86_64

compiles for what ``$CXX`` compiles for. `make wheel` does that.
"""

import re
import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel

BACKENDS = Path('pelk_mm', 'ops', 'backends')
# By its path, since there need not be a torch here.
cpp_build = runpy.run_path(
    str(Path(__file__).parent / BACKENDS / 'cpp_build.py')
)


class Wheel(bdist_wheel):
    """For every Python, with or without a library."""

    #: Where the package is, if that is not beside its metadata.
    package: Path | None = None

    def finalize_options(self) -> None:
        if self.plat_name:
            # Otherwise it would be taken for one of Python alone.
            self.distribution.has_ext_modules = lambda: True
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        return 'py3', 'none', super().get_tag()[2]

    def write_wheelfile(self, folder: str, *args: str) -> None:
        super().write_wheelfile(folder, *args)
        if self.package is not None:
            # mim and mmengine join the folder of the metadata and the first
            # of these names.
            names = Path(folder, 'top_level.txt')
            names.write_text(f'{self.package}\n{names.read_text()}')


class Library(build_ext):
    """Runs for a wheel that is for one platform, see above."""

    def run(self) -> None:
        library = Path(self.build_lib, BACKENDS, cpp_build['NAME'])
        cpp_build['compile_library'](library)


class Editable(editable_wheel):
    """Installs the sources where they are."""

    def run(self) -> None:
        Wheel.package = Path('pelk_mm').resolve()
        # setuptools asks by this name whether to install data files, and has
        # no such method.
        self.distribution.has_data = self.distribution.has_data_files
        super().run()
        try:
            print('The C++ kernels:', cpp_build['find_library'](), flush=True)
        except Exception as error:
            why = str(error).partition('\n')[0]
            print('No C++ kernels, others will be used:', why, flush=True)


def description() -> str:
    """The README without what leads to other files of the repository."""
    text = Path(__file__).with_name('README.md').read_text()
    text = re.sub(r'!\[[^]]*\]\((?!http)[^)]*\)\n*', '', text)
    return re.sub(r'\[([^]]*)\]\((?!http)[^)]*\)', r'\1', text)


setup(
    long_description=description(),
    cmdclass=dict(
        bdist_wheel=Wheel, build_ext=Library, editable_wheel=Editable
    ),
)
