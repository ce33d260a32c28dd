"""What all tests share: fixed random data, so that a failure seen once is seen again."""

import os

import hypothesis
import pytest

# `fixed` draws the same examples on every run and on every machine. `HYPOTHESIS_PROFILE=explore` searches further
# with new ones, and is what to use while looking for a bug.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which check caught each known bug that was put back."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in report.user_properties:
                if name == "mutant":
                    terminalreporter.write_line(str(value))
