"""The protobuf package `swarm`, so that our names in the process-wide descriptor pool are nobody else's."""
