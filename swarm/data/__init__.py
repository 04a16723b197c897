"""What is learned from: bytes of local text, the same on every member, and who uses which of them. In reading order:

sources      where the text comes from: local files, or the running Python's standard library
windows      random access to many byte arrays as if they were one
dataset      documents -> fingerprint, training bytes, held-out bytes, windows of tokens
assignment   (run seed, epoch, peer, index) -> which window; anyone can recompute it
"""
