# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Shifts of pictures: noise, blur, compression, frames that are late, missing or covered."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

from vla_prune_ros.sim.shifts.base import Images, Shift, World

_SAMPLES = 512  # steps of an episode whose frames are drawn in advance; later ones repeat
_COVERED_FROM = (8, 40)  # control steps between which a camera is covered first


class Noise(Shift):
    """Gaussian noise, independent from pixel to pixel, frame to frame and camera to camera."""

    axis = 'noise'
    summary = 'Gaussian noise of the sensor'
    unit = 'grey levels'
    levels = (30.0, 60.0, 100.0, 130.0, 150.0)

    def pictures(self, images: Images, step: int) -> Images:
        """Noise that belongs to this step, whether or not others were looked at."""
        result = {}
        for number, (name, image) in enumerate(sorted(images.items())):
            grain = self.draws(step, number).standard_normal(image.shape, dtype=np.float32)
            noisy = image + np.float32(self.severity) * grain
            result[name] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        return {name: result[name] for name in images}


class Blur(Shift):
    """A lens out of focus."""

    axis = 'blur'
    summary = 'Gaussian blur'
    unit = 'pixels, standard deviation'
    levels = (3.0, 5.0, 8.0, 11.0, 15.0)

    def pictures(self, images: Images, step: int) -> Images:
        """The images blurred."""
        blur = ImageFilter.GaussianBlur(self.severity)
        return {n: np.array(Image.fromarray(i).filter(blur)) for n, i in images.items()}


class Jpeg(Shift):
    """A link that compresses."""

    axis = 'jpeg'
    summary = 'JPEG compression'
    unit = 'quality'
    levels = (30.0, 15.0, 8.0, 5.0, 3.0)

    def pictures(self, images: Images, step: int) -> Images:
        """The images compressed and decompressed."""
        result = {}
        for name, image in images.items():
            file = io.BytesIO()
            Image.fromarray(image).save(file, 'JPEG', quality=int(self.severity))
            result[name] = np.array(Image.open(file))
        return result


class Delay(Shift):
    """Every frame comes late; the state does not."""

    axis = 'delay'
    summary = 'frames that come late'
    unit = 'control steps'
    levels = (1.0, 2.0, 4.0, 6.0, 8.0)
    within = late = True

    def lag(self, step: int) -> int:
        """Before the first late frame comes there is the first frame."""
        return min(step, int(self.severity))


class Freeze(Shift):
    """Frames are dropped; the last one stays in their place."""

    axis = 'freeze'
    summary = 'frames that are dropped, the last one stays'
    unit = 'share of the frames'
    levels = (0.15, 0.3, 0.45, 0.6, 0.7)
    within = late = True

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        dropped = self.rng.random(_SAMPLES) < self.severity
        dropped[0] = False
        shown = np.maximum.accumulate(np.where(dropped, 0, np.arange(_SAMPLES)))
        self._lags = np.arange(_SAMPLES) - shown

    def lag(self, step: int) -> int:
        """Steps since the last frame that came."""
        return int(self._lags[step % _SAMPLES])


class Occlude(Shift):
    """One camera sees nothing for a while."""

    axis = 'occlude'
    summary = 'a camera is covered'
    unit = 'control steps'
    levels = (8.0, 16.0, 32.0, 64.0, 128.0)
    within = True

    def __init__(self, world: World, level: int) -> None:
        super().__init__(world, level)
        cameras = [camera.name for camera in world.robot.cameras]
        self._camera = cameras[self.rng.integers(len(cameras))]
        self._first = int(self.rng.integers(*_COVERED_FROM))

    def before_step(self, step: int) -> str:
        """Covered before the frame of its first step is taken."""
        if step + 1 == self._first:
            return 'occlude'
        return 'uncover' if step + 1 == self._first + int(self.severity) else ''

    def pictures(self, images: Images, step: int) -> Images:
        """Black while covered."""
        covered = self._first <= step < self._first + self.severity
        if not covered or self._camera not in images:
            return images
        return images | {self._camera: np.zeros_like(images[self._camera])}
