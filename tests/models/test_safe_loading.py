"""The one place where checkpoints are read runs no code and sees damage."""

import ast
import functools
import http.server
import shlex
import sys
import threading
import warnings
import weakref
import zipfile

import pytest
import safetensors.torch
import torch
from mmengine.runner import CheckpointLoader

from pelk_mm.models.utils import (
    CheckpointError,
    Checkpoints,
    UnsafeCheckpointError,
    read_checkpoint,
)
from pelk_mm.utils.trust import weights_only
from tests.conftest import ROOT
from tests.helpers.unsafe_checkpoints import (
    HIDEOUTS,
    Payload,
    detonate,
    write_plain_pickle,
)

CONTENTS = dict(
    meta=dict(epoch=3, name='x'),
    state_dict={
        'a': torch.arange(100.0),
        'b': torch.tensor([1, 2]),
        'half': torch.ones(7, dtype=torch.bfloat16),
    },
)


def same(loaded, expected=CONTENTS) -> bool:
    if isinstance(expected, torch.Tensor):
        return (
            isinstance(loaded, torch.Tensor)
            and loaded.dtype == expected.dtype
            and torch.equal(loaded, expected)
        )
    if isinstance(expected, dict):
        return loaded.keys() == expected.keys() and all(
            same(loaded[key], expected[key]) for key in expected
        )
    return loaded == expected


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'model.pth'
    torch.save(CONTENTS, path)
    return path


def test_whole_files_load(checkpoint, tmp_path):
    assert same(read_checkpoint(checkpoint))
    assert same(read_checkpoint(str(checkpoint)))
    old = tmp_path / 'old.pth'
    torch.save(CONTENTS, old, _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(old))


@pytest.mark.skipif(
    not hasattr(torch.serialization, 'set_crc32_options'),
    reason='this torch always writes checksums',
)
def test_files_without_checksums_load(checkpoint):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENTS, checkpoint)
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_checkpoint(checkpoint))


def test_contents_are_kept_until_they_are_let_go(checkpoint):
    checkpoints = Checkpoints()
    contents = checkpoints.read(str(checkpoint))
    tensor = weakref.ref(contents['state_dict']['a'])
    checkpoint.unlink()
    assert checkpoints.read(str(checkpoint)) is contents
    with checkpoints.shared():
        assert read_checkpoint(checkpoint) is contents
        loaded = CheckpointLoader.load_checkpoint(str(checkpoint))
        assert same(loaded) and loaded is not contents
    del contents, loaded
    assert tensor() is None
    with pytest.raises(FileNotFoundError, match='no checkpoint'):
        checkpoints.read(str(checkpoint))
    with pytest.raises(FileNotFoundError, match='can not be found'):
        CheckpointLoader.load_checkpoint(str(checkpoint))


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('hideout', HIDEOUTS)
def test_python_objects_are_refused_and_not_built(tmp_path, hideout, zipped):
    path, marker = tmp_path / 'evil.pth', tmp_path / 'ran'
    torch.save(
        HIDEOUTS[hideout](Payload(marker)),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UnsafeCheckpointError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert message.startswith(f'{path} holds pickled Python objects')
    assert '(posix.mkdir)' in message and 'publish_model.py' in message
    assert '\n' not in message
    detonate(path, marker)


def test_a_plain_pickle_is_refused(tmp_path):
    path, marker = tmp_path / 'evil.pkl', tmp_path / 'ran'
    write_plain_pickle(path, marker)
    with pytest.raises(CheckpointError, match=str(path)):
        read_checkpoint(path)
    assert not marker.exists()


def test_trust_is_for_one_file_alone(tmp_path):
    path, marker = tmp_path / 'evil.pth', tmp_path / 'ran'
    torch.save(dict(state_dict=Payload(marker)), path)
    # Also within a tool, which switches code off for everything else.
    with weights_only():
        read_checkpoint(path, trust=True)
        assert marker.exists()
        marker.rmdir()
        with pytest.raises(UnsafeCheckpointError):
            read_checkpoint(path)
    assert not marker.exists()


def test_torchs_switch_trusts_everything(tmp_path, monkeypatch):
    path, marker = tmp_path / 'evil.pth', tmp_path / 'ran'
    torch.save(dict(state_dict=Payload(marker)), path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with weights_only():
        read_checkpoint(path)
    assert marker.exists()


def test_nothing_runs_code_within_weights_only(tmp_path):
    path, marker = tmp_path / 'evil.pth', tmp_path / 'ran'
    torch.save(dict(state_dict=Payload(marker)), path)
    with weights_only(), pytest.raises(Exception, match='(?i)weights'):
        torch.load(path, weights_only=False)
    detonate(path, marker)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server of a folder, and a cache of torch's for downloads."""
    folder = tmp_path / 'served'
    folder.mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '*')

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Handler, directory=str(folder))
    )
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield folder, f'http://127.0.0.1:{served.server_port}'
    served.shutdown()
    thread.join()
    served.server_close()


