"""A reader for each format of motion files, and the writers."""
