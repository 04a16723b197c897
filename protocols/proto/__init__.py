"""Wire messages in protobuf. `swarm/v1/*.proto` are the sources; `python -m scripts.generate_protos` writes the code beside them."""
