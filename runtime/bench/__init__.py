"""How fast this machine computes experts, beside what its memory and its arithmetic units allow."""