def test_what_is_downloaded_runs_no_code(server, tmp_path):
    """mmengine loads it with ``weights_only=False``."""
    folder, address = server
    torch.save(CONTENTS, folder / 'good.pth')
    assert same(read_checkpoint(f'{address}/good.pth'))
    marker = tmp_path / 'ran'
    torch.save(dict(state_dict=Payload(marker)), folder / 'evil.pth')
    with pytest.raises(UnsafeCheckpointError, match='evil.pth.*posix.mkdir'):
        read_checkpoint(f'{address}/evil.pth')
    detonate(folder / 'evil.pth', marker)
    with pytest.raises(OSError, match='404'):
        read_checkpoint(f'{address}/gone.pth')


@pytest.mark.parametrize(
    'kept',
    [0, 1, 3, 4, 30, 100, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, -100, -22, -4, -1],
)
@pytest.mark.parametrize('zipped', [True, False])
def test_truncated_files(tmp_path, kept, zipped):
    path = tmp_path / 'torn.pth'
    torch.save(CONTENTS, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    size = int(kept * len(whole)) if isinstance(kept, float) else kept
    path.write_bytes(whole[:size])
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert message.startswith(f'{path} is not a whole checkpoint: ')
    assert 'Copy it again' in message and '\n' not in message


def check_flips(path, positions, bits) -> None:
    """No flipped bit is loaded as anything else than what was saved."""
    whole = path.read_bytes()
    silent = 0
    for position in positions:
        for bit in bits:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                loaded = read_checkpoint(path)
            except CheckpointError as error:
                assert str(path) in str(error) and '\n' not in str(error)
            else:
                silent += 1
                assert same(loaded), f'byte {position}, bit {bit}'
    # In the padding between entries, and fields that nobody reads.
    assert silent < len(positions) * len(bits) / 2


def test_flipped_bits(checkpoint):
    size = checkpoint.stat().st_size
    check_flips(checkpoint, range(0, size, 11), [6])


@pytest.mark.slow
def test_every_flipped_bit(checkpoint):
    check_flips(checkpoint, range(checkpoint.stat().st_size), range(8))


def test_a_flipped_bit_of_a_weight_says_where(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    place = content.find(CONTENTS['state_dict']['a'].numpy().tobytes())
    content[place + 42] ^= 64
    checkpoint.write_bytes(content)
    # torch takes it for another weight.
    assert not same(torch.load(checkpoint))
    with pytest.raises(CheckpointError, match=r'checksum of .*data/\d is'):
        read_checkpoint(checkpoint)


def test_a_weight_marked_as_a_folder(checkpoint):
    """torch reads nothing of it, and returns what was in memory."""
    content = bytearray(checkpoint.read_bytes())
    # The attributes in the directory, in front of the name.
    content[content.rfind(b'model/data/0') - 8] ^= 0x10
    checkpoint.write_bytes(content)
    with pytest.raises(CheckpointError, match='folder'):
        read_checkpoint(checkpoint)


def test_a_file_that_changes_is_checked_again(checkpoint):
    assert same(read_checkpoint(checkpoint))
    content = bytearray(checkpoint.read_bytes())
    place = content.find(CONTENTS['state_dict']['a'].numpy().tobytes())
    content[place + 42] ^= 64
    checkpoint.write_bytes(content)
    with pytest.raises(CheckpointError, match='checksum'):
        read_checkpoint(checkpoint)
    torch.save(CONTENTS, checkpoint)
    assert same(read_checkpoint(checkpoint))


def test_a_zip_bomb_is_not_unpacked(checkpoint):
    with zipfile.ZipFile(checkpoint, 'a', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('model/data/99', b'0' * 1_000_000)
    with pytest.raises(CheckpointError, match='compressed'):
        read_checkpoint(checkpoint)


TENSORS = CONTENTS['state_dict']


def test_safetensors_load(tmp_path, server):
    path = tmp_path / 'model.safetensors'
    safetensors.torch.save_file(TENSORS, path)
    assert same(read_checkpoint(path), TENSORS)
    # Caches of hubs name files by their hashes.
    assert same(read_checkpoint(path.rename(tmp_path / '0a1b2c')), TENSORS)
    folder, address = server
    for part, tensors in (('x', TENSORS), ('y', {'a': torch.ones(3)})):
        (folder / part).mkdir()
        name = f'{part}/model.safetensors'
        safetensors.torch.save_file(tensors, folder / name)
        url = f'{address}/{name}?download=true'
        assert same(read_checkpoint(url), tensors)
        (folder / name).unlink()
        assert same(read_checkpoint(url), tensors)


@pytest.mark.parametrize('kept', [0, 1, 7, 8, 9, 30, 0.5, 0.9, -1])
def test_truncated_safetensors(tmp_path, kept):
    path = tmp_path / 'torn.safetensors'
    whole = safetensors.torch.save(TENSORS)
    size = int(kept * len(whole)) if isinstance(kept, float) else kept
    path.write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match='not a whole checkpoint') as e:
        read_checkpoint(path)
    assert str(e.value).startswith(str(path)) and '\n' not in str(e.value)


def test_without_the_package_safetensors(tmp_path, monkeypatch):
    path = tmp_path / 'model.safetensors'
    safetensors.torch.save_file(TENSORS, path)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(CheckpointError, match='pip install safetensors'):
        read_checkpoint(path)


def test_files_in_parts_are_joined_as_is_said(tmp_path):
    names = [f'model-0000{i}-of-00002.safetensors' for i in (1, 2)]
    for name, key in zip(names, 'ab', strict=True):
        safetensors.torch.save_file({key: TENSORS[key]}, tmp_path / name)
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text('{}')
    for path in (tmp_path, index, *(tmp_path / name for name in names)):
        with pytest.raises(CheckpointError, match='several files') as error:
            read_checkpoint(path)
        assert str(error.value).startswith(f'{path} is ')
    command = shlex.split(str(error.value).partition('join them with ')[2])
    exec(command[2], {})
    whole = tmp_path / 'whole.safetensors'
    expected = {key: TENSORS[key] for key in 'ab'}
    assert same(read_checkpoint(whole), expected)


@pytest.mark.parametrize(
    'content',
    [
        b'<html>404</html>',
        b'version https://git-lfs.github.com/spec/v1\n',
        b'\x00' * 5000,
        b'\x80\x02garbage',
        b'PK\x03\x04' + b'\xff' * 300,
        b'hello, world',
    ],
)
def test_files_of_something_else(tmp_path, content):
    path = tmp_path / 'model.pth'
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(CheckpointError, match='not a whole checkpoint'):
            read_checkpoint(path)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint .*gone.pth'):
        read_checkpoint(tmp_path / 'gone.pth')
    with pytest.raises(IsADirectoryError, match='is a folder'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    'contents',
    [
        [1, 2],
        'text',
        torch.ones(2),
        dict(state_dict=dict(a='no tensor')),
        dict(state_dict={}),
        dict(state_dict=[1]),
    ],
)
def test_other_contents_are_no_checkpoint(tmp_path, contents):
    from pelk_mm.models.utils import weights_of

    path = tmp_path / 'model.pth'
    torch.save(contents, path)
    with pytest.raises(RuntimeError, match='model.pth holds'):
        weights_of(read_checkpoint(str(path)), str(path))


@pytest.mark.parametrize(
    'change',
    [
        lambda state: [state],
        lambda state: dict(state, version=9),
        lambda state: dict(state, masks=3),
        lambda state: dict(state, shapes={}),
        lambda state: dict(state, masks=dict(a='x')),
        lambda state: {key: state[key] for key in state if key != 'digest'},
        lambda state: dict(state, digest='0'),
    ],
)
def test_masks_that_are_none(change):
    from pelk_mm.engine.sparsity.state import pack_state, unpack_masks

    state = pack_state(dict(a=torch.tensor([[True, False]])))
    assert unpack_masks(state)['a'].tolist() == [[True, False]]
    with pytest.raises(ValueError, match=r'(state|masks)'):
        unpack_masks(change(state))


#: Whoever else may call what unpickles, and why.
EXCEPTIONS = {
    # No checkpoints, and nothing that unpickles: arrays of numbers, images,
    # graphs, sources.
    ('pelk_mm/datasets/images.py', 'image.load'),
    ('pelk_mm/deployment/onnx_export.py', 'onnx.load'),
    ('pelk_mm/ops/backends/triton_kernels.py', 'tl.load'),
    ('pelk_mm/ops/backends/triton_norm_kernels.py', 'tl.load'),
    ('pelk_mm/ops/backends/triton_residual_kernels.py', 'tl.load'),
    ('pelk_mm/analysis/erf.py', 'np.load'),
    ('tools/analysis_tools/visualize_erf.py', 'np.load'),
    ('tools/benchmarks/structure_report.py', 'np.load'),
    ('tools/benchmarks/structure_scenes.py', 'np.load'),
    ('pelk_mm/models/utils/safe_loading.py', 'torch.load'),
    (
        'pelk_mm/models/utils/safe_loading.py',
        'CheckpointLoader.load_checkpoint',
    ),
    # Numbers and their names, in a format without objects.
    ('pelk_mm/models/utils/safe_loading.py', 'safetensors.torch.load'),
    # In place of a loader without safeguard, with what that was called with.
    ('pelk_mm/compat.py', 'torch.load'),
    # Packages: programs by themselves, as docs/deployment.md says.
    ('pelk_mm/deployment/variants.py', 'torch.export.load'),
    ('pelk_mm/deployment/torch_export.py', 'torch.export.load'),
}
LOADERS = {
    'load',
    'load_checkpoint',
    '_load_checkpoint',
    'load_url',
    'Unpickler',
    '_load_checkpoint_with_prefix',
    'load_state_dict_from_url',
    'loads',
}


def unpicklers(source: str) -> set[str]:
    """Calls and imports in a source that could unpickle something."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in LOADERS:
            found.add(ast.unparse(node))
        if isinstance(node, ast.ImportFrom):
            found.update(
                f'{node.module}.{name.name}'
                for name in node.names
                if name.name in LOADERS
            )
        if isinstance(node, ast.Import):
            found.update(
                name.name
                for name in node.names
                if name.name in ('pickle', 'dill', 'joblib')
            )
    return {name for name in found if not name.startswith('json.')}


def test_nothing_else_reads_pickles():
    sources = [
        path
        for folder in ('pelk_mm', 'tools')
        for path in (ROOT / folder).rglob('*.py')
    ]
    assert len(sources) > 80
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in sources
        for name in unpicklers(path.read_text('utf-8'))
    }
    assert found <= EXCEPTIONS, 'use pelk_mm.models.utils.read_checkpoint'


@pytest.mark.parametrize(
    'source',
    [
        'import torch; torch.load(1)',
        'from torch import load',
        'import pickle',
        'from mmengine.runner import load_checkpoint',
        'mmengine.load("x.pkl")',
        'from pickle import loads',
        'runner.load_checkpoint(x)',
        'torch.hub.load_state_dict_from_url(x)',
    ],
)
def test_the_search_finds_them(source):
    assert unpicklers(source)
