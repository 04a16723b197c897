"""Container health: exit 0 while the peer keeps renewing its status file, 1 with one sentence otherwise.

A running peer rewrites `status.json` in its state directory about once a second; the file's age is the whole test, so the probe costs
one `stat`. Standard library only, run with `python -I`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

STATUS_FILE = Path("/state/status.json")
MAX_AGE_S = 30.0


def main() -> int:
    """Look once.

    Returns:
        Process exit code: 0 healthy, 1 not.
    """
    try:
        age_s = time.time() - STATUS_FILE.stat().st_mtime
    except FileNotFoundError:
        sys.stderr.write(f"{STATUS_FILE} does not exist: the peer has not started yet.\n")
        return 1
    if age_s > MAX_AGE_S:
        sys.stderr.write(f"{STATUS_FILE} is {age_s:.0f} s old: the peer no longer renews it.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
