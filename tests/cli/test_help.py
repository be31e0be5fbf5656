import subprocess
import sys
from pathlib import Path


def test_the_page_on_the_command_line_is_what_the_verbs_say():
    program = [sys.executable, "-m", "typer", "rotalabs_steer.cli.app", "utils", "docs"]
    options = ["--name", "rotalabs-steer", "--title", "Command line"]
    written = subprocess.check_output([*program, *options], text=True)
    page = Path(__file__).parents[2] / "docs" / "command-line.md"
    assert page.read_text("utf-8").strip() == written.strip(), f"write it anew: {' '.join(program[1:])} --output {page}"
