"""Refuse credentials in URIs, and redact them in whatever is stored or shown.

They come from the environment or from Prefect's blocks; a URI ends up in plans, rows, logs and reports.
"""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator

HIDDEN = "***"
# Parameters of a URL that grant access: signatures of S3, Google and Azure, and the usual tokens.
SIGNED = (
    r"(?:x-(?:amz|goog)-(?:signature|credential|security-token)|sig|signature|awsaccesskeyid|access_token|token"
    r"|api_?key|password|passwd|secret)"
)
# A password before the host: `user:password@`, or on the web a token alone.
USER_INFO = re.compile(r"^[\w+.-]+://[^/]*:[^/]*@|^https?://[^/]*@")
# An S3 secret may hold a slash, so that the `@` comes after it. A port is a number.
BROKEN_USER_INFO = re.compile(r"^[\w+.-]+://[^/@:]*:(?!\d*(?:/|$))[^@]*@")
IN_QUERY = re.compile(rf"^https?://[^?]*\?(?:.*&)?{SIGNED}=", re.IGNORECASE)

SHOWN_USER_INFO = re.compile(r"(?<=://)[^\s/@:'\"]*:[^\s@'\"]*@")
SHOWN_IN_QUERY = re.compile(rf"([?&]{SIGNED}=)[^&\s'\")]+", re.IGNORECASE)
# Of a connection string.
SHOWN_KEY = re.compile(r"((?:AccountKey|SharedAccessSignature)=)[^;\s'\"]+")
SECRET_VARIABLE = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY|ACCOUNT_KEY|CONNECTION_STRING|ERASURE_KEY"
)
# In file names of unknown origin; line breaks are our own. The last ones reverse the direction of text.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
SHORTEST = 8  # characters of a value that is worth hiding: a shorter one occurs in too many other words


def credential_in(uri: str) -> str | None:
    """Return the kind of credential in `uri`, without repeating it; None where there is none.

    >>> credential_in("ftp://ann:letmein@host/photos")
    'a name and a password before the host'
    >>> credential_in("s3://bucket/a@b:c.jpg")
    """
    if USER_INFO.match(uri) or BROKEN_USER_INFO.match(uri):
        return "a name and a password before the host"
    if IN_QUERY.match(uri):
        return "a signature or token in its parameters"
    return None


def without_credentials(uri: str) -> str:
    """Return the URI. Raises ValueError where it contains a credential."""
    found = credential_in(uri)
    if found:
        raise ValueError(refusal(uri, found))
    return uri


def refusal(uri: str, found: str) -> str:
    """Return the message about a URI with a credential, which it does not repeat."""
    protocol = uri.partition("://")[0]
    return (
        f"{protocol}:// URI with credentials ({found}): they would end up in plans, rows and logs. Set them in the "
        "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_CONNECTION_STRING ...) and name only the "
        "place"
    )


Uri = Annotated[str, AfterValidator(without_credentials)]
# One that no worker reads: on a cluster it may be on the driver's machine alone.
DRIVERS = "read by the driver alone"
DriverUri = Annotated[Uri, DRIVERS]


def shown(text: str) -> str:
    """Return `text` for a terminal: redacted, and with control characters escaped.

    >>> shown("x\\x1b]0;title.jpg")
    'x\\\\x1b]0;title.jpg'
    """
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", redact(text))


def redact(text: str) -> str:
    """Return `text` with passwords in URIs, signatures, and values of secret environment variables replaced by ***.

    >>> redact("GET https://host/x.jpg?sig=abc failed for ftp://ann:letmein@host")
    'GET https://host/x.jpg?sig=*** failed for ftp://***@host'
    """
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and value in text and SECRET_VARIABLE.search(name) and not os.path.exists(value):
            text = text.replace(value, HIDDEN)
    text = SHOWN_USER_INFO.sub(f"{HIDDEN}@", text)
    text = SHOWN_IN_QUERY.sub(rf"\1{HIDDEN}", text)
    return SHOWN_KEY.sub(rf"\1{HIDDEN}", text)
