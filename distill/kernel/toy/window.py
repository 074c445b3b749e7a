"""An interactive window that shows the chain, with sliders for alpha, lambda, gamma and the step."""

import argparse
import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.widgets import Slider

from distill.errors import DataError
from distill.kernel.linalg import NotFiniteError, SingularKernelError, decompose
from distill.kernel.spectral import DivergentChainError, dual_coefficients, predict
from distill.kernel.toy.data import Data, chain_losses, kernel_matrix, make_folds
from distill.kernel.toy.figures import curve_grid

LAST_STEP = 30  # on the slider


class Window:
    """The figure's artists and sliders; ``update`` redraws from the sliders' values.

    ``figure`` is an empty figure, ``data`` the points, ``args`` the program's options.
    """

    def __init__(self, figure: Figure, data: Data, args: argparse.Namespace):
        self.data = data
        self.kernel = args.kernel
        self.seed = args.seed or 0
        self.axes = figure.add_axes((0.11, 0.38, 0.85, 0.54), xlabel="x", ylabel="f(x)")
        self.grid = curve_grid(data)
        if data.x_truth is not None and data.truth is not None:
            self.axes.plot(data.x_truth, data.truth, color="0.6", linewidth=3, alpha=0.5, label="truth")
        self.axes.plot(data.x, data.y, "o", color="black", markersize=4, markerfacecolor="white", label="data")
        (self.first,) = self.axes.plot(self.grid, 0 * self.grid, ":", color="0.3", label="fit 1")
        (self.curve,) = self.axes.plot(self.grid, 0 * self.grid, color="tab:blue", label="fit of the step")
        (self.limit,) = self.axes.plot(self.grid, 0 * self.grid, "--", color="0.1", label="limit")
        self.axes.legend(loc="upper right", frameon=False)
        first_alpha = next((alpha for alpha in args.alpha or [0.35] if alpha != "auto"), 0.35)
        ranges = {
            "alpha": (-1.5, 1.5, first_alpha, None),
            "log10 lambda": (-8, 3, math.log10(max(args.lam, 1e-8)), None),
            "log10 gamma": (-2, 4, math.log10(max(args.gamma, 1e-2)), None),
            "step": (1, LAST_STEP, min(args.distillation_steps + 1, LAST_STEP), 1),
        }
        self.sliders: dict[str, Slider] = {}
        for row, (name, (low, high, value, step)) in enumerate(ranges.items()):
            position = figure.add_axes((0.2, 0.24 - 0.065 * row, 0.65, 0.04))
            self.sliders[name] = Slider(position, name, low, high, valinit=value, valstep=step)
            self.sliders[name].on_changed(self.update)
        self.gamma: float | None = None
        self.update()

    def update(self, _: float | None = None) -> None:
        """Recompute and redraw; only a new gamma needs a new decomposition."""
        alpha = self.sliders["alpha"].val
        step = self.sliders["step"].val
        lam = 10 ** self.sliders["log10 lambda"].val
        gamma = 10 ** self.sliders["log10 gamma"].val
        if gamma != self.gamma:
            self.gamma = gamma
            x = self.data.x
            self.spectrum = decompose(kernel_matrix(self.kernel, x, x, gamma), overwrite=True)
            self.K_new = kernel_matrix(self.kernel, self.grid, x, gamma)
            self.folds, _loss_name = make_folds(self.data, self.kernel, gamma, self.seed)
        try:
            title = f"loss {chain_losses(self.folds, lam, alpha, [step])[0]:.5f}"
        except (SingularKernelError, NotFiniteError):
            title = "lambda is too small"
        for artist, fit in ((self.first, 1), (self.curve, step), (self.limit, math.inf)):
            try:
                c = dual_coefficients(self.spectrum, self.data.y, lam, alpha, fit)
                artist.set_ydata(predict(self.K_new, c)[0])
            except (DivergentChainError, NotFiniteError) as error:
                artist.set_ydata(np.full_like(self.grid, np.nan))
                title += ", the chain diverges" if isinstance(error, DivergentChainError) else ""
        self.axes.set_title(title)
        self.axes.figure.canvas.draw_idle()


def show(data: Data, args: argparse.Namespace) -> None:
    """Open the window and wait until it is closed. Raises DataError if there is no display."""
    import matplotlib
    from matplotlib.backends import BackendFilter, backend_registry

    try:
        from matplotlib import pyplot

        silent = matplotlib.get_backend().lower() in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
    except ImportError:  # a backend was set by name and cannot start
        silent = True
    if silent:
        raise DataError("--interactive needs a display, and Matplotlib found none")
    window = Window(pyplot.figure(figsize=(7, 5.5)), data, args)
    pyplot.show()
    del window  # referred to until here: sliders without a reference are collected and stop working
