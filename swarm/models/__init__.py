"""Models by name or by Hugging Face configuration. Nothing is downloaded and no foreign code is run. In reading order:

vocabulary   ids of the bytes and of the two special tokens
presets      BLOOM from `tiny` to `176b`, as plain data
config       what a run file says about its model -> one complete Hugging Face configuration
build        configuration and seed -> module; parameter counts without allocating
imports      the heavy libraries, loaded once and quickly
"""
