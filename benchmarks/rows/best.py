"""Try several forms of the same row and keep the fastest, so that a peer is shown at its best."""

import sys
import time


def fastest(forms, seconds=0.2):
    """`forms` maps a label to a function that builds a step. Each is tried on a copy of its own; a fresh one of the best is returned.

    The step has the form's `label` and `first_s`, the seconds until that form's first result.
    A form that raises is left out, with a line on stderr; if all raise, the last error is raised.
    """
    times, first, error = {}, {}, None
    for label, build in forms.items():
        try:
            start = time.perf_counter()
            step = build()
            step()
            first[label] = time.perf_counter() - start
            for _ in range(5):
                step()
            calls = []
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                start = time.perf_counter()
                step()
                calls.append(time.perf_counter() - start)
            times[label] = min(calls)
        except Exception as problem:
            error = problem
            print(f"{label}: left out: {type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}", file=sys.stderr)
    if not times:
        raise error
    label = min(times, key=times.get)
    step = forms[label]()
    step.label, step.first_s = label, first[label]
    return step
