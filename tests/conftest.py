"""What all tests share: fixed random data, so that a failure seen once is seen again."""

import os
import signal
from typing import Any

import hypothesis
import pytest

# `fixed` draws the same examples on every run and on every machine. `HYPOTHESIS_PROFILE=explore` searches further
# with new ones, and is what to use while looking for a bug. No test fails for being slow: machines differ.
no_clocks: dict[str, Any] = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("fixed", derandomize=True, database=None, **no_clocks)
hypothesis.settings.register_profile("explore", max_examples=1000, **no_clocks)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


# A shell that starts the suite in the background has it ignore SIGINT, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which check caught each known bug that was put back."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in report.user_properties:
                if name == "mutant":
                    terminalreporter.write_line(str(value))
