"""Actions of an arm as Bridge and Cosmos define them: seven numbers, relative, gripper frame.

A state is ``x y z roll pitch yaw gripper`` (metres, radians, 0 open to 1 closed), with
``R = Rz(yaw) Ry(pitch) Rx(roll)``. The action between two states is the translation and the
rotation of the second seen from the first, and the second's gripper, times ACTION_SCALE.
"""

import numpy as np
from jaxtyping import Float, Float32, Float64

ACTION_SCALE = np.array([20, 20, 20, 20, 20, 20, 1], np.float64)


def rotation(rpy: Float[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3 3"]:
    """Return ``Rz(yaw) Ry(pitch) Rx(roll)``."""
    cr, cp, cy = np.moveaxis(np.cos(np.asarray(rpy, np.float64)), -1, 0)
    sr, sp, sy = np.moveaxis(np.sin(np.asarray(rpy, np.float64)), -1, 0)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def euler(matrix: Float[np.ndarray, "*n 3 3"]) -> Float64[np.ndarray, "*n 3"]:
    """Return roll, pitch, yaw in (-pi, pi]; the inverse of ``rotation``."""
    m = np.asarray(matrix, np.float64)
    cos_pitch = np.hypot(m[..., 0, 0], m[..., 1, 0])
    regular = cos_pitch >= 1e-6
    roll = np.where(
        regular, np.arctan2(m[..., 2, 1], m[..., 2, 2]), np.arctan2(-m[..., 1, 2], m[..., 1, 1])
    )
    pitch = np.arctan2(-m[..., 2, 0], cos_pitch)
    yaw = np.where(regular, np.arctan2(m[..., 1, 0], m[..., 0, 0]), 0.0)
    return np.stack([roll, pitch, yaw], axis=-1)


def relative_actions(states: Float[np.ndarray, "t 7"]) -> Float32[np.ndarray, "s 7"]:
    """Return the scaled actions between consecutive states; ``s`` is ``t - 1``."""
    states = np.asarray(states, np.float64)
    turns = rotation(states[:, 3:6])
    back = np.swapaxes(turns[:-1], -1, -2)
    moved = np.einsum("tij,tj->ti", back, np.diff(states[:, :3], axis=0))
    actions = np.concatenate([moved, euler(back @ turns[1:]), states[1:, 6:]], axis=-1)
    return (actions * ACTION_SCALE).astype(np.float32)


def apply_action(
    state: Float[np.ndarray, " 7"], action: Float[np.ndarray, " 7"]
) -> Float64[np.ndarray, " 7"]:
    """Return the state that a scaled action asks for."""
    state = np.asarray(state, np.float64)
    step = np.asarray(action, np.float64) / ACTION_SCALE
    turn = rotation(state[3:6])
    position = state[:3] + turn @ step[:3]
    return np.concatenate([position, euler(turn @ rotation(step[3:6])), step[6:]])
