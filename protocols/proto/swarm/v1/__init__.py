"""Version 1 of the wire messages: generated modules; the typed form of each message is in `protocols.messages` and its neighbours."""
