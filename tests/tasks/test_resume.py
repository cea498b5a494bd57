"""A killed and resumed run ends with the weights of an uninterrupted one."""

import pytest

from tests.tasks.runs import python


@pytest.mark.slow
def test_killed_run_equals_uninterrupted() -> None:
    output = python("scripts/kill_resume.py", "--kills", 2, "--epochs", 2).stdout
    assert "bitwise equal: True; left-over files: 0" in output
