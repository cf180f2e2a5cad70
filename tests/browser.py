"""A page as headless Chromium has it, for tests that are skipped where there is none."""

import os
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = os.environ.get("SCGMVAE_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


def needs_browser(test):
    """Mark a test, which is skipped where there is no Chromium."""
    skip = pytest.mark.skipif(BROWSER is None, reason="no Chromium in PATH or SCGMVAE_BROWSER")
    return pytest.mark.browser(skip(test))


def browse(address, profile, *settings):
    """The elements of a page and what was logged, as headless Chromium has them."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", "--window-size=1600,1000", *settings]
    command += ["--enable-logging=stderr", "--dump-dom", address]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return run.stdout, run.stderr
