"""Headless Chromium and playwright-core, which drives it, for tests and screenshots."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from host import HOST, ROOT, SetupError, environment, once

SCRIPTS = ROOT / "tests" / "browser"


def chromium() -> str:
    """Where Chromium is; the variable CHROMIUM says so where it has another name.

    Raises:
        SetupError: if there is none.
    """
    for name in (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if name and (path := shutil.which(name)):
            return path
    raise SetupError("no Chromium here (Debian: apt install chromium); CHROMIUM can say where it is")


def node() -> str:
    """Where Node.js is.

    Raises:
        SetupError: if it is not here.
    """
    path = shutil.which("node")
    if path is None:
        raise SetupError("no Node.js here (Debian: apt install nodejs npm)")
    return path


def playwright() -> Path:
    """The folder with playwright-core, which is fetched once.

    Raises:
        SetupError: if it cannot be fetched.
    """
    folder, wanted = HOST / "browser", (SCRIPTS / "package.json").read_text()
    with once(folder, wanted) as todo:
        if todo:
            npm = shutil.which("npm")
            if npm is None:
                raise SetupError("no npm here, which fetches playwright-core (Debian: apt install npm)")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / "package.json").write_text(wanted)
            command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
            env = environment() | {"npm_config_cache": str(HOST / "cache" / "npm")}
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
            if done.returncode:
                raise SetupError(f"npm could not fetch playwright-core: {done.stderr.strip()[-300:]}")
    return folder
