import os
import socket

from wsss_affinity.pipeline import owner as module
from wsss_affinity.pipeline.owner import OWN, Owner


def test_a_number_given_to_a_later_process_is_no_sign_of_life():
    parent = os.getppid()
    owner = vars(Owner.here()) | {"pid": parent}
    owner["start"] = module._process_start(parent)
    assert Owner(**owner).alive() is True
    assert Owner(**owner | {"start": owner["start"] - 1}).alive() is False
    assert Owner(**owner | {"machine": "elsewhere"}).alive() is None
    assert Owner(**owner | {"start": None}).alive() is None


def test_this_process_lives_but_holds_no_lock_that_it_let_go(monkeypatch):
    owner = Owner.here()
    assert owner.runs() is True
    assert owner.alive() is False
    monkeypatch.setattr(module, "OWN", {*OWN, owner.token})
    assert owner.alive() is True
    assert str(owner).startswith(f"process {os.getpid()} on {owner.host} (since 2")


def test_nothing_outlives_its_system(monkeypatch):
    owner = vars(Owner.here()) | {"machine": "computer 7"}
    monkeypatch.setattr(module, "_machine", lambda: "computer 7")
    assert Owner(**owner).runs() is True
    assert Owner(**owner | {"boot": "an earlier one"}).runs() is False
    assert Owner(**owner | {"namespace": "of a container"}).runs() is None
    monkeypatch.setattr(module, "_machine", lambda: "computer 8")
    assert Owner(**owner | {"boot": "an earlier one"}).runs() is None


def test_computers_without_a_number_are_told_apart_by_their_boot(monkeypatch):
    monkeypatch.setattr(
        module.Path, "read_text", lambda self: {"machine-id": ""}.get(self.name, "b")
    )
    assert module._machine.__wrapped__() == f"{socket.gethostname()} {module._boot()}"
