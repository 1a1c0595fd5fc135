"""Scripts of extensions, and how they are loaded: each with its folder first on sys.path."""

import importlib.util
import inspect
import sys

from . import script_callbacks, shared

AlwaysVisible = object()
loaded = []


class Script:
    infotext_fields = None
    paste_field_names = None

    def elem_id(self, item_id):
        return f"script_{self.title()}_{item_id}"


def load_script(root):
    """The script of one extension, as at start; its instances are the `loaded`."""
    loaded.clear()
    if shared.variant == "forge" and str(root) not in sys.path:
        sys.path = [str(root), *sys.path]  # and there it stays
    before = sys.path
    try:
        sys.path = [str(root), *sys.path]
        path = root / "scripts" / "fewstep.py"
        spec = importlib.util.spec_from_file_location(path.name, path)  # in no sys.modules
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        classes = [entry for entry in vars(module).values() if inspect.isclass(entry) and issubclass(entry, Script)]
        loaded.extend(entry() for entry in classes)
    finally:
        sys.path = before
    for callback in script_callbacks.before_ui:
        callback()


def reload(root):
    """The button "Reload UI"."""
    for callback in script_callbacks.unloaded:
        callback()
    for callbacks in (script_callbacks.unloaded, script_callbacks.before_ui, script_callbacks.infotext_pasted):
        callbacks.clear()
    load_script(root)
