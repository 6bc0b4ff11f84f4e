"""Single steps by which a picture becomes noise, and noise a picture, as pure functions.

Where no schedule is named, x_s = (1 - s) x_0 + s n is a rectified flow with velocity v = n - x_0, and a step
goes from noise level s to s', with h = s' - s.  Inverting goes from 0 to 1, sampling from 1 to 0, by the same
functions.

x, y  latents (B, C, H, W)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from textpatch.errors import PatchError

# (x, noise level) -> v
Velocity = Callable[[Tensor, Tensor], Tensor]
# latents at the noisier end of a step -> the denoiser's output there
Predict = Callable[[Tensor], Tensor]
# (x, output) -> latents that the sampler's step takes to x
Undo = Callable[[Tensor, Tensor], Tensor]

# Largest share of a change that the next may be.  With it six digits take 450 iterations.
SLOWEST = 0.97
# ReNoise's published settings
LATE = 250  # timestep below which predictions are averaged
EARLY = slice(0, 5)  # predictions that are averaged below this timestep
SETTLED = slice(8, 10)  # those that are averaged above it


# --- the sampler's own step, undone


def fixed_point(
    x: Tensor,
    output: Tensor,
    predict: Predict,
    undo: Undo,
    *,
    iterations: int = 0,
    tolerance: float = 0.0,
) -> Tensor:
    """Latents y that the sampler's step takes to x, by iteration of

        y <- undo(x, predict(y)),   begun at y = undo(x, output)

    With iterations 0 this is DDIM inversion.  A fixed point is exact: sampling takes it back to x.

    output      what the denoiser predicts for x itself at the timestep of the noisier end
    iterations  most further predictions, each at the newest y
    tolerance   change of y, relative to its size, at which iterations end before
    Raises PatchError if y does not come to rest.  In a contraction every change is a share of the one before.
    """
    y = undo(x, output)
    changes = []
    for _ in range(iterations):
        newer = undo(x, predict(y))
        changes.append(_size(newer - y))
        y = newer
        if changes[-1] <= tolerance * _size(y):
            return y
    _require_rest(changes)
    return y


def _require_rest(changes: list[float]) -> None:
    """Raise PatchError unless changes shrink by a factor of less than SLOWEST each, on average."""
    if len(changes) < 2:
        return
    rate = (changes[-1] / changes[0]) ** (1 / (len(changes) - 1))
    # written so that a rate that is no number counts as well
    if not rate < SLOWEST:
        raise PatchError(
            f"{len(changes)} iterations changed the latents by {changes[0]:.2g} at first and "
            f"{changes[-1]:.2g} at last, and do not come to rest"
        )


def renoise(
    x: Tensor,
    output: Tensor,
    predict: Predict,
    undo: Undo,
    *,
    iterations: int = 1,
    average: bool = False,
) -> Tensor:
    """Latents y that the sampler's step about takes to x, by ReNoise (arXiv 2403.14602).

        y_(k+1) = undo(x, e_k),   e_k = predict(y_k),   begun at e_0 = output

    The result is the last y, or undo(x, mean of some e_k) as published, which are e_0 to e_4 with `average`,
    below timestep 250, and above it e_8 and e_9 where iterations reach so far.  Neither its regularisation
    nor its correction of the noise is here.

    output      what the denoiser predicts for x itself at the timestep of the noisier end
    iterations  predictions after the first
    """
    predictions = [output]
    for _ in range(iterations):
        predictions.append(predict(undo(x, predictions[-1])))
    averaged = predictions[EARLY] if average else predictions[SETTLED]
    if averaged:
        return undo(x, torch.stack(averaged).mean(0))
    return undo(x, predictions[-1])


def _size(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


# --- flows


def euler(x: Tensor, velocity: Velocity, now: Tensor, after: Tensor) -> Tensor:
    """One step of first order, x + h v(x, s)."""
    return x + (after - now) * velocity(x, now)


def midpoint(x: Tensor, velocity: Velocity, now: Tensor, after: Tensor) -> Tensor:
    """One step of second order, x + h v(x + h/2 v(x, s), s + h/2)."""
    h = after - now
    middle = x + h / 2 * velocity(x, now)
    return x + h * velocity(middle, now + h / 2)


def rf_solver(x: Tensor, velocity: Velocity, now: Tensor, after: Tensor) -> Tensor:
    """One step of RF-Solver-2 (arXiv 2411.04746), as its Taylor form is published.

    x + h v + h^2/2 (v_mid - v) / (h/2),   which is `midpoint` but for rounding
    """
    h = after - now
    v = velocity(x, now)
    slope = (velocity(x + h / 2 * v, now + h / 2) - v) / (h / 2)
    return x + h * v + h**2 / 2 * slope


def fireflow(
    x: Tensor, velocity: Velocity, now: Tensor, after: Tensor, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of FireFlow (arXiv 2412.07517), a midpoint step with one call of the denoiser.

    before  v_mid of the step before, which stands for v(x, s).  None in the first step, which calls twice
    Returns x + h v_mid, and v_mid.
    """
    h = after - now
    if before is None:
        before = velocity(x, now)
    v = velocity(x + h / 2 * before, now + h / 2)
    return x + h * v, v


def towards_noise(
    x: Tensor,
    noise: Tensor,
    velocity: Velocity,
    time: Tensor | float,
    length: Tensor,
    *,
    gamma: float,
) -> Tensor:
    """One inverting step of RF-Inversion (arXiv 2410.10792).

        x + length (u + gamma ((noise - x) / (1 - time) - u)),   u = v(x, time)

    With gamma 1, and `length` the way to the next time, the steps end on the noise exactly.

    time    noise level that the denoiser is told.  One clock has `length` lead from this level to the next.
            The published code has two: time is i / (N + 1), and `length` that of another grid
    """
    u = velocity(x, time)
    return x + length * (u + gamma * ((noise - x) / (1 - time) - u))


def towards_picture(
    x: Tensor, picture: Tensor, velocity: Velocity, now: Tensor, after: Tensor, *, eta: float
) -> Tensor:
    """One sampling step of RF-Inversion (arXiv 2410.10792).

    x + (s - s') (-v + eta ((picture - x) / s + v)),   v = v(x, s)
    """
    v = velocity(x, now)
    return x + (now - after) * (-v + eta * ((picture - x) / now + v))


def noised(picture: Tensor, noise: Tensor, x: Tensor, now: Tensor) -> Tensor:
    """Latents at which FlowEdit (arXiv 2412.08629) asks for the target's velocity.

        z_A + (x - picture),   z_A = (1 - s) picture + s noise

    In this order a picture that has not changed gives z_A bit for bit, so that the same prompt twice changes
    nothing.  The published order, x + z_A - picture, leaves rounding.
    """
    return (1 - now) * picture + now * noise + (x - picture)
