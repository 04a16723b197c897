"""What a swarm will do, from plain numbers: how long epochs take, how many bytes go where, and which settings fit its links.

Read `values.py`, then `traffic.py` (bytes), `predicting.py` (seconds) and `recommending.py` (settings). Nothing is measured here.
"""

from __future__ import annotations

from protocols.planning.predicting import predict
from protocols.planning.recommending import recommend
from protocols.planning.values import Advice, Link, Machine, Members, Prediction, Recommendation, Settings, Workload

__all__ = ["Advice", "Link", "Machine", "Members", "Prediction", "Recommendation", "Settings", "Workload", "predict", "recommend"]
