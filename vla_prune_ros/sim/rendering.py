# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How MuJoCo renders without a screen: EGL where it works, else OSMesa.

MuJoCo decides when it is imported, by the environment variable MUJOCO_GL; what the user put there
stays.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os

OFF = 'disable'  # MuJoCo's word for: physics only
MISSING = (
    'no way to render without a screen: EGL has no device that works and OSMesa is not installed. '
    'On Debian or Ubuntu: apt install libegl1 libgl1 libgl1-mesa-dri, or apt install libosmesa6; '
    'then unset MUJOCO_GL'
)
_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT
_MAX_DEVICES = 32


def choose() -> str:
    """Set MUJOCO_GL if it is not set; returns its value. Call it before mujoco is imported."""
    if 'MUJOCO_GL' not in os.environ:
        if egl_works():
            os.environ['MUJOCO_GL'] = 'egl'
        else:
            os.environ['MUJOCO_GL'] = 'osmesa' if ctypes.util.find_library('OSMesa') else OFF
    return os.environ['MUJOCO_GL']


def require() -> None:
    """RuntimeError that says what to install if nothing here can render."""
    if os.environ.get('MUJOCO_GL', '').lower() == OFF:
        raise RuntimeError(MISSING)


def egl_works() -> bool:
    """Whether EGL can be initialised on some device, as MuJoCo does it."""
    try:
        egl = ctypes.CDLL(ctypes.util.find_library('EGL') or 'libEGL.so.1')
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        addresses = [
            egl.eglGetProcAddress(name)
            for name in (b'eglQueryDevicesEXT', b'eglGetPlatformDisplayEXT')
        ]
    except (OSError, AttributeError):
        return False
    if None in addresses:
        return False
    pointer, number = ctypes.c_void_p, ctypes.c_int
    query = ctypes.CFUNCTYPE(ctypes.c_uint, number, ctypes.POINTER(pointer), pointer)
    open_display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)
    devices, count = (pointer * _MAX_DEVICES)(), number()
    if not query(addresses[0])(_MAX_DEVICES, devices, ctypes.addressof(count)):
        return False
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    for device in devices[: count.value]:
        display = open_display(addresses[1])(_PLATFORM_DEVICE, device, None)
        if display and egl.eglInitialize(display, None, None):
            return True  # left open: MuJoCo is about to use it
    return False
