"""The pack in a real browser: each check of tests/browser/checks.mjs, all in one session of headless Chromium.

Skipped where there is no Chromium, or no Node.js with npm that can fetch playwright-core.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from host import HOST, ROOT, environment

BROWSER = Path(__file__).parent / "browser"
NAMES = re.findall(r'^check\("(.+)", ', (BROWSER / "checks.mjs").read_text(), re.MULTILINE)
SECONDS = 300


def chromium() -> str:
    """Where Chromium is; CHROMIUM says so where it has another name."""
    for name in (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if name and (path := shutil.which(name)):
            return path
    pytest.skip("no Chromium here (Debian: apt install chromium); CHROMIUM can say where it is")


def playwright() -> Path:
    """The folder with playwright-core, which is fetched once."""
    folder = HOST / "browser"
    wanted = (BROWSER / "package.json").read_text()
    stamp = folder / "package.json"
    if (folder / "node_modules" / "playwright-core").exists() and stamp.read_text() == wanted:
        return folder
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm here, which fetches playwright-core (Debian: apt install npm)")
    folder.mkdir(exist_ok=True)
    stamp.write_text(wanted)
    command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    cache = {"npm_config_cache": str(HOST / "cache" / "npm")}
    done = subprocess.run(command, cwd=folder, env=environment() | cache, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"npm could not fetch playwright-core: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="module")
def results(request, running_host, tmp_path_factory) -> dict[str, str | None]:
    """What each check found wrong, by name."""
    node = shutil.which("node") or pytest.skip("no Node.js here (Debian: apt install nodejs npm)")
    folder = tmp_path_factory.mktemp("browser")
    given = {"url": running_host.url, "chromium": chromium(), "modules": str(playwright()), "root": str(ROOT)}
    given |= {"out": str(folder), "pictures": os.environ.get("PICTURES")}
    process = subprocess.Popen(
        [node, str(BROWSER / "checks.mjs"), json.dumps(given)],
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
