import pytest

from rotalabs_steer.errors import OptionError
from rotalabs_steer.integrations.template_options import parse_template_options


def test_values_are_json_or_texts():
    given = ["enable_thinking=false", "effort=high", "budget=3", 'documents=[{"a": "b=c"}]', "empty="]
    assert parse_template_options(given) == {
        "enable_thinking": False,
        "effort": "high",
        "budget": 3,
        "documents": [{"a": "b=c"}],
        "empty": "",
    }
    assert parse_template_options("enable_thinking=false; effort=high") == {"enable_thinking": False, "effort": "high"}
    assert parse_template_options({"a": 1}) == {"a": 1}
    assert parse_template_options(None) == parse_template_options([]) == {}


@pytest.mark.parametrize(("given", "message"), [
    (["enable_thinking"], "'enable_thinking' is not of the form NAME=VALUE, as in enable_thinking=false"),
    ("enable_thinking=false;", "'' is not of the form"),
    (["=false"], "is not of the form NAME=VALUE"),
    (["a=1", "a=2"], "'a' is given twice"),
])  # fmt: skip
def test_what_is_not_an_option_is_refused(given, message):
    with pytest.raises(OptionError, match=message):
        parse_template_options(given)
