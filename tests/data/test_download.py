import pytest

from wsss_affinity.data.download import fetch_folder
from wsss_affinity.errors import WSSSError


def unpack(folder):
    """As the real ones: an archive, then its content, file by file."""
    (folder / "set.zip").write_text("archive")
    (folder / "set").mkdir()
    (folder / "set" / "a").write_text("a")
    (folder / "set" / "b").write_text("b")
    return folder / "set"


def test_folder_comes_whole(tmp_path):
    target = tmp_path / "data" / "set"
    fetch_folder(target, unpack, "set.zip")
    assert sorted(p.name for p in target.iterdir()) == ["a", "b"]
    assert [p.name for p in target.parent.iterdir()] == ["set"]  # no archive is left


def test_existing_folder_is_left_alone(tmp_path):
    def forbidden(folder):
        raise AssertionError

    fetch_folder(tmp_path, forbidden, "set.zip")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no route")])
def test_interrupted_fetch_goes_on(tmp_path, error):
    target = tmp_path / "set"

    def interrupted(folder):
        (folder / "set.zip").write_text("archive")
        (folder / "set").mkdir()
        (folder / "set" / "a").write_text("half")
        raise error

    with pytest.raises((KeyboardInterrupt, WSSSError)):
        fetch_folder(target, interrupted, "set.zip")
    assert not target.exists()

    def again(folder):
        # the archive is used again, what was unpacked of it is gone
        assert [p.name for p in folder.iterdir()] == ["set.zip"]
        return unpack(folder)

    fetch_folder(target, again, "set.zip")
    assert (target / "a").read_text() == "a"
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_failure_says_what_to_do(tmp_path):
    def fail(folder):
        raise RuntimeError("File not found or corrupted.")

    with pytest.raises(WSSSError) as caught:
        fetch_folder(tmp_path / "set", fail, "set.zip")
    assert str(caught.value) == (
        "cannot download set.zip (File not found or corrupted.); run the same command again, or "
        f"fetch it yourself and unpack it as {tmp_path / 'set'}"
    )
