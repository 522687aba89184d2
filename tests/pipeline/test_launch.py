import os
import signal
import sys
import threading
import time

import pytest
import torch

from wsss_affinity import world
from wsss_affinity.config import load_config
from wsss_affinity.errors import WSSSError
from wsss_affinity.interrupt import RESUMABLE
from wsss_affinity.pipeline import launch

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
DEAD_PEER = """
import sys, torch
from wsss_affinity import world
from wsss_affinity.config import load_config
from wsss_affinity.errors import WSSSError
from wsss_affinity.pipeline.launch import joined

try:
    with joined(load_config(["trainer.accelerator=cpu", "trainer.devices=2"])):
        world.barrier()
        if world.rank() == 1:
            print("the disk of rank 1 is full", file=sys.stderr)
            sys.exit(3)
        world.broadcast(1)
        world.barrier()
except WSSSError as error:
    open(sys.argv[1], "w").write(str(error))
    sys.exit(2)
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in os.environ:
        if name in NAMES or name.startswith("SLURM_"):
            monkeypatch.delenv(name)


def config(**trainer):
    return load_config(
        ["trainer.accelerator=cpu", *(f"trainer.{k}={v}" for k, v in trainer.items())]
    )


def python(code, *arguments):
    return [
        sys.executable,
        "-c",
        f"import os, sys, time; rank = os.environ['RANK']; {code}",
        *arguments,
    ]


@pytest.fixture
def commands(monkeypatch):
    """Notes what would be run."""
    noted = []
    monkeypatch.setattr(launch, "_run", lambda count, command: noted.append((count, command)) or 7)
    return noted


def test_one_device_needs_no_other_process(commands):
    assert launch.start(config(), ["seed=1"], multirun=False) is None
    assert launch.start(config(), ["seed=1"], multirun=True) is None
    assert commands == []


@pytest.mark.parametrize(("devices", "count"), [("3", 3), ("'2'", 2)])
def test_command_line_is_run_once_a_device(commands, devices, count, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert launch.start(config(devices=devices), ["seed=1", "name=a"], multirun=False) == 7
    assert commands == [(count, [sys.executable, "-m", "wsss_affinity", "seed=1", "name=a"])]


def test_launched_process_starts_no_other(commands, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.start(config(devices=2), [], multirun=False) is None
    assert commands == []


@pytest.mark.parametrize(
    ("trainer", "multirun", "said"),
    [
        ({"devices": 2}, True, r"multirun use one device each, but trainer\.devices=2"),
        ({"num_nodes": 2}, True, r"multirun use one device each, .* trainer\.num_nodes=2"),
        ({"num_nodes": 2}, False, r"trainer\.num_nodes=2 needs a launcher .* srun"),
        ({"devices": 0}, False, r"trainer\.devices=0: "),
        ({"devices": "many"}, False, r"trainer\.devices=many: "),
    ],
)
def test_what_cannot_be_started(commands, trainer, multirun, said):
    with pytest.raises(WSSSError, match=said):
        launch.start(config(**trainer), [], multirun=multirun)
    assert commands == []


def test_more_processes_than_cores_are_refused(monkeypatch):
    for cores, most in ((None, 2), (1, 2), (4, 4)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert len(launch._devices(config(devices=most))) == most
        with pytest.raises(WSSSError, match=rf"trainer\.devices=5 .* good for {most}; lower it"):
            launch._devices(config(devices=5))


def test_devices(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert launch._devices(config()) == [torch.device("cpu")]
    assert launch._devices(config(devices="auto")) == [torch.device("cpu")]
    assert launch._devices(config(devices=3)) == [torch.device("cpu")] * 3


def test_slurm_step_is_translated(monkeypatch):
    step = {
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
        "SLURM_JOB_ID": "1234567",
    }
    for name in (*NAMES, "GROUP_RANK"):
        monkeypatch.setenv(name, "")  # so that what is set is undone
        monkeypatch.delenv(name)
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    assert launch._launched_processes() == 4
    found = {name: os.environ[name] for name in (*NAMES, "GROUP_RANK") if name in os.environ}
    assert found == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "19567",
    }


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_NTASKS": "8"}, {"RANK": "0"}]
)
def test_nobody_else(monkeypatch, environment):
    for name, value in {**environment, "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launch._launched_processes() == 1
    with launch.joined(config()):
        assert not world.joined()


def test_processes_must_be_as_many_as_devices(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with (
        pytest.raises(WSSSError, match=r"4 processes were started, but .* for 2 on each of 1"),
        launch.joined(config(devices=2)),
    ):
        pass


def test_each_process_has_its_rank(tmp_path):
    code = "open(sys.argv[1] + rank, 'w').write(' '.join(os.environ[n] for n in sys.argv[2:]))"
    assert launch._run(3, python(code, f"{tmp_path}/", *NAMES)) == 0
    found = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    ports = {words.pop() for words in found}
    assert len(ports) == 1
    assert found == [[str(r), str(r), "3", "3", "127.0.0.1"] for r in range(3)]


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("print('noise', file=sys.stderr)", 0, ""),
        # rank 0 has the terminal itself
        ("sys.exit(2 if rank == '0' else 0)", 2, ""),
        (
            "rank == '1' and sys.exit('rank 1 is ill'); rank == '0' and time.sleep(60)",
            1,
            "rank 1 is ill\n",
        ),
        ("rank == '1' and os.kill(os.getpid(), 9); rank == '0' and time.sleep(60)", 137, ""),
        (f"sys.exit({RESUMABLE})", RESUMABLE, ""),
        (f"sys.exit({RESUMABLE} if rank == '1' else 3)", 3, ""),
    ],
)
def test_exit_status(monkeypatch, capsys, code, status, said):
    monkeypatch.setattr(launch, "_GRACE", 0.1)
    start = time.monotonic()
    assert launch._run(2, python(code)) == status
    assert time.monotonic() - start < 30
    assert capsys.readouterr().err == said


def test_signals_are_passed_on(tmp_path):
    """Both processes get a SIGTERM that is sent to the launcher alone."""
    code = (
        "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
        "open(sys.argv[1] + rank, 'w').close(); time.sleep(60)"
    )

    def send():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=send)
    thread.start()
    assert launch._run(2, python(code, f"{tmp_path}/")) == RESUMABLE
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_process_left_by_the_others_says_so(tmp_path, capsys):
    assert launch._run(2, [sys.executable, "-c", DEAD_PEER, f"{tmp_path}/said"]) == 3
    assert (tmp_path / "said").read_text() == (
        "another process of this run has ended early; see what it said, then run again to go on"
    )
    assert capsys.readouterr().err == "the disk of rank 1 is full\n"
