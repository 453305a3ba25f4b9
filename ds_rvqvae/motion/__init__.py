"""What motion is: clips, the layout of their columns, rotations, skeletons and kinematics."""
