# Copyright 2026 The vla_prune_ros authors
# SPDX-License-Identifier: Apache-2.0
"""LIBERO as a simulated robot, with the conventions of OpenVLA-OFT's evaluation.

Per task one environment, seeded once with 0; per episode `reset()`, then the official initial
state, then ten steps that hold still with an open gripper. Images are turned by 180 degrees, the
orientation is axis-angle by robosuite's formula, a negative gripper command opens.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import numpy as np

from vla_prune_ros.sim.base import (
    Camera,
    SimObservation,
    SimulatedRobot,
    SimulationError,
    quaternion_from_matrix,
    quaternion_to_axis_angle,
)
from vla_prune_ros.sim.libero.assets import (
    find_assets,
    find_package,
    import_libero,
    reportable,
    versions,
)
from vla_prune_ros.sim.libero.resets import ResetStream
from vla_prune_ros.sim.libero.suites import LiberoTask, load_initial_states, load_tasks
from vla_prune_ros.sim.scene import Decoration, MujocoScene, decorate

SETTLE_STEPS = 10
SEED = 0  # of each task's environment, fixed in the reference evaluation
HOLD_STILL = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
VIEWS = {'agentview': 'agentview', 'wrist': 'robot0_eye_in_hand'}  # ours -> LIBERO's


class LiberoRobot(SimulatedRobot):
    """One suite of LIBERO: 20 Hz control, 2 ms physics, two cameras.

    An episode depends on task and initial state only. In the reference evaluation the random
    places of fixtures also depend on how many resets the task's environment has seen; here
    initial state k always gets the places of the k-th reset, in whatever order they are asked for.

    Create, use and close it in one thread. What goes wrong inside LIBERO is a `SimulationError`;
    the environment is then built anew by the next `reset`.
    """

    control_hz = 20.0
    joint_names = (*(f'joint{i}' for i in range(1, 8)), 'finger_joint1', 'finger_joint2')
    slow_task_change = True

    def __init__(
        self,
        suite: str = 'libero_spatial',
        assets: str | None = None,
        image_size: int = 256,
        settle_steps: int = SETTLE_STEPS,
        seed: int = SEED,
        render: bool = True,
    ) -> None:
        """Find everything; the first `reset` builds an environment.

        Args:
            suite: one of `SUITES`.
            assets: folder of assets or 'placeholder'; see `find_assets`.
            image_size: side of the camera images in pixels.
            settle_steps: steps before the policy's first observation.
            seed: of each task's environment.
            render: whether images can be asked for.

        Raises:
            ValueError: unknown suite.
            LiberoMissingError: LIBERO or its assets are not installed.
        """
        self.suite = suite
        self.tasks: tuple[LiberoTask, ...] = load_tasks(suite, find_package())
        self.n_initial_states = len(load_initial_states(self.tasks[0].states))
        self.assets = find_assets(assets)
        self.notice = self.assets.notice
        installed = versions()
        if not reportable(installed):
            other = f'MuJoCo {installed["mujoco"]}, not the version of published scores'
            self.notice = '; '.join(filter(None, (self.notice, other)))
        self._envs = import_libero(self.assets)
        self._size, self._settle, self._seed, self._render = image_size, settle_steps, seed, render
        self._thread = threading.get_ident()
        self._env: Any = None
        self._task: LiberoTask | None = None
        self._states = np.zeros((0, 0))
        self._resets = ResetStream(seed)
        self._images_wanted = True
        self._seen: dict[str, Any] = {}  # camera -> simulation data at the last sampling
        self._observation: dict[str, np.ndarray] = {}
        self._decorations: list[Decoration] = []
        self._done = False
        self._steps = 0
        # As LIBERO's problem classes and robosuite's Panda set them; checked at every reset.
        self.cameras = tuple(
            Camera(name, image_size, image_size, fovy, mirrored=True)
            for name, fovy in (('agentview', 45.0), ('wrist', 75.0))
        )

    # -- SimulatedRobot ------------------------------------------------------------------------
    @property
    def instruction(self) -> str:
        """That of the task; '' before the first reset."""
        return self._task.instruction if self._task else ''

    def reset(self, task: int | str, initial_state: int, render: bool = True) -> SimObservation:
        """Start an episode from an official initial state; returns the observation after settling.

        Raises:
            ValueError: unknown task or state.
            SimulationError: LIBERO failed.
        """
        index = self.task_index(task)
        if not 0 <= initial_state < self.n_initial_states:
            raise ValueError(
                f'initial state {initial_state} is outside 0..{self.n_initial_states - 1}'
            )
        with self._guard('reset'):
            if self._env is None or self._task is not self.tasks[index]:
                self._build(self.tasks[index])
            if initial_state >= len(self._states):
                name = self.tasks[index].states.name
                raise SimulationError(f'{name} has {len(self._states)} states')
            render = render and self._render
            self._images_wanted = render and self._settle == 0
            self._decorations.clear()
            self._resets.perform(self._env.env, initial_state)
            self._watch_cameras()
            observation = self._env.set_init_state(self._states[initial_state])
            self._done = bool(self._env.check_success())
            for step in range(self._settle):
                self._images_wanted = render and step == self._settle - 1
                observation, _, self._done, _ = self._env.step(HOLD_STILL)
            self._steps, self._observation = 0, observation
            return self._packed(render=self._images_wanted)

    def step(self, action: np.ndarray, render: bool = True) -> SimObservation:
        """Apply one action; robosuite clips to [-1, 1].

        Raises:
            ValueError: not seven finite numbers.
            SimulationError: LIBERO failed, or no episode was started.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f'action must be 7 finite numbers, got {action!r}')
        with self._guard('step'):
            self._images_wanted = render and self._render
            self._observation, _, self._done, _ = self._env.step(action.copy())
            self._steps += 1
            return self._packed(self._images_wanted)

    def observe(self, render: bool = True) -> SimObservation:
        """The last observation; images that were not drawn then are drawn now, as of then."""
        with self._guard('observe'):
            if render and self._render:
                for name, camera in VIEWS.items():
                    self._observation[f'{camera}_image'] = self._draw(camera, self._seen[name])
            return self._packed(render and self._render)

    def snapshot(self) -> Callable[[], dict[str, np.ndarray]]:
        """The images of the last sampling, drawn later."""
        seen = {name: SimpleNamespace(_data=copy.copy(s._data)) for name, s in self._seen.items()}
        return lambda: {
            name: np.ascontiguousarray(self._draw(camera, seen[name])[::-1, ::-1])
            for name, camera in VIEWS.items()
        }

    def mujoco_scene(self) -> MujocoScene:
        """The simulation of this episode; the next one has another model."""
        with self._guard('mujoco_scene'):
            import mujoco

            sim = self._env.sim
            model, data = sim.model._model, sim.data._data

            def refresh() -> None:  # pictures are drawn from copies
                for one in (data, *(seen._data for seen in self._seen.values())):
                    mujoco.mj_camlight(model, one)

            free = mujoco.mjtJoint.mjJNT_FREE
            return MujocoScene(
                model,
                data,
                refresh,
                self._decorations,
                cameras={'agentview': sim.model.camera_name2id(VIEWS['agentview'])},
                arm=sim.model.body_name2id('robot0_base'),
                movable={
                    name: body
                    for name, body in self._env.env.obj_body_id.items()
                    if model.body_jntnum[body] and model.jnt_type[model.body_jntadr[body]] == free
                },
            )

    def success(self) -> bool:
        """LIBERO's goal predicate after the last step."""
        return bool(self._done)

    def camera_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """World position and quaternion xyzw of the optical frame."""
        with self._guard('camera_pose'):
            sim = self._env.sim
            camera = sim.model.camera_name2id(VIEWS[name])
            rotation = sim.data.cam_xmat[camera].reshape(3, 3) * [1.0, -1.0, -1.0]
            return sim.data.cam_xpos[camera].copy(), quaternion_from_matrix(rotation)

    def close(self) -> None:
        """Free the rendering context."""
        if self._env is not None:
            env, self._env = self._env, None
            with suppress(Exception):  # interrupted in a reset it has been torn down by half
                env.close()

    def objects(self) -> dict[str, np.ndarray]:
        """Poses of movable things and fixtures, by their names in the BDDL file."""
        with self._guard('objects'):
            data = self._env.sim.data
            return {
                name: np.concatenate([data.body_xpos[body], data.body_xquat[body][[1, 2, 3, 0]]])
                for name, body in self._env.env.obj_body_id.items()
            }

    @property
    def env(self) -> Any:
        """LIBERO's own environment, for tests; None before the first reset."""
        return self._env

    # -- helpers -------------------------------------------------------------------------------
    def _build(self, task: LiberoTask) -> None:
        self.close()
        self._task, self._states = task, load_initial_states(task.states)
        import libero.libero

        libero.libero._assets_path_cache = str(self.assets.path)  # another robot may have its own
        self._env = self._envs.OffScreenRenderEnv(
            bddl_file_name=str(task.bddl),
            camera_heights=self._size,
            camera_widths=self._size,
            ignore_done=True,  # a step limit beyond 1000 is the caller's choice
        )
        self._resets = ResetStream(self._seed)

    def _watch_cameras(self) -> None:
        """Let the two image sensors of the environment draw only when somebody looks.

        robosuite samples its sensors a little before the end of a control step. What is drawn
        later is drawn from a copy of the simulation at that moment, so it is the same image.
        """
        sim = self._env.sim
        for spec, (name, camera) in zip(self.cameras, VIEWS.items(), strict=True):
            fovy = float(sim.model._model.cam_fovy[sim.model.camera_name2id(camera)])
            if abs(fovy - spec.fovy) > 1e-6:
                raise SimulationError(f'camera {camera} has {fovy} degrees, not {spec.fovy}')
            self._seen[name] = SimpleNamespace(_data=None)
            sensor = self._sensor(camera, self._seen[name])
            self._env.env.modify_observable(f'{camera}_image', 'sensor', sensor)

    def _sensor(self, camera: str, seen: SimpleNamespace) -> Callable[[dict], np.ndarray]:
        sim, blank = self._env.sim, np.zeros((self._size, self._size, 3), np.uint8)

        def sense(_: dict) -> np.ndarray:
            seen._data = copy.copy(sim.data._data)
            return self._draw(camera) if self._images_wanted else blank

        sense.__modality__ = 'image'  # type: ignore[attr-defined]
        return sense

    def _draw(self, camera: str, data: SimpleNamespace | None = None) -> np.ndarray:
        """An image uint8 [H, W, 3] as LIBERO gives it, of now or of a copy of the simulation."""
        sim = self._env.sim
        context = sim._render_context_offscreen
        now = context.data
        try:
            context.data = data or now
            image = sim.render(camera_name=camera, width=self._size, height=self._size)
            if self._decorations:  # once more, with what is not of the model
                import mujoco

                decorate(context.scn, self._decorations)
                view = mujoco.MjrRect(0, 0, self._size, self._size)
                mujoco.mjr_render(view, context.scn, context.con)
                image = context.read_pixels(self._size, self._size)
            return image
        finally:
            context.data = now

    def _packed(self, render: bool) -> SimObservation:
        seen = self._observation
        images = {
            name: np.ascontiguousarray(seen[f'{camera}_image'][::-1, ::-1])
            for name, camera in (VIEWS.items() if render else ())
        }
        position, quaternion = seen['robot0_eef_pos'], seen['robot0_eef_quat']
        fingers = np.array(seen['robot0_gripper_qpos'], dtype=np.float64)
        return SimObservation(
            images=images,
            proprio=np.concatenate([position, quaternion_to_axis_angle(quaternion), fingers]),
            joint_positions=np.array(seen['robot0_joint_pos'], dtype=np.float64),
            finger_positions=fingers,
            ee_position=np.array(position, dtype=np.float64),
            ee_quaternion=np.array(quaternion, dtype=np.float64),
            time=self._steps / self.control_hz,
        )

    @contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        """Keep to one thread; what LIBERO raises becomes a SimulationError."""
        if threading.get_ident() != self._thread:
            raise RuntimeError(f'LiberoRobot.{what} was called in another thread than made it')
        if self._env is None and what != 'reset':
            raise SimulationError(f'{what} without an episode; call reset first')
        try:
            yield
        except Exception as error:
            self.close()
            name = self._task.name if self._task else '?'
            text = (
                f'LIBERO failed in {what} of {self.suite}/{name}: {type(error).__name__}: {error}'
            )
            raise SimulationError(text) from error
