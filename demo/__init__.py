"""The demo model, a small text-to-emoji network, with its nodes, which come with those of the pack."""
