"""mmengine's log histories are read, and nothing else than numbers is made."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

import pelk_mm  # noqa: F401, has them read
from tests.helpers.unsafe_checkpoints import HIDEOUTS, Payload


def stored(value) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def read(file: io.BytesIO):
    return torch.load(file, weights_only=True)


def history(**state) -> HistoryBuffer:
    found = HistoryBuffer([0.5, 1.5], [1, 2], max_length=7)
    found.__dict__.update(state)
    return found


@pytest.mark.parametrize('times', [1, 2])
def test_histories_are_what_they_were(times):
    made, empty = history(), HistoryBuffer()
    back = dict(made=made, empty=empty)
    for _ in range(times):
        back = read(stored(back))
    assert type(back['made']) is type(back['empty']) is HistoryBuffer
    for name, before in (('made', made), ('empty', empty)):
        after = back[name]
        assert after.max_length == before.max_length
        for a, b in zip(after.data, before.data, strict=True):
            assert type(a) is np.ndarray and a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    back['made'].update(2.5, 1)
    assert back['made'].mean() == made.mean() * 3 / 4 + 2.5 / 4
    assert back['made'].statistics('max') == 2.5


@pytest.mark.parametrize('name', ['?', 'u1', 'i8', '>i4', 'f2', '<f4', 'f8'])
def test_numbers_of_numpy(name):
    array = np.arange(6).reshape(2, 3).astype(name)
    back = read(stored(dict(c=array, f=np.asfortranarray(array))))
    for each in back.values():
        # numpy itself gives numbers the order of bytes of the machine.
        assert isinstance(each, np.ndarray)
        assert each.dtype == array.dtype.newbyteorder('=')
        np.testing.assert_array_equal(each, array)
    scalar = read(stored(array[1, 2]))
    assert scalar == array[1, 2] and scalar.dtype == array[1, 2].dtype


def test_what_is_read_is_saved_for_those_without_this_project(tmp_path):
    back = read(stored(dict(h=history(), a=np.arange(3.0))))
    torch.save(back, tmp_path / 'again.pth')
    code = """if 1:
        import sys, numpy, torch
        found = torch.load(sys.argv[1], weights_only=False)
        assert type(found['a']) is numpy.ndarray, found
        assert type(found['h']).__module__.startswith('mmengine.'), found
        assert 'pelk_mm' not in sys.modules
    """
    subprocess.run(
        [sys.executable, '-c', code, tmp_path / 'again.pth'],
        check=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    'value',
    [
        np.array([1, None], dtype=object),
        np.array(['text']),
        np.array([(1, 2.0)], dtype='i4,f8'),
        np.datetime64('2024-01-01'),
        np.complex64(1),
        history(_log_history=[1.0]),
        history(_log_history=np.array([print], dtype=object)),
        history(max_length='7'),
    ],
)
def test_nothing_else_is_made(value):
    with pytest.raises(pickle.UnpicklingError):
        read(stored(value))


class Reduced:
    """Pickled as a call."""

    def __init__(self, function, *arguments, state=None) -> None:
        self.call = (function, arguments)
        if state is not None:
            self.call += (state,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'value',
    [
        # What the names in the list would do if they meant themselves.
        Reduced(getattr, dict, 'fromkeys'),
        Reduced(getattr, HistoryBuffer, '__init__', state={}),
        Reduced(HistoryBuffer.register_statistics, print),
        Reduced(np.dtype, 'O'),
        Reduced(np.ndarray, (2,), np.dtype('O')),
        Reduced(bytes, 3),
    ],
)
def test_the_names_in_the_list_do_nothing_else(value):
    try:
        made = read(stored(dict(x=value)))['x']
    except (pickle.UnpicklingError, TypeError):
        return
    # An empty array of numbers, or what getattr is asked for of a history.
    assert made is None or (made.dtype == float and made.size == 0)


def test_statistics_of_a_file_are_not_called():
    methods = dict(HistoryBuffer._statistics_methods)
    evil = history(
        _statistics_methods=dict(mean=torch._utils._rebuild_parameter),
        statistics_methods=dict(mean=torch._utils._rebuild_parameter),
        mean=torch._utils._rebuild_parameter,
    )
    file = io.BytesIO()
    # As it stands: mmengine would write its own methods into the file.
    torch.save(Reduced(HistoryBuffer, state=evil.__dict__), file)
    file.seek(0)
    back = read(file)
    assert HistoryBuffer._statistics_methods == methods
    assert back.statistics('mean') == history().mean()
    assert set(vars(back)) <= {'max_length', '_log_history', '_count_history'}


@pytest.mark.parametrize('hideout', HIDEOUTS)
@pytest.mark.parametrize(
    'place',
    [
        lambda evil: history(_log_history=evil),
        lambda evil: history(unknown=evil),
        lambda evil: [history(), evil],
    ],
)
def test_code_beside_histories_is_not_run(hideout, place, tmp_path):
    marker = tmp_path / 'ran'
    file = stored(place(HIDEOUTS[hideout](Payload(marker))))
    with pytest.raises(pickle.UnpicklingError):
        read(file)
    assert not marker.exists()


@pytest.mark.parametrize('core', ['core', '_core'])
def test_files_of_both_numpys(core):
    made = pickle.dumps(history(), 2)
    for name in (b'numpy._core.multiarray', b'numpy.core.multiarray'):
        made = made.replace(name, f'numpy.{core}.multiarray'.encode())
    back = torch._weights_only_unpickler.load(io.BytesIO(made))
    assert back.data[0].tolist() == [0.5, 1.5]
