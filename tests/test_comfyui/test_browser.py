"""The pack in a real browser: each check of tests/browser/checks.mjs, in two sessions of headless Chromium for each
front end, one for either design of nodes. Front ends are the one that comes with the host, and the newest that was seen
to work, which is slow (or that of FRONTEND alone).

Skipped where there is no Chromium, or no Node.js with npm that can fetch playwright-core.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess

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


@pytest.fixture(scope="module", params=FRONT_ENDS, ids=lambda version: version or "its own front end")
def results(request, tmp_path_factory) -> dict[str, str | None]:
    """What each check found wrong, by name. The sessions run at the same time, since most of it is waiting, and each
    has a server with folders of its own, so that none sees the plans of another."""
    try:
        given = {"chromium": chromium(), "modules": str(playwright()), "root": str(ROOT)}
        command = [node(), str(CHECKS)]
    except SetupError as missing:
        pytest.skip(str(missing))
    sessions, found = [], {}
    with contextlib.ExitStack() as stack:
        for only in DESIGNS:
            base = tmp_path_factory.mktemp("browser")
            (base / "custom_nodes").mkdir()
            os.symlink(ROOT, base / "custom_nodes" / "fewstep", target_is_directory=True)
            arguments = ("--base-directory", str(base))
            host = stack.enter_context(server(base / "server.log", *arguments, front_end=request.param))
            out, err = base / "results.json", base / "checks.log"
            files = {"stdout": stack.enter_context(out.open("w")), "stderr": stack.enter_context(err.open("w"))}
            own = json.dumps(given | {"url": host.url, "out": str(base), "only": only})
            process = subprocess.Popen([*command, own], **files, env=environment())
            stack.callback(process.wait, timeout=30)
            stack.callback(process.terminate)  # the script closes its browser
            sessions.append((process, out, err))
        for process, out, err in sessions:
            code, said = process.wait(timeout=SECONDS), out.read_text()
            assert code == 0 and said, f"the session did not end well:\n{err.read_text()[-3000:]}"
            found |= {name: fault or found.get(name) for name, fault in json.loads(said).items()}
    return found


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", NAMES)
def test_in_the_browser(results, name):
    assert name in results
    assert results[name] is None, results[name]
