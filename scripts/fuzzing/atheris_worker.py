"""`worker.py` for the engine atheris: our packages are instrumented as they are imported, so nothing of them may be imported before.

python -m scripts.fuzzing.atheris_worker TARGET --engine atheris ...
"""

from __future__ import annotations

import atheris

with atheris.instrument_imports(include=["protocols", "peers", "hivemind.utils.multiaddr"]):
    from scripts.fuzzing.worker import main

if __name__ == "__main__":
    main()
