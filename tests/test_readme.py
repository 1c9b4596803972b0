import doctest
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_examples_in_python_do_what_they_say():
    results = doctest.testfile(str(README), module_relative=False)
    assert results.attempted > 10 and results.failed == 0
