"""Puts a finished directory on the Hub.

Invariant: only a directory whose manifest can be read is pushed; files that the repository has are not sent
again, so that an interrupted push is continued by the same command.
"""

from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from lsg import LsgError, manifest


def push(directory: Path, hub_id: str) -> str:
    """Create the repository if there is none, upload the directory; its address. Raises LsgError."""
    found = manifest.load(directory)
    api = HfApi()
    try:
        api.create_repo(hub_id, exist_ok=True)
        api.upload_folder(
            repo_id=hub_id,
            folder_path=directory,
            commit_message=f"{found.created_by}: {found.source.model} as {found.options['experts']}",
        )
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, LocalTokenNotFoundError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        msg = (
            f"{hub_id}: not uploaded ({reason}); {directory} is finished: log in with "
            "`hf auth login` if needed and run the same command again to upload it"
        )
        raise LsgError(msg) from error
    return f"{constants.ENDPOINT}/{hub_id}"
