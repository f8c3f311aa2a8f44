"""From a repacked model directory to served tokens: check it, start sglang, compute its routed experts."""
