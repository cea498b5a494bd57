"""A killed and resumed run ends with the weights of an undisturbed one."""

import pytest

from tests.tasks.runs import python


@pytest.mark.slow
def test_a_killed_run_ends_as_an_undisturbed_one() -> None:
    said = python("scripts/kill_resume.py", "--kills", 2, "--epochs", 2).stdout
    assert "bitwise equal: True; left-over files: 0" in said
