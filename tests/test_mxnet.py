import struct

import numpy as np
import pytest
import torch

from wsss_affinity.errors import WSSSError
from wsss_affinity.mxnet import read_params

FLAGS = {"f4": 0, "f8": 1, "f2": 2, "u1": 3, "i4": 4, "i1": 5, "i8": 6}
HEAD = struct.pack("<QQ", 0x112, 0)
EYE = np.eye(2, 3, dtype="f4")


def array(values, version=2):
    """The bytes of one array, as MXNet writes them."""
    ndim, dims = values.ndim, values.shape
    if version == 2:
        shape = struct.pack(f"<IiI{ndim}q", 0xF993FAC9, 0, ndim, *dims)
    elif version == 1:
        shape = struct.pack(f"<II{ndim}q", 0xF993FAC8, ndim, *dims)
    else:
        shape = struct.pack(f"<I{ndim}I", ndim, *dims)
    device = struct.pack("<ii", 2, 1)  # the second GPU
    return shape + device + struct.pack("<i", FLAGS[values.dtype.str[1:]]) + values.tobytes()


def file_of(arrays, names):
    names = [name.encode() for name in names]
    return b"".join(
        [
            HEAD,
            struct.pack("<Q", len(arrays)),
            *arrays,
            struct.pack("<Q", len(names)),
            *(struct.pack("<Q", len(name)) + name for name in names),
        ]
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.params"


def test_a_file_byte_by_byte(path):
    path.write_bytes(
        bytes.fromhex("1201000000000000 0000000000000000 0100000000000000")
        # version 2, dense, 2 dimensions, 1 × 2, CPU, float32, 1.0 and -2.0
        + bytes.fromhex("c9fa93f9 00000000 02000000 0100000000000000 0200000000000000")
        + bytes.fromhex("01000000 00000000 00000000 0000803f 000000c0")
        + bytes.fromhex("0100000000000000 0500000000000000")
        + b"arg:w"
    )
    params = read_params(path)
    assert list(params) == ["arg:w"]
    assert params["arg:w"].dtype == torch.float32
    assert params["arg:w"].tolist() == [[1.0, -2.0]]


@pytest.mark.parametrize("version", [2, 1, 0])
def test_versions_and_types(path, version):
    values = [np.arange(-3, 3).astype(kind).reshape(1, 2, 3) for kind in FLAGS]
    names = [f"aux:{kind}_é" for kind in FLAGS]
    path.write_bytes(file_of([array(v, version) for v in values], names))
    params = read_params(str(path))
    assert list(params) == names
    for tensor, expected in zip(params.values(), values, strict=True):
        assert tensor.numpy().dtype == expected.dtype
        np.testing.assert_array_equal(tensor.numpy(), expected)


def test_tensors_can_be_written_to(path):
    path.write_bytes(file_of([array(EYE)], ["w"]))
    tensor = read_params(path)["w"]
    tensor += 1
    assert tensor.sum().item() == 8


def test_arrays_without_values(path):
    no_shape = struct.pack("<IiI", 0xF993FAC9, 0, 0)
    empty = np.zeros((0, 4), "f4")
    path.write_bytes(file_of([no_shape, array(empty), array(EYE)], ["a", "b", "c"]))
    params = read_params(path)
    assert [tuple(v.shape) for v in params.values()] == [(0,), (0, 4), (2, 3)]


def test_every_cut_is_an_error(path):
    whole = file_of([array(EYE), array(EYE[0], 1), array(EYE, 0)], ["a", "bc", "d"])
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(WSSSError, match=r"some.params cannot be read: it (ends|is no)"):
            read_params(path)
    path.write_bytes(whole)
    assert len(read_params(path)) == 3


V1, V2, HUGE = 0xF993FAC8, 0xF993FAC9, 2**63 - 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK" + bytes(100), "it is no .params file of MXNet"),
        (HEAD + struct.pack("<Q", 2**64 - 1), "it ends 4 bytes too early"),
        (HEAD + struct.pack("<QII", 1, V1, 2**32 - 1), "an array in it has 4294967295 dim"),
        (HEAD + struct.pack("<QI", 1, 0xF993FACA), "dimensions, or is of another version"),
        (HEAD + struct.pack("<QII", 1, V1, 32), "it ends 256 bytes too early"),
        (HEAD + struct.pack("<QIiIqqiii", 1, V2, 0, 2, HUGE, HUGE, 1, 0, 0), r"ends \d{30,} bytes"),
        (HEAD + struct.pack("<QIiIqqiii", 1, V2, 0, 2, -1, 4, 1, 0, 0), r"shape \(-1, 4\)"),
        (HEAD + struct.pack("<QIiIqiii", 1, V2, 0, 1, 4, 1, 0, 99), "and type 99"),
        (HEAD + struct.pack("<QIiIqiii", 1, V2, 0, 1, 4, 1, 0, -1), "and type -1"),
        (HEAD + struct.pack("<QIiI", 1, V2, 1, 0), "a sparse array, only dense ones"),
        (file_of([array(EYE)], []), "1 arrays and 0 names"),
        (HEAD + struct.pack("<QQQ", 0, 1, HUGE), "bytes too early"),
        (HEAD + struct.pack("<QQQ", 0, 1, 1) + b"\xff", "a name in it is no text"),
    ],
)
def test_hostile_files(path, data, message):
    path.write_bytes(data)
    with pytest.raises(WSSSError, match=f"some.params cannot be read: .*{message}"):
        read_params(path)


def test_no_file(tmp_path):
    with pytest.raises(WSSSError, match=r"none.params cannot be read \(No such file"):
        read_params(tmp_path / "none.params")
    with pytest.raises(WSSSError, match=r"give the path of a \.params file"):
        read_params(tmp_path)
