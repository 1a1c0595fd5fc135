"""What extensions ask to be told of."""

unloaded, before_ui, infotext_pasted = [], [], []
on_script_unloaded, on_before_ui, on_infotext_pasted = unloaded.append, before_ui.append, infotext_pasted.append
