"""Every notebook runs from top to bottom, and holds no outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_and_holds_no_outputs(path, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    monkeypatch.setenv("NOTEBOOK_EPOCHS", "1")
    monkeypatch.delenv("WSSS_AFFINITY_OUTPUT", raising=False)
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute(cwd=str(tmp_path))
    assert any(cell.outputs for cell in cells)


def test_there_are_notebooks():
    names = {"quickstart", "random_walk", "custom_backbone", "sweeps_and_stages", "own_photographs"}
    assert {path.stem for path in NOTEBOOKS} == names
