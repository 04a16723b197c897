"""One averaging round, driven over the network. Read `averager.py` (the round, in order), then what it calls:

gathering.py   join: who takes part            drives protocols.rendezvous
exchange.py    blocks out, results back        drives protocols.butterfly
settling.py    everybody ends with the same    drives protocols.settlement
verified.py    and that it is right            drives protocols.trust
auditing.py    what members brought, replayed
court.py       judgements and bans
fetching.py    result blocks that others hold
context.py     what these share
"""
