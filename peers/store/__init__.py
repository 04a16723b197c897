"""The dictionary shared by the swarm: `RecordStore` of `peers.interfaces`, twice.

rules.py          what every store refuses, whoever sends it
shelf.py          the records that one node keeps: newest wins, bounded, expiring
memory.py         a store in memory, for tests and the simulator
dht_wire.py       how a record looks inside hivemind's DHT, read strictly
gate.py           judges single records, remembering good ones for a while
dht_guard.py      cleans what strangers send before hivemind sees it
hivemind_dht.py   the store on hivemind's DHT
"""
