"""The entry point of Few-Step in AUTOMATIC1111, Forge and reForge, which run it at start and at "Reload UI".

No `__init__.py` may lie beside it: it would take the place of `scripts` for every other extension.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

NAME = "fewstep"  # in sys.modules, which all extensions share
for module in [name for name in sys.modules if name.partition(".")[0] == NAME]:
    del sys.modules[module]  # of before "Reload UI": there may have been an update
spec = importlib.machinery.ModuleSpec(NAME, None, is_package=True)  # the pack's __init__.py is ComfyUI's entry point
spec.submodule_search_locations = [str(Path(__file__).resolve().parents[1])]
sys.modules[NAME] = importlib.util.module_from_spec(spec)

webui = importlib.import_module(f"{NAME}.webui")
webui.register()
FewStepScript = webui.FewStepScript  # the host looks for scripts in this file
