"""Load, override and validate a profile, which has DeepSpeed's keys and ours, and offer its keys as flags."""
