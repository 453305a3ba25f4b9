"""The packed store: made from motion files, checked, measured and read."""
