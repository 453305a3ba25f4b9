"""How a process of ours meets what it runs in: standard streams, signals, warnings. Commands and ranks begin here."""
