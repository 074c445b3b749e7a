"""kernel/toy/window.py: the window's artists as its sliders move."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from distill.kernel.toy import data as toy_data
from distill.kernel.toy.options import parse, set_toy_defaults
from distill.kernel.toy.window import Window


def test_window_redraws_as_its_sliders_move():
    figure = Figure(layout="none")
    FigureCanvasAgg(figure)
    data = toy_data.toy()
    args = parse(["--alpha", "0.35"])
    set_toy_defaults(args)
    window = Window(figure, data, args)
    assert window.axes.get_title() == "loss 0.14948"
    window.sliders["alpha"].set_val(0.0)
    window.sliders["step"].set_val(3)
    assert window.axes.get_title() == "loss 0.14915"
    window.sliders["log10 lambda"].set_val(1.0)
    window.sliders["log10 gamma"].set_val(1.0)
    K, K_new = (toy_data.kernel_matrix("rbf", x, data.x, 10.0) for x in (data.x, window.grid))
    c = np.linalg.solve(K + 10 * np.eye(11), data.y)
    np.testing.assert_allclose(window.first.get_ydata(), K_new @ c, atol=1e-12)
    window.sliders["log10 lambda"].set_val(-1.0)
    window.sliders["alpha"].set_val(-1.0)
    assert "diverges" in window.axes.get_title()
    assert np.isnan(window.limit.get_ydata()).all()
