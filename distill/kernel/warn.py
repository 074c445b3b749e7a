"""Warnings of the estimators."""

import sys
import warnings

INSIDE = {"distill", "sklearn", "joblib"}
_shown: set[tuple[str, str, int]] = set()  # text, file, line


def warn(text: str, category: type[Warning]) -> None:
    """Warn, at the caller's line outside this package and scikit-learn, and once for each line by default.

    Python also shows a warning once for each line, but forgets it whenever a filter changes: a grid search showed it
    for each fit. A filter for this category is obeyed, so "always" shows all.
    """
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in INSIDE:
        frame = frame.f_back
        level += 1
    matching = (
        action
        for action, message, kind, *_ in warnings.filters
        if issubclass(category, kind) and (message is None or message.match(text))
    )
    if next(matching, "default") == "default":
        key = (text, frame.f_code.co_filename, frame.f_lineno)
        if key in _shown:
            return
        _shown.add(key)
    warnings.warn(text, category, stacklevel=level)
