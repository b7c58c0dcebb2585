"""The user's Kaggle credentials.

Data sets are downloaded by `data.fetch` from Kaggle's documented HTTP endpoint: Kaggle's client needs
some twenty packages, and neither resumes nor downloads in parallel."""

import json
import os
import stat
from pathlib import Path

from requests import PreparedRequest
from requests.auth import HTTPBasicAuth

from bench.errors import UserError
from data.fetch import Auth

URL = "https://www.kaggle.com/api/v1/datasets/download"


def credentials() -> Auth | None:
    """Credentials from KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, or kaggle.json in
    KAGGLE_CONFIG_DIR or ~/.kaggle; None if there are none.

    Raises:
        UserError: kaggle.json is damaged; its content is never printed.
    """
    if token := os.environ.get("KAGGLE_API_TOKEN"):

        def bearer(request: PreparedRequest) -> PreparedRequest:
            request.headers["Authorization"] = f"Bearer {token}"
            return request

        return bearer
    user, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    if user and key:
        return HTTPBasicAuth(user, key)
    folder = os.environ.get("KAGGLE_CONFIG_DIR")
    path = (Path(folder) if folder else Path.home() / ".kaggle") / "kaggle.json"
    try:
        values = json.loads(path.read_text())
        user, key = str(values["username"]), str(values["key"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not a Kaggle token: download a new one from your account's page."
        ) from None
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        print(f"warning: {path} can be read by other users: run `chmod 600 {path}`", flush=True)
    return HTTPBasicAuth(user, key)
