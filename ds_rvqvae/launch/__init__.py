"""The launcher of training: checks a run, starts its ranks and supervises them."""
