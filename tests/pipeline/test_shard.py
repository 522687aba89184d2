import io
from urllib.parse import unquote

import numpy as np

from wsss_affinity.pipeline.shard import index_path, is_whole, key, member_name, pack, shards_in

#: what a data set may call its images
ODD_IDS = (
    "2007_000032",
    "a/b_19",
    "v1.5/img.small.2",
    ".hidden",
    "__meta__/x",
    "per%2Ecent",
    "线/ü",
)


def test_names_are_reversible_and_have_one_dot():
    names = [member_name(id, ".png") for id in ODD_IDS]
    assert [unquote(name.removesuffix(".png")) for name in names] == list(ODD_IDS)
    assert all(name.count(".") == 1 for name in names)
    assert names[:3] == ["2007_000032.png", "a/b_19.png", "v1%2E5/img%2Esmall%2E2.png"]


def test_the_index_says_where_each_record_is():
    records = {id: bytes([n]) * (700 * n) for n, id in enumerate((*ODD_IDS, "long" * 60))}
    tar, index = pack(records, ".npz")
    table = np.load(io.BytesIO(index))
    assert table.dtype.itemsize * len(table) == 32 * len(records)
    for (id, data), row in zip(records.items(), table, strict=True):
        assert row["key"] == key(id)
        assert tar[row["offset"] : row["offset"] + row["size"]] == data
    assert pack(records, ".npz") == (tar, index)


def test_a_shard_needs_its_tar_and_its_index(tmp_path):
    for name in ("0-000001.tar", "0-000000.tar", "0-000000.npy", "0-000002.npy"):
        (tmp_path / name).touch()
    (whole,) = shards_in(tmp_path)
    assert whole == tmp_path / "0-000000.tar"
    assert index_path(whole) == tmp_path / "0-000000.npy"
    assert [is_whole(tmp_path / f"0-00000{n}.tar") for n in range(3)] == [True, False, False]
    assert shards_in(tmp_path / "nothing") == []
