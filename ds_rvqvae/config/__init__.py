"""The profile: DeepSpeed's keys and ours, loaded, overridden, validated, and as flags."""
