"""Our averaging round with verification and the plain mean, as a worker of the benchmark of what trust costs; nobody audits."""

from __future__ import annotations

import sys

from peers.averaging.trust_rules import TrustRules
from scripts.bench.averaging_ours import Ours
from scripts.bench.worker import serve


class Verified(Ours):
    """As `Ours`, and verified."""

    trust = TrustRules(aggregator="mean", auditors=0, weight_cap=1e6)


if __name__ == "__main__":
    sys.exit(serve(Verified()))
