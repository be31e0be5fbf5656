"""What does not take a browser to see of the page. In a process of its own: Gradio leaves event loops open."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json
from rotalabs_steer.playground.opening import Choice, Opener
from rotalabs_steer.playground.page import Page

found = {}
for fixed in (False, True):
    page = Page(Opener(lambda name: None), Choice(), None, fixed=fixed)
    handlers = [handler for handler in page.blocks.fns.values() if handler.fn and "Page." in handler.fn.__qualname__]
    found["fixed" if fixed else "free"] = {handler.fn.__name__: handler.api_visibility for handler in handlers}
print(json.dumps(found | {"analytics": page.blocks.analytics_enabled}))
"""


@pytest.fixture(scope="module")
def found():
    return json.loads(subprocess.check_output([sys.executable, "-c", PROGRAM], text=True))


def test_visitors_of_a_fixed_page_cannot_load_anything(found):
    assert set(found["free"]) - set(found["fixed"]) == {"_open", "_show_fields"}


def test_the_page_is_no_interface_for_programs_and_reports_to_nobody(found):
    assert set(found["free"].values()) == {"private"}
    assert found["analytics"] is False
