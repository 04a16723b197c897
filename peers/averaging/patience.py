"""How long whoever is through with an exchange waits for members that show nothing but life.

A heartbeat costs nothing, so whoever sends only those could hold everybody for as long as streams live. What an honest member may still
need is known: a reducer cuts off its senders after the deadline of exchanges, whoever wants its results has twice as long, and a stall
(`Exchange`), and all begin within a stall of each other. Members that have seen the same rounds have about the same deadline.

That deadline is an hour until three exchanges were seen, for fear of slow links; but now one has ended, and its duration is a better guess.
Twice that would be the deadline if all had taken as long; three times leaves room for members with more history, whose exchanges differed.
It is not less than that deadline can ever be. Where there is history nothing is shortened.

The guess is too short where a reducer serves one member quickly and lets all others wait for as long as their own deadlines say. So a
leader goes by it only if most of those counted have reported: without them all it could do is to give up, and it waits on.

A wrong guess costs no safety: a commit still takes the reports of more than half of those counted, each of which stands at one leader. A
member that was not waited for gets the verdict on its stream all the same, goes on receiving blocks, or fetches the result as one that is
late.
"""

from __future__ import annotations

import math

from protocols.deadline import AdaptiveDeadline

_TIMES_OURS = 3


class Patience:
    """Of one member in one round.

    Args:
        deadline: of exchanges.
        stall_timeout_s: silence after which a member is taken for gone.
        most_s: what an exchange may take at most, whatever has been seen.
    """

    def __init__(self, deadline: AdaptiveDeadline, stall_timeout_s: float, most_s: float = math.inf) -> None:
        self._deadline = deadline
        self._most_s = most_s
        self._stall_timeout_s = stall_timeout_s
        self._longest_exchange_s = 0.0

    def exchanged(self, took_s: float) -> None:
        """An attempt's exchange took us so long; in a repair others may have to get what we have already, so the longest one counts."""
        self._longest_exchange_s = max(self._longest_exchange_s, took_s)

    @property
    def cut_s(self) -> float:
        """How long a reducer waits for anyone's blocks."""
        return min(self._deadline.value_s(), self._most_s)

    @property
    def usual_s(self) -> float:
        """How long others may still need for their exchange, now that ours is over, as far as we can tell."""
        cut_s = self.cut_s
        if not self._deadline.known:
            cut_s = min(cut_s, max(self._deadline.floor_s, _TIMES_OURS * self._longest_exchange_s))
        return self._after(cut_s)

    @property
    def longest_s(self) -> float:
        """How long they may at most."""
        return self._after(self.cut_s)

    def _after(self, cut_s: float) -> float:
        return 2 * (cut_s + self._stall_timeout_s)
