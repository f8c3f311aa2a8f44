"""Checkpoints on the Hugging Face Hub: found, downloaded, and finished models put there.

    open_model     a repository at a commit, every header known before a weight is downloaded
    push           a finished directory into a repository

Invariant: what is read is one commit's, and every downloaded shard has the length and the checksum that the
Hub lists; so a conversion from the Hub gives the same bytes on any day and after any number of interruptions.
"""

from lsg.convert.hub.origin import HubOrigin, open_model
from lsg.convert.hub.push import push

__all__ = ["HubOrigin", "open_model", "push"]
