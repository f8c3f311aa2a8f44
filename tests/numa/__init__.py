"""`make test-numa`: NUMA placement, proven in emulated machines."""
