"""Other people's checkpoints: MoMask's, GestureLSM's and T2M-GPT's, in and out."""
