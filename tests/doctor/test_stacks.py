"""That the tested stacks are named alike everywhere."""

import re

from pelk_mm.doctor.stacks import TESTED, Stack, ends, release

CELLS = re.compile(r'^\| (3\.\d+)\S* \| (\S+) \| (\S+) \| (OpenMMLab|onedl)\b')


def test_documents_list_them(root):
    lines = (root / 'docs' / 'versions.md').read_text().splitlines()
    listed = [
        Stack(*cells.group(1, 2, 3), cells[4].lower())
        for cells in map(CELLS.match, lines)
        if cells
    ]
    assert listed[0] == TESTED[0]
    assert set(listed) == set(TESTED)


def test_the_first_is_installed(root):
    def pinned(name):
        text = (root / 'requirements' / name).read_text()
        return dict(re.findall(r'^(\w+)==(\S+)$', text, re.MULTILINE))

    assert TESTED[0].torch == pinned('torch.txt')['torch']
    assert TESTED[0].numpy == pinned('constraints.txt')['numpy']


def test_the_makefile_tests_the_ends(root):
    text = (root / 'Makefile').read_text()
    made = re.findall(
        r'^test-(?:old|new)est:\n.*TORCH=(\S+)', text, re.MULTILINE
    )
    assert sorted(made, key=release) == list(ends('torch'))
