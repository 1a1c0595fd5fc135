"""The pack in a real browser: each check of tests/browser/checks.mjs, all in one session of headless Chromium.

Skipped where there is no Chromium, or no Node.js with npm that can fetch playwright-core.
"""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from browser import SCRIPTS, chromium, node, playwright
from host import ROOT, SetupError, environment

CHECKS = SCRIPTS / "checks.mjs"
NAMES = re.findall(r'^check\("(.+)", ', CHECKS.read_text(), re.MULTILINE)
SECONDS = 300


@pytest.fixture(scope="module")
def results(running_host, tmp_path_factory) -> dict[str, str | None]:
    """What each check found wrong, by name."""
    try:
        given = {"chromium": chromium(), "modules": str(playwright())}
        command = [node(), str(CHECKS)]
    except SetupError as missing:
        pytest.skip(str(missing))
    given |= {"url": running_host.url, "root": str(ROOT), "out": str(tmp_path_factory.mktemp("browser"))}
    process = subprocess.Popen(
        [*command, json.dumps(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.terminate()  # the script closes its browser
        process.wait(timeout=30)
    assert process.returncode == 0 and out, f"the session did not end well:\n{err[-3000:]}"
    return json.loads(out)


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", NAMES)
def test_in_the_browser(results, name):
    assert name in results
    assert results[name] is None, results[name]
