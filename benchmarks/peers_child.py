"""The process behind a row of `peers.py`: one way of running a model, one line of JSON for each picture.

Given one argument, a Job as JSON; answers {"seconds", "marks", "bytes"} for each picture as soon as its PNG
is in memory, and {"peak_memory_bytes"} in the end.
"""

import io
import json
import os
import sys
import time
import warnings
from typing import Any

from peers_engines import ENGINES, Job


def main() -> None:
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    job = Job(**json.loads(sys.argv[1]))
    make = ENGINES[job.engine](job)
    for steps in job.pictures:
        began = time.perf_counter()
        marks: list[float] = []
        image = make(steps, lambda: marks.append(time.perf_counter() - began))  # noqa: B023 (called within)
        png = io.BytesIO()
        image.save(png, "PNG")
        answer(seconds=time.perf_counter() - began, marks=marks, bytes=len(png.getvalue()))
    from sfumato.peak import peak_memory

    answer(peak_memory_bytes=peak_memory())


if __name__ == "__main__":
    main()
