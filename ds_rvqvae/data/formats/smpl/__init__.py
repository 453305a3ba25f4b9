"""Motion of the SMPL family of body models."""
