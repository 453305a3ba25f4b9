"""Set up a process: standard streams, signals, warnings. Commands and ranks begin here."""
