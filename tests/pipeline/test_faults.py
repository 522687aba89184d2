"""Whatever happens to a run, its artefacts end up as those of an undisturbed one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from wsss_affinity.compare import main as compare

HERE = Path(__file__).parent
KILLS = 30

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


#: where the disk is full when the run goes on
FULL = (("make_cam", 2), ("random_walk", 3), ("train_segmentation", 1))


class Runs:
    """Starts the command line with output in a folder, and keeps account of what it makes."""

    def __init__(self, tiny, folder):
        self.folder = folder
        self.log = folder.with_name(f"{folder.name}.log")
        self._overrides = [*tiny, f"output_dir={folder}"]
        folder.mkdir(exist_ok=True)

    def start(self, stage="none", count=0, driver="die_after.py"):
        kill = [stage, str(count)] if driver == "die_after.py" else []
        return subprocess.Popen(
            [sys.executable, str(HERE / driver), str(self.log), *kill, *self._overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder.parent,
            start_new_session=True,
        )

    def finish(self, **kwargs):
        process = self.start(**kwargs)
        output, _ = process.communicate()
        return process.returncode, output

    def made(self):
        """How often each file got its name."""
        return Counter(self.log.read_text().split()) if self.log.exists() else Counter()


@pytest.fixture(scope="module")
def calm(tiny, artefacts, tmp_path_factory):
    """What an undisturbed run leaves, how often it makes each file, and its time."""
    runs = Runs(tiny, tmp_path_factory.mktemp("calm") / "out")
    start = time.monotonic()
    status, output = runs.finish()
    seconds = time.monotonic() - start
    assert status == 0, output
    return artefacts(runs.folder), runs.made(), seconds


def test_killed_at_random_moments(tiny, artefacts, calm, tmp_path):
    expected, once, seconds = calm
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    kills, rounds = 0, 0
    while kills < KILLS:
        runs = Runs(tiny, tmp_path / f"round_{rounds}")
        killed, status = 0, None
        while status != 0:
            if kills == KILLS:
                process, moment = runs.start(), None
            elif draw.random() < 0.5:
                process, moment = runs.start("any", draw.randint(1, 12)), None
            else:
                process, moment = runs.start(), draw.uniform(0, 0.8 * seconds)
            try:
                output, _ = process.communicate(timeout=moment)
            except subprocess.TimeoutExpired:
                # workers die with it, or go on until they see that it is gone
                end = draw.choice([os.killpg, os.kill])
                end(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
            status = process.returncode
            assert status in (0, -signal.SIGKILL), output
            killed += status != 0
            kills += status != 0
        assert artefacts(runs.folder) == expected
        again = runs.made() - once
        print(f"round {rounds}: {killed} kills, made again: {dict(again)}")
        # at each kill there is one file in hand in the main process and one in a worker
        assert again.total() <= 2 * killed
        shutil.rmtree(runs.folder)
        rounds += 1


def test_two_at_once_make_everything_once(tiny, artefacts, calm, tmp_path):
    expected, once, _ = calm
    runs = Runs(tiny, tmp_path / "out")
    both = [runs.start(), runs.start()]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert artefacts(runs.folder) == expected
    assert runs.made() == once
    assert any("another process is making" in output for output in outputs)


def test_clock_that_jumps(tiny, artefacts, calm, tmp_path):
    """Two at once that cannot look each other up, while their locks' times jump as well."""
    expected, once, _ = calm
    runs = Runs(tiny, tmp_path / "out")
    both = [runs.start(driver="jumping_clock.py") for _ in range(2)]
    jumps = 0
    while any(process.poll() is None for process in both):
        for lock in runs.folder.glob("artifacts/*/*.lock*"):
            try:
                os.utime(lock, (0, random.choice([0, 2**33])))
                jumps += 1
            except FileNotFoundError:
                pass  # let go meanwhile
        time.sleep(1)
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert jumps > 3
    assert artefacts(runs.folder) == expected
    assert runs.made() == once
    assert any("another process is making" in output for output in outputs)
    for path in sorted(runs.folder.rglob("artifacts/**/*")):
        os.utime(path, (0, random.choice([1, 2**33])))
    status, output = runs.finish()
    assert status == 0, output
    renewed = runs.made() - once
    assert {name.rsplit("/", 1)[1] for name in renewed} <= {"checksums.tsv"}, renewed
    assert artefacts(runs.folder) == expected


def fill(disk, room):
    """Leave some KiB to others."""
    (disk / "other").unlink(missing_ok=True)
    with (disk / "other").open("wb", buffering=0) as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        file.write(bytes(free - room * 1024))


def test_disk_that_fills_up(tiny, artefacts, calm, tmp_path):
    expected, once, _ = calm
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system may not be mounted here")
    try:
        runs = Runs(tiny, disk / "out")
        runs.log = tmp_path / "made.log"
        for stage, count in FULL:
            (disk / "other").unlink(missing_ok=True)
            status, output = runs.finish(stage=stage, count=count)
            assert status == -signal.SIGKILL, output
            for room in (0, 16):
                fill(disk, room)
                status, output = runs.finish()
                assert status == 2, output
                assert "Traceback" not in output
                last = output.strip().splitlines()[-1]
                assert last.startswith(f"error: cannot write {disk}")
                assert "the disk is full; free some space and run the same command again" in last
                assert (f"/artifacts/{stage}/" in last) == (room > 0), last
        (disk / "other").unlink()
        status, output = runs.finish()
        assert status == 0, output
        assert artefacts(runs.folder) == expected
        assert not runs.made() - once
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_artefact_damaged_by_hand(tiny, artefacts, calm, tmp_path, capsys):
    expected, once, _ = calm
    runs = Runs(tiny, tmp_path / "out")
    status, output = runs.finish()
    assert status == 0, output
    maps = sorted(runs.folder.glob("artifacts/make_cam/*/*.npz"))
    (weights,) = runs.folder.glob("artifacts/train_cam/*/weights.pt")
    for path in (maps[2], maps[4], weights):
        stat = path.stat()
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        if path == maps[4]:  # as a decaying disk does it
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(SystemExit, match=r"^1$"):
        compare([str(runs.folder), "--verify"])
    assert "2 of 8 are damaged" in capsys.readouterr().out
    status, output = runs.finish()
    assert status == 0, output
    for names in (f"{maps[2].name}, {maps[4].name}", weights.name):
        assert f" is damaged ({names} missing or changed since it was made); making" in output
    assert artefacts(runs.folder) == expected
    again = runs.made() - once
    bookkeeping = ("checksums.tsv", "manifest.json")
    remade = Counter(name for name in again.elements() if not name.endswith(bookkeeping))
    assert remade == Counter(
        {
            f"make_cam/{maps[2].name}": 1,
            f"make_cam/{maps[4].name}": 1,
            "make_cam": 2,  # taken back, and completed
            "train_cam": 2,
            "train_cam/resume.ckpt": 2,
            "train_cam/weights.pt": 1,
        }
    )
    (manifest,) = runs.folder.glob("artifacts/make_cam/*/manifest.json")
    assert json.loads(manifest.read_text())["resumed"]
