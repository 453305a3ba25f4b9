"""Motion: clips, the layout of their columns, rotations, skeletons and kinematics."""
