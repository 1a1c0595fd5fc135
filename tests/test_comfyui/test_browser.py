"""The pack in a real browser: each check of tests/browser/checks.mjs, all in one session of headless Chromium for each
front end: the one that comes with the host, and the newest that was seen to work (or that of FRONTEND alone).

Skipped where there is no Chromium, or no Node.js with npm that can fetch playwright-core.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest
from browser import SCRIPTS, chromium, node, playwright
from host import FRONT_END, NEWEST_FRONT_END, ROOT, Server, SetupError, environment, server

CHECKS = SCRIPTS / "checks.mjs"
FOUND = re.findall(r'^(check|both)\("(.+)", ', CHECKS.read_text(), re.MULTILINE)
NAMES = [name + more for kind, name in FOUND for more in ("", ", with Vue nodes")[: 1 + (kind == "both")]]
FRONT_ENDS = [FRONT_END] if FRONT_END else [None, NEWEST_FRONT_END]
"""The host's own is None, and has the host that other tests use, too."""
SECONDS = 600


@pytest.fixture(scope="module", params=FRONT_ENDS, ids=lambda version: version or "its own front end")
def host(request, tmp_path_factory) -> Iterator[Server]:
    if request.param == FRONT_END:
        yield request.getfixturevalue("running_host")
        return
    folder = tmp_path_factory.mktemp("server")
    with server(folder / "server.log", "--output-directory", str(folder), front_end=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def results(host, tmp_path_factory) -> dict[str, str | None]:
    """What each check found wrong, by name."""
    try:
        given = {"chromium": chromium(), "modules": str(playwright())}
        command = [node(), str(CHECKS)]
    except SetupError as missing:
        pytest.skip(str(missing))
    given |= {"url": host.url, "root": str(ROOT), "out": str(tmp_path_factory.mktemp("browser"))}
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
