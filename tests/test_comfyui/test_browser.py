"""The pack in a real browser: each check of tests/browser/checks.mjs, in two sessions of headless Chromium for each
front end, one for either design of nodes. Front ends are the one that comes with the host, and the newest that was seen
to work, which is slow (or that of FRONTEND alone).

Skipped where there is no Chromium, or no Node.js with npm that can fetch playwright-core.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from browser import SCRIPTS, chromium, node, playwright
from host import FRONT_END, NEWEST_FRONT_END, ROOT, SetupError, environment, server

CHECKS = SCRIPTS / "checks.mjs"
FOUND = re.findall(r'^(check|both)\("(.+)", ', CHECKS.read_text(), re.MULTILINE)
NAMES = [name + more for kind, name in FOUND for more in ("", ", with Vue nodes")[: 1 + (kind == "both")]]
FRONT_ENDS = [FRONT_END] if FRONT_END else [None, pytest.param(NEWEST_FRONT_END, marks=pytest.mark.slow)]
"""The host's own is None."""
SECONDS = 900

EVERYWHERE = {"loads without complaints", "nothing of ours complained in the meantime"}
VUE = {name for name in NAMES if "Vue nodes" in name}
DESIGNS = [[name for name in NAMES if name in EVERYWHERE or (name in VUE) == vue] for vue in (False, True)]


class Session(NamedTuple):
    """A run of checks.mjs."""

    process: subprocess.Popen
    out: Path
    err: Path


@pytest.fixture(scope="module")
def sessions(tmp_path_factory, request) -> Iterator[dict[str | None, list[Session]]]:
    """Those of each front end that is asked for, all at the same time, since most of it is waiting. Each has a server
    with folders of its own, so that none sees the plans of another."""
    asked_for = {item.callspec.params["results"] for item in request.session.items if item.path == request.path}
    try:
        given = {"chromium": chromium(), "modules": str(playwright()), "root": str(ROOT)}
        command = [node(), str(CHECKS)]
    except SetupError as missing:
        pytest.skip(str(missing))
    with contextlib.ExitStack() as stack:
        started = {version: [] for version in asked_for}
        for version, only in itertools.product(asked_for, DESIGNS):
            base = tmp_path_factory.mktemp("browser")
            (base / "custom_nodes").mkdir()
            os.symlink(ROOT, base / "custom_nodes" / "fewstep", target_is_directory=True)
            host = stack.enter_context(server(base / "server.log", "--base-directory", str(base), front_end=version))
            out, err = (stack.enter_context((base / name).open("w")) for name in ("results.json", "checks.log"))
            own = json.dumps(given | {"url": host.url, "out": str(base), "only": only})
            process = subprocess.Popen([*command, own], stdout=out, stderr=err, env=environment())
            stack.callback(process.wait, timeout=30)
            stack.callback(process.terminate)  # the script closes its browser
            started[version].append(Session(process, Path(out.name), Path(err.name)))
        yield started


@pytest.fixture(scope="module", params=FRONT_ENDS, ids=lambda version: version or "its own front end")
def results(request, sessions) -> dict[str, str | None]:
    """What each check found wrong, by name."""
    found: dict[str, str | None] = {}
    for session in sessions[request.param]:
        code = session.process.wait(timeout=SECONDS)
        out = session.out.read_text()
        assert code == 0 and out, f"the session did not end well:\n{session.err.read_text()[-3000:]}"
        found |= {name: fault or found.get(name) for name, fault in json.loads(out).items()}
    return found


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", NAMES)
def test_in_the_browser(results, name):
    assert name in results
    assert results[name] is None, results[name]
