"""Stands in for gradio: widgets with what they were made with."""

from types import SimpleNamespace


class _Widget(SimpleNamespace):
    def __init__(self, *args, value=None, **more):
        super().__init__(args=args, value=value, **more)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


Accordion = Row = Textbox = Dropdown = Number = Markdown = _Widget
