"""Import and export checkpoints of other systems: MoMask, GestureLSM and T2M-GPT."""
