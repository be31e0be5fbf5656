"""The notebook runs from top to bottom, and what it shows is what it showed when it was committed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from pages import alike

TOUR = Path(__file__).parent.parent / "examples" / "tour.ipynb"


def shown(notebook):
    """What each cell shows as text, and how many pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert {output.output_type for output in outputs} == {"execute_result"}, "a cell prints, warns or fails"
    texts = [output.data.get("text/markdown", output.data["text/plain"]) for output in outputs]
    return "\n".join(texts), sum("image/png" in output.data for output in outputs)


@pytest.mark.real_model
def test_the_tour_shows_what_it_shows(tmp_path):
    kept = nbformat.read(TOUR, as_version=4)
    run = nbformat.from_dict(kept)
    NotebookClient(run, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (texts, pictures), (kept_texts, kept_pictures) = shown(run), shown(kept)
    assert alike(texts, kept_texts), texts
    assert pictures == kept_pictures == 2


def test_the_tour_is_small_and_says_nothing_of_the_machine_it_was_run_on():
    text = TOUR.read_text("utf-8")
    assert len(text) < 300_000
    for place in ("/home/", "/root/", "/tmp/", "/usr/", "site-packages", "Users"):
        assert place not in text
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
