"""Settings of every process of the tests; one thread, since sums in another order differ in the
last bit."""

import os
import signal
from collections import Counter

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# a shell ignores Ctrl-C in what it starts behind an &, and every process of the tests would too
signal.signal(signal.SIGINT, signal.default_int_handler)
# on a busy machine an example may take any time
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def skipped(config):
    """Why tests were skipped, and how many, in the process that prints; elsewhere none."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", ()) if reporter else ()
    return Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """In CI a test that did not run is a failure: all that is needed can be installed there."""
    if (
        os.environ.get("CI")
        and session.exitstatus == pytest.ExitCode.OK
        and skipped(session.config)
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config):
    """One line at the very end for each reason that kept tests from running."""
    for reason, count in skipped(config).items():
        failure = " (with CI set this is a failure)" if os.environ.get("CI") else ""
        config.pluginmanager.get_plugin("terminalreporter").write_line(
            f"{count} tests did not run{failure}: {reason}", yellow=True
        )
