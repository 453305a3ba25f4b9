"""The verbs of `ds-rvqvae`: a module each, with `add_to(verbs)` and one short function. Imports are late."""
