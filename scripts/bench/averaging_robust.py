"""Our averaging round with verification and CenteredClip, as a worker of the benchmark of what trust costs; nobody audits."""

from __future__ import annotations

import sys

from peers.averaging.trust_rules import TrustRules
from scripts.bench.averaging_ours import Ours
from scripts.bench.worker import serve


class Robust(Ours):
    """As `Ours`, verified, and aggregated robustly."""

    trust = TrustRules(aggregator="centered_clip", auditors=0, weight_cap=1e6)


if __name__ == "__main__":
    sys.exit(serve(Robust()))
