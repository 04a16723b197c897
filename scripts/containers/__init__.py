"""Parts of `scripts.containers_test`, which builds the image and drives a swarm of three containers with podman and podman-compose.

Read `scripts/containers_test.py` (the steps in order), then `swarm` (three containers as one object), `image` (base image and build),
`pip_settings` (how the host's package index reaches the build), `commands` (running a program with a deadline). Standard library only.
"""
