"""Programs that use the public API only; nobody imports them. Run one as `python -m scripts.<name>`."""
