"""The motion that a run trains on, checked against all that its profile asks of it."""

from ds_rvqvae.data.joint_weights import check_losses
from ds_rvqvae.data.motion_data import MotionData
from ds_rvqvae.profile import Profile


def open_training_data(profile: Profile) -> MotionData:
    """Opens a profile's motion; raises UserError where it cannot be trained on as the profile says."""
    data = MotionData.open(profile.rvqvae.data)
    data.count_training_windows()
    check_losses(profile.rvqvae.loss, data.layout)
    return data
